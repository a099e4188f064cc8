"""Each pair of the matrix that works: a small network in that format is built for that target, and computes the same.

Pairs of TensorFlow's formats are held by tests/test_tensorflow.py, where TensorFlow is loaded once.
"""

from __future__ import annotations

from pathlib import Path

import fashion
import linear
import pytest
import targets
import tiny

from edgeopt import backends, formats
from edgeopt.formats import ModelRef
from edgeopt.matrix import AS_IT_IS, THROUGH_ONNX, matrix
from edgeopt.samples import Samples, write_samples
from edgeopt.stages import keep

OF_TENSORFLOW = ("keras", "savedmodel")
WORKING = {(pair["source"], pair["target"]): pair for pair in matrix()["pairs"] if pair["works"]}
THROUGH = [key for key, pair in WORKING.items() if pair["route"] == THROUGH_ONNX and key[0] not in OF_TENSORFLOW]
KEPT = [key for key, pair in WORKING.items() if pair["route"] == AS_IT_IS]
WRITE = {"tflite": (linear.save_tflite, "net.tflite"), "openvino": (linear.save_openvino, "net.xml")}


def test_no_format_is_left_out() -> None:
    assert {source for source, _ in (*THROUGH, *KEPT)} | set(OF_TENSORFLOW) == formats.FORMATS.keys()
    assert {source for source, _ in THROUGH} == set(tiny.SOURCES)


@pytest.mark.parametrize(("source", "target"), THROUGH, ids=map("-".join, THROUGH))
def test_through_onnx(source: str, target: str, tmp_path: Path) -> None:
    image = tiny.images()[:1]
    targets.check(target, tiny.brought_in(source), tmp_path / "out", {"image": image}, [tiny.outputs()[:1]])


@pytest.mark.parametrize(("source", "target"), KEPT, ids=map("-".join, KEPT))
def test_as_it_is(source: str, target: str, tmp_path: Path) -> None:
    write, name = WRITE[source]
    for folder in ("model", "import", "samples"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "model" / name)
    write_samples(tmp_path / "samples", {"x": linear.RAW}, None, linear.PREPROCESS)
    model = ModelRef(str(tmp_path / "model" / name))
    told = formats.bring_in(model, tmp_path / "samples", tmp_path / "import", lambda *_: None)
    built = (fashion.artifact(tmp_path / "import", told.produced), tmp_path / "import")
    made = fashion.run_stage(keep, target, built, tmp_path / "out", lineage={"import": built[1]})
    assert made[0].files == built[0].files
    found = targets.outputs(target, made, Samples(tmp_path / "samples").batch(0, 1))
    assert abs(found[0] - linear.SCORES[:1]).max() < 1e-4
    assert made[0].format == backends.find(target).FORMAT
