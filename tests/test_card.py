"""The model card of a bundle: what it tells, that it stays Markdown whatever names say, and that its code runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import command
import linear
import numpy as np
import pytest
from test_reports import ARTIFACT, HOSTILE, MACHINE, result

from edgeopt import yaml
from edgeopt.artifact import TensorSpec, sha256_of_file
from edgeopt.bundle import read_bundle
from edgeopt.report import card, snippet
from edgeopt.samples import Preprocess, adapt

SAMPLES = {"count": 1000, "location": "/home/me/val.npz", "digest": "d" * 64}
RUN = {
    "edgeopt": "1.2",
    "model": "/home/me/net.onnx",
    "weights": None,
    "import": {"model": "a" * 64, "tools": {"onnx": "1.23"}},
    "data": {"validation": SAMPLES},
    "target": {"name": "board", "arch": None, "isa": ["avx2"]},
    "machine": MACHINE.to_json(),
    "steps": [],
}


def rendered(document: dict[str, Any] | None = None, **run: Any) -> str:
    return card.render(document or result(), {**RUN, **run}, ARTIFACT, Preprocess((73.0,), (90.0,)), ("x",), 4)


def test_it_tells_what_was_made_of_what_and_how_it_was_measured() -> None:
    text = rendered()
    assert "# r: int8-onnxruntime" in text
    assert f"| made from | net.onnx, sha256 {'a' * 64} |" in text
    assert f"| data: validation | 1000 samples of val.npz, sha256 {'d' * 64} |" in text
    assert "| latency p50 | 4.00 ms \\[4.00 ms, 4.00 ms\\] | 1.00 ms \\[1.00 ms, 1.00 ms\\] |" in text
    assert "| speed-up |  | 4.00x, faster |" in text
    assert "| quality | top1 95.00 %, drop 0.00 ±0.20 points | top1 94.50 %, drop 0.50 ±0.20 points |" in text
    assert "- latency p50 1.00 ms ≤ 5.00 ms" in text
    assert "/home/me" not in text


def test_what_was_not_measured_is_said_and_has_no_number() -> None:
    text = rendered()
    assert "| latency p99 | not measured | not measured |" in text
    assert "Quality was judged on 1000 samples of val.npz alone" in text
    assert "Not measured: energy, how it does over hours" in text
    assert "Licence and intended use" in text


def test_energy_is_told_where_it_was_measured() -> None:
    text = card.render(result(), RUN, ARTIFACT, Preprocess(), ("x",), 4, energy_uj=1234.5)
    assert "takes 1,234 µJ an inference" in text
    assert "Not measured: how it does over hours" in text


def test_its_first_lines_are_fields_of_hugging_face() -> None:
    _, fields, _ = rendered().split("---\n", 2)
    told = yaml.parse(fields, "README.md").value
    assert told == {
        "library_name": "onnx",
        "tags": ["edgeopt", "onnx", "onnxruntime", "fp32"],
        "metrics": ["accuracy"],
    }, "and no licence, which nobody knows"


def test_names_do_not_break_out() -> None:
    document = result(recipe=HOSTILE)
    document["candidates"][0]["id"] = document["baseline"] = HOSTILE
    text = rendered(document, model=f"/a/{HOSTILE}.onnx")
    assert not re.search(r"(?<!\\)<|\x1b|\u202e", text.partition("```")[0])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 4}


# The code


def ran(code: list[str], folder: Path) -> Any:
    """What `outputs` holds after the code ran in a process of its own."""
    script = "\n".join([*code, "np.savez('ran.npz', *outputs)"])
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=folder, check=True, capture_output=True)
    with np.load(folder / "ran.npz") as arrays:
        return arrays["arr_0"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_the_code_runs_in_the_bundle_and_gives_the_golden_outputs(backend: str, tmp_path: Path) -> None:
    made = linear.bundle(tmp_path / "best", backend)
    code = snippet.code_to_run(backend, made.artifact, made.preprocess, made.golden_inputs, 4)
    assert not any("edgeopt" in line for line in code)
    found = ran(code, made.folder)
    np.testing.assert_allclose(found, linear.SCORES[: len(found)], rtol=1e-4)


def test_another_backend_is_run_by_edgeopt(tmp_path: Path) -> None:
    made = linear.bundle(tmp_path / "best")
    code = snippet.code_to_run("tensorrt", made.artifact, made.preprocess, made.golden_inputs, 4)
    np.testing.assert_allclose(ran([*code, "outputs = [outputs]"], made.folder), linear.SCORES[:4], rtol=1e-4)


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
TURNED = Preprocess((120.0, 115.5, 100.25), (60.0,), (2, 0, 1))


@pytest.mark.parametrize(
    ("spec", "preprocess", "taken"),
    [
        (TensorSpec("x", ("batch", 3, 5, 6), "float32"), TURNED, 4),
        (TensorSpec("x", (1, 5, 6, 3), "float32", layout="NHWC"), TURNED, 1),
        (TensorSpec("x", (1, 5, 6, 3), "int8", "NHWC", 0.017, -3), TURNED, 1),
        (TensorSpec("x", (1, 5, 6, 3), "uint8", None, 1.0, 0), Preprocess(), 1),
        (TensorSpec("class", (2, 5, 6, 3), "float32"), Preprocess(), 2),
        (TensorSpec("x", (6, 5, 6, 3), "float32"), Preprocess(std=(255.0,)), 6),
    ],
)
def test_inputs_are_made_as_edgeopt_makes_them(
    spec: TensorSpec, preprocess: Preprocess, taken: int, tmp_path: Path
) -> None:
    np.savez(tmp_path / "golden.npz", **{"input-0": IMAGES})
    line = f"outputs = [{snippet._feed(0, spec, preprocess, len(IMAGES))}]"
    found = ran(["import numpy as np", "golden = np.load('golden.npz')", line], tmp_path)
    wanted = adapt({"x": preprocess.apply(np.resize(IMAGES, (taken, *IMAGES.shape[1:])))}, [spec])[spec.name]
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def test_every_bundle_of_a_run_has_a_card_that_is_listed_and_whose_code_runs(tmp_path: Path) -> None:
    made = command.convert(command.project(tmp_path / "project", command.ONE_CANDIDATE), tmp_path / "cache")
    best = read_bundle(Path(made["run"]) / "best")
    text = (best.folder / card.NAME).read_text()
    assert sha256_of_file(best.folder / card.NAME) in [one.sha256 for one in best.listed if one.path == card.NAME]
    assert best.artifact.digest in text
    code = text.partition("```python\n")[2].partition("```")[0]
    np.testing.assert_allclose(ran([code], best.folder), best.golden()[1]["scores"], rtol=1e-4)
    assert json.loads((Path(made["run"]) / "choice.json").read_text())["why"] in text
