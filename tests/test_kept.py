"""Models that one runtime runs as they are: planned, measured, and made smaller in their own format."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import linear
import numpy as np
import pytest

from edgeopt import formats, plan, stages, yaml
from edgeopt.__main__ import main
from edgeopt.errors import InputError, StageError
from edgeopt.recipe import resolve
from edgeopt.stages import StageJob, keep

STEPS = """
    data: {calibration: train.npz, validation: train.npz}
    steps:
      - prune: {channels: [0 %, 50 %]}
      - quantize: [none, int8, {int8: {bias_correction: fast}}]
      - compile: [onnxruntime, openvino, {openvino: {precision: bf16}}, tflite]
"""


def planned(model: str, steps: str = STEPS) -> plan.Plan:
    text = f"model: {model}\n" + textwrap.dedent(steps)
    return plan.make(resolve(yaml.parse(text, "r.yaml"), base=Path("/base"), name="r"))


def test_a_tflite_file_is_planned_for_its_own_runtime():
    made = planned("net.tflite")
    assert [candidate.id for candidate in made.candidates] == ["tflite", "int8-tflite"]
    assert made.baseline == "tflite" and made.candidates[0].untouched and not made.candidates[1].untouched
    assert set(made.left_out) == {"prune50", "int8-fast", "onnxruntime", "openvino", "openvino-bf16"}
    assert made.left_out["onnxruntime"].startswith("net.tflite runs on tflite alone")


def test_an_openvino_model_is_planned_for_its_own_runtime():
    made = planned("net.xml")
    assert [candidate.id for candidate in made.candidates] == ["openvino", "openvino-bf16"]
    assert {"int8", "tflite"} < set(made.left_out)


def test_calibration_is_asked_for_int8_alone():
    made = planned("net.tflite")
    assert [made.step(c.step).roles for c in made.candidates] == [(), ("calibration",)]


def test_no_converter_is_needed():
    assert set(planned("net.tflite", "steps: [{compile: tflite}]").tools()) == {"ai-edge-litert"}


def test_its_runtime_has_to_be_asked_for():
    with pytest.raises(InputError, match=r"net\.tflite runs on tflite alone") as caught:
        planned("net.tflite", "steps: [{compile: onnxruntime}]")
    assert caught.value.remedy == "Compile for it: `- compile: tflite`."


def test_no_recipe_names_the_stage():
    with pytest.raises(InputError, match="keep"):
        planned("net.onnx", "steps: [{keep: tflite}]")


def test_what_becomes_onnx_has_no_runtime_of_its_own():
    kept = {suffix: formats.runtime_of(f"net{suffix}") for suffix in formats.SUFFIXES}
    assert {suffix: found for suffix, found in kept.items() if found} == {".tflite": "tflite", ".xml": "openvino"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A linear model in both formats, its samples, and a cache of its own."""
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "cache"))
    linear.save_tflite(tmp_path / "net.tflite")
    linear.save_openvino(tmp_path / "net.xml")
    x = np.random.default_rng(0).standard_normal((linear.SAMPLES, linear.FEATURES)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=x)
    return tmp_path


def convert(project: Path, model: str, capsys: Any, steps: str = STEPS) -> Any:
    recipe = f"model: {model}\n{textwrap.dedent(steps)}measure: {{rounds: 3, block: 1 ms}}\n"
    (project / "r.yaml").write_text(recipe)
    code = main(["convert", str(project / "r.yaml"), "-o", str(project / "run"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == 0, told
    return told


def test_a_tflite_file_is_measured_and_quantized(project, capsys):
    pytest.importorskip("ai_edge_quantizer")
    told = convert(project, "net.tflite", capsys)
    found = {c["id"]: c for c in told["candidates"] if c.get("artifact")}
    assert set(found) == {"tflite", "int8-tflite"}
    assert found["tflite"]["quality"]["exact"] and found["int8-tflite"]["quality"]["sqnr_db"] > 25
    assert found["int8-tflite"]["artifact"]["precision"] == "int8"
    assert found["tflite"]["artifact"]["size_bytes"] == (project / "net.tflite").stat().st_size


def test_an_openvino_model_is_measured(project, capsys):
    pytest.importorskip("openvino")
    told = convert(project, "net.xml", capsys, "data: {validation: train.npz}\nsteps: [{compile: openvino}]\n")
    best = project / "run" / "best"
    assert told["winner"] == "openvino"
    assert (best / "model.xml").read_bytes() == (project / "net.xml").read_bytes()
    assert (best / "model.bin").read_bytes() == (project / "net.bin").read_bytes()


def test_samples_that_do_not_fit(project, capsys):
    np.savez(project / "train.npz", x=np.zeros((4, 5), np.float32))
    (project / "r.yaml").write_text("model: net.tflite\ndata: {validation: train.npz}\nsteps: [{compile: tflite}]\n")
    assert main(["convert", str(project / "r.yaml"), "-o", str(project / "run")]) == 2
    assert "does not take samples of shape [1, 5]" in " ".join(capsys.readouterr().err.split())


def test_what_is_quantized_already_is_not_quantized_again(project):
    made = planned("net.tflite")
    out = project / "out"
    out.mkdir()
    told = formats.bring_in(formats.ModelRef(str(project / "net.tflite")), None, out, lambda *_: None).produced
    artifact = plan.Artifact.from_json(
        {
            **told.to_json(),
            "precision": "int8",
            "files": [{"path": "model.tflite", "sha256": "", "size_bytes": 1}],
            "made_by": {"stage": "import", "version": 1, "options": {}, "tools": {}},
        }
    )
    target = made.recipe.target
    options = stages.find("keep").choices()["tflite"](precision="int8-dynamic")
    copy = project / "copy"
    copy.mkdir()
    job = StageJob("tflite", options, artifact, out, {}, {}, target, copy, lambda *_: None)
    with pytest.raises(StageError, match="in int8 already"):
        keep.run(job)
    shutil.rmtree(copy)
