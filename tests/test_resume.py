"""Runs that are broken off, done again, done twice at once or done elsewhere end in the same artifacts."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import time
from pathlib import Path

import command
import pytest
from command import (
    ONE_CANDIDATE,
    built,
    convert,
    digests,
    edgeopt,
    finish,
    gone,
    leftovers,
    project,
    run_json,
    start,
)

STEPS = {
    "import/compile=onnxruntime",
    "import/compile=openvino",
    "import/quantize=int8",
    "import/quantize=int8/compile=onnxruntime",
    "import/quantize=int8/compile=openvino",
}
MOST_MEMORY_KB = 150_000
HELPER = "def channels():\n    return 4\n"
FACTORY = """
import torch
from sizes import channels

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, channels(), 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(channels(), 5),
    )
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing disturbed: (its folder, its cache, its document)."""
    base = tmp_path_factory.mktemp("reference")
    folder, cache = project(base / "project"), base / "cache"
    return folder, cache, convert(folder, cache, peak=base / "peak")


@pytest.fixture
def copy(reference, tmp_path):
    """The same folder and cache, to change at will."""
    folder, cache, _ = reference
    shutil.copytree(folder, tmp_path / "project")
    shutil.rmtree(tmp_path / "project" / "runs")
    shutil.copytree(cache, tmp_path / "cache")
    return tmp_path / "project", tmp_path / "cache"


def test_a_first_run_builds_everything(reference):
    _, cache, document = reference
    assert built(document) == STEPS
    assert document["reused"]["measurements"] is False
    assert gone(cache, 1)


def test_the_run_says_what_it_was_made_of(reference):
    folder, _, document = reference
    told = run_json(document)
    model = next(folder.glob("*.onnx"))
    assert told["import"]["model"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert told["import"]["tools"]["onnx"]
    assert all(len(source["digest"]) == 64 and source["count"] for source in told["data"].values())


def test_the_command_itself_needs_little_memory(reference, copy, tmp_path):
    """The peak of the process that the user starts, not of its workers: first run and rerun."""
    first = reference[1].parent / "peak"
    convert(*copy, peak=tmp_path / "peak")
    assert int(first.read_text()) < MOST_MEMORY_KB
    assert int((tmp_path / "peak").read_text()) < MOST_MEMORY_KB


def test_a_rerun_reuses_every_step_and_the_measurements(reference, copy):
    found = convert(*copy)
    assert found["reused"] == {"steps": found["reused"]["of"], "of": found["reused"]["of"], "measurements": True}
    assert digests(found) == digests(reference[2])
    assert [c["latency_ns"] for c in found["candidates"]] == [c["latency_ns"] for c in reference[2]["candidates"]]


def test_remeasure_measures_again_and_builds_nothing(reference, copy):
    found = convert(*copy, "--remeasure")
    assert found["reused"]["measurements"] is False
    assert not built(found)
    assert [c["latency_ns"] for c in found["candidates"]] != [c["latency_ns"] for c in reference[2]["candidates"]]
    assert convert(*copy)["reused"]["measurements"] is True


@pytest.mark.parametrize("moment", ["import", "quality", "measure"])
def test_ctrl_c_ends_at_once_and_leaves_nothing(tmp_path, moment):
    recipe = ONE_CANDIDATE.replace("rounds: 3, block: 5 ms", "rounds: 50, block: 1 s")
    folder, cache = project(tmp_path / "p", recipe), tmp_path / "c"
    process = start(folder, cache)
    assert command.wait_for(lambda: any((cache / "logs").glob(f"*-{moment}*")) and command.workers(cache))
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - pressed < 2
    assert process.returncode == 130
    assert told == "Interrupted. The same command goes on from the steps that are finished.\n"
    assert gone(cache, 0)
    assert not list(leftovers(folder, cache))
    assert not (folder / "runs").exists()


def test_ctrl_c_ends_a_run_that_waits_for_another_one(tmp_path):
    recipe = ONE_CANDIDATE.replace("steps:", "steps:\n  - trouble: hang")
    folder, cache = project(tmp_path / "p", recipe), tmp_path / "c"
    first = start(folder, cache)
    assert command.wait_for(lambda: any((cache / "logs").glob("*trouble*")))
    second = start(folder, cache)
    assert command.wait_for(lambda: len(list((folder / "runs").glob(".*.partial"))) == 2)
    time.sleep(1)
    for process in (second, first):
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert time.monotonic() - pressed < 2
        assert process.returncode == 130
    assert not list(leftovers(folder, cache))


def test_what_dead_runs_left_is_swept(copy):
    folder, cache = copy
    (folder / "runs" / ".other-1.partial" / "best").mkdir(parents=True)
    (folder / "runs" / ".other-1.partial" / "run.json").write_text("")
    (folder / "runs" / ".empty-1.partial").mkdir()
    (folder / "runs" / ".recipe-1.partial").mkdir()
    (folder / "runs" / ".recipe-1.partial" / "old").write_text("")
    (cache / "partial" / ("0" * 64) / "files").mkdir(parents=True)
    (cache / "partial" / f"{'1' * 64}.1.2").mkdir()
    old = cache / "logs" / "1-old.log"
    old.write_text("")
    os.utime(old, (0, 0))
    found = convert(folder, cache)
    assert not list(leftovers(folder, cache))
    assert not old.exists()
    assert Path(found["run"]).name == "recipe-1"
    assert not (Path(found["run"]) / "old").exists()


def test_what_living_runs_hold_is_not_swept(copy):
    folder, cache = copy
    held = folder / "runs" / ".recipe-1.partial" / "run.json"
    held.parent.mkdir(parents=True)
    building = cache / "partial" / ("0" * 64)
    building.mkdir()
    with open(held, "a") as run, open(cache / "locks" / building.name, "a") as lock:
        fcntl.flock(run, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = convert(folder, cache)
        refused = start(folder, cache, "--output", "runs/recipe-1")
        _, told = refused.communicate(timeout=60)
    assert held.is_file()
    assert building.is_dir()
    assert Path(found["run"]).name == "recipe-2"
    assert refused.returncode == 2
    assert "another run is writing" in told


def test_two_runs_at_once_build_each_step_once_and_the_same_bytes_as_elsewhere(reference, tmp_path):
    folder, cache = project(tmp_path / "project"), tmp_path / "cache"
    both = [start(folder, cache), start(folder, cache)]
    one, other = (finish(process) for process in both)
    assert built(one) | built(other) == STEPS
    assert not built(one) & built(other)
    assert digests(one) == digests(other) == digests(reference[2])
    assert {Path(document["run"]).name for document in (one, other)} == {"recipe-1", "recipe-2"}


def explained(folder: Path, cache: Path) -> dict[str, dict]:
    return {step["id"]: step for step in edgeopt(folder, cache, "cache", "explain", "recipe.yaml")["steps"]}


def test_one_byte_of_calibration_data_rebuilds_what_it_calibrates(copy):
    folder, cache = copy
    path = folder / "calibration.npz"
    content = bytearray(path.read_bytes())
    where = content.index(b"\x93NUMPY") + 5000  # inside the array; the archive's checksum is now wrong
    content[where] ^= 1
    path.write_bytes(content)
    told = explained(folder, cache)
    assert [d["what"] for d in told["data:calibration"]["differences"]] == ["location"]
    assert told["data:validation"]["reused"]
    command.write_samples(path, 3)
    (folder / "recipe.yaml").write_text(command.RECIPE.replace(", openvino]", "]"))
    found = convert(folder, cache)
    assert built(found) == {step for step in digests(found) if "int8" in step}


def test_an_option_rebuilds_what_comes_after_it(copy):
    folder, cache = copy
    recipe = command.RECIPE.replace("int8]", "{int8: {bias_correction: fast}}]")
    (folder / "recipe.yaml").write_text(recipe)
    told = explained(folder, cache)
    changed = "import/quantize=int8-fast"
    assert told[changed]["differences"] == [{"what": "options.bias_correction", "stored": "full", "now": "fast"}]
    assert {step for step, judged in told.items() if not judged["reused"]} == {
        changed,
        f"{changed}/compile=onnxruntime",
        f"{changed}/compile=openvino",
    }


def test_the_source_files_of_a_factory_belong_to_its_model(tmp_path):
    """The factory's own file, a module that it imports, and the same factory beside another module of that name."""
    recipe = ONE_CANDIDATE.replace("model.onnx", "model.py:build")
    folder, cache = project(tmp_path / "p", recipe), tmp_path / "cache"
    (folder / "sizes.py").write_text(HELPER)
    (folder / "model.py").write_text(FACTORY)
    convert(folder, cache)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere, ignore=shutil.ignore_patterns("runs"))
    (elsewhere / "sizes.py").write_text(HELPER.replace("4", "8"))
    assert explained(folder, cache)["import"]["reused"]
    assert not explained(elsewhere, cache)["import"]["reused"]

    (folder / "sizes.py").write_text(HELPER.replace("4", "6"))
    told = explained(folder, cache)["import"]
    assert [d["what"] for d in told["differences"]] == ["sources.1:sizes.py"]

    (folder / "sizes.py").write_text(HELPER)
    (folder / "model.py").write_text(FACTORY.replace("manual_seed(0)", "manual_seed(1)"))
    told = explained(folder, cache)["import"]
    assert [d["what"] for d in told["differences"]] == ["model"]


