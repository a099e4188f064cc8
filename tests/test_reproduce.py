"""A run done again from its run.json: the same bytes, or what is not the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import convert, project

from edgeopt.__main__ import main

RECIPE = """
model: model.onnx
data: {validation: validation.npz}
steps:
  - compile: [onnxruntime, {onnxruntime: {precision: fp16}}]
measure: {rounds: 3, block: 2 ms}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = project(tmp_path_factory.mktemp("reproduce") / "project", RECIPE)
    return Path(convert(folder, folder.parent / "cache")["run"])


def reproduce(lock: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> tuple[int, Any]:
    monkeypatch.setenv("EDGEOPT_CACHE", str(cache))
    monkeypatch.chdir(cache.parent / "project")
    code = main(["convert", "--reproduce", str(lock), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_same_comes_out_and_is_built_anew(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = done.parents[2] / "cache"
    before = sorted(cache.parent.iterdir())
    code, found = reproduce(done / "run.json", cache, capsys, monkeypatch)
    assert (code, found["same"], found["surroundings"], found["differences"]) == (0, True, [], [])
    assert len(found["steps"]) == 2
    assert all(step["before"] == step["now"] for step in found["steps"])
    again = json.loads((Path(found["run"]) / "run.json").read_text())
    assert not any(step["reused"] for step in again["steps"])
    assert sorted(cache.parent.iterdir()) == before, "its own cache is gone, the usual one is not touched"


def test_what_differs_is_told_and_is_exit_code_7(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads((done / "run.json").read_text())
    told["edgeopt"], told["machine"]["cpu"] = "0.0.1", "another"
    for step in told["steps"]:
        step["inputs"]["tools"]["onnx"] = "1.0"
    told["steps"][0]["artifact"] = "0" * 64
    told["data"]["validation"]["digest"] = "1" * 64
    lock = done.parent / "changed.json"
    lock.write_text(json.dumps(told))
    code, found = reproduce(lock, done.parents[2] / "cache", capsys, monkeypatch)
    assert (code, found["same"], [step["same"] for step in found["steps"]]) == (7, False, [False, True])
    assert {one["what"]: one["before"] for one in found["surroundings"]} == {
        "edgeopt": "0.0.1", "onnx": "1.0", "machine.cpu": "another"
    }  # fmt: skip
    assert [one["what"] for one in found["differences"]] == ["data.validation"]


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "cannot be read"), ("{}", "no run.json"), ('{"schema": 1, "steps": [], "recipe": {}}', "older edgeopt")],
)
def test_what_is_no_run_json_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert main(["convert", "--reproduce", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err


def test_nothing_else_goes_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "recipe.yaml", "--reproduce", str(tmp_path)]) == 2
    assert "--reproduce takes all from the run.json" in capsys.readouterr().err
    assert main(["convert"]) == 2
    assert "missing argument 'RECIPE|MODEL'" in capsys.readouterr().err


def test_a_person_reads_a_table(done: Path) -> None:
    """In a process of its own, as a person starts it."""
    code = (
        "import sys, json; from edgeopt import reproduce; from edgeopt.cli import console; "
        "reproduce.print_document(json.loads(sys.argv[1]), console())"
    )
    steps = [{"id": "import/compile=tflite", "before": "a" * 64, "now": None, "same": False, "inputs": []}]
    document = {"differences": [{"what": "data.train", "before": "x", "now": "y"}], "steps": steps, "run": str(done)}
    shown = subprocess.run(
        [sys.executable, "-c", code, json.dumps(document)], capture_output=True, text=True, check=True
    ).stdout
    assert "data.train was x, is y" in shown
    assert "aaaaaaaaaaaa   not built   DIFFERENT" in shown
    assert "Not reproduced: 1 of 1 steps differ." in shown