def test_the_source_files_of_a_data_function_belong_to_its_samples(tmp_path):
    recipe = ONE_CANDIDATE.replace("validation.npz", "data.py:samples")
    folder, cache = project(tmp_path / "p", recipe), tmp_path / "cache"
    (folder / "sizes.py").write_text(HELPER)
    (folder / "data.py").write_text(
        "import numpy\nfrom sizes import channels\n\n"
        "def samples():\n    return {'x': numpy.full((60, 3, 16, 16), channels(), 'float32')}\n"
    )
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    (elsewhere / "sizes.py").write_text(HELPER.replace("4", "8"))

    def reused(where: Path) -> int:
        return convert(where, cache)["reused"]["steps"]

    first = convert(folder, cache)["reused"]
    assert first["steps"] == 0
    assert reused(elsewhere) == first["of"] - 3  # all but data, import (checked on the samples) and quality
    assert reused(folder) == first["of"]
    (folder / "sizes.py").write_text(HELPER.replace("4", "6"))
    assert reused(folder) == first["of"] - 3
    (folder / "sizes.py").write_text(HELPER)
    assert reused(folder) == first["of"]


def test_a_torch_model_gives_the_same_bytes_elsewhere_in_tflite_too(tmp_path):
    """The slowest test here: two whole conversions at once, in two folders and two caches."""
    recipe = command.RECIPE.replace("model.onnx", "model.py:build").replace("[onnxruntime, openvino]", "tflite")
    running = []
    for name in ("one", "other"):
        folder = project(tmp_path / name, recipe)
        (folder / "sizes.py").write_text(HELPER)
        (folder / "model.py").write_text(FACTORY)
        running.append(start(folder, tmp_path / f"cache of {name}"))
    one, other = (finish(process) for process in running)
    assert len(digests(one)) == 3
    assert digests(one) == digests(other)
    assert all(c["status"] != "failed" for c in one["candidates"])
