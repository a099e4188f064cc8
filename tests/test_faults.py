"""What goes wrong in a worker, on the disk or in the cache costs as little as it can, and is told."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import command
import pytest
from command import ONE_CANDIDATE, candidate, convert, finish, gone, leftovers, project, start

LIMITS = """
measure: {rounds: 3, block: 5 ms}
step time limit: 8 s
step memory limit: 500 MiB
"""
BAD_STEPS = f"""
model: model.onnx
data: {{validation: validation.npz}}
steps:
  - trouble: [none, segfault, hang, glutton, closed, loud, garbage, orphan]
  - compile: onnxruntime
{LIMITS}"""
BAD_BACKENDS = f"""
model: model.onnx
data: {{validation: validation.npz}}
steps:
  - compile: [onnxruntime, segfault, stuck, glutton, refuse, closed, loud, garbage, orphan]
{LIMITS}"""
REASONS = {
    "segfault": "the worker process was killed by SIGSEGV",
    "hang": "the worker process ran past its limit of 8 s and was stopped",
    "stuck": "the worker process gave no sign of life for 8 s and was stopped",
    "glutton": "more than its limit of 500 MiB, and was stopped",
    "refuse": "no kernel for the operator GridSample",
    "closed": "the worker process closed its output",
    "loud": "hoarse",
    "garbage": "the worker process sent something other than its messages",
    "orphan": "the worker process ended with exit code 3 and no result",
}
STEPS = ["segfault", "hang", "glutton", "closed", "loud", "garbage", "orphan"]
BACKENDS = ["segfault", "stuck", "glutton", "refuse", "closed", "loud", "garbage", "orphan"]


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Two runs at once, one with steps that fail and one with backends that do: their documents, and a cache each."""
    base = tmp_path_factory.mktemp("bad")
    recipes = {"steps": BAD_STEPS, "backends": BAD_BACKENDS}
    running = {kind: start(project(base / kind, recipe), base / f"{kind}-cache") for kind, recipe in recipes.items()}
    found = {kind: finish(process) for kind, process in running.items()}
    assert all(gone(base / f"{kind}-cache", 2) for kind in recipes)
    return found


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_fails_costs_its_candidate_alone_and_says_why(bad, name):
    row = candidate(bad["steps"], f"{name}-onnxruntime")
    assert row["status"] == "failed"
    assert REASONS[name] in row["error"]["message"]
    assert (Path(bad["steps"]["run"]) / row["log"]).is_file()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_that_fails_costs_its_candidate_alone_and_says_why(bad, name):
    row = candidate(bad["backends"], name)
    assert row["status"] == "failed"
    assert REASONS[name] in row["error"]["message"]
    assert (Path(bad["backends"]["run"]) / row["log"]).is_file()


@pytest.mark.parametrize("kind", ["steps", "backends"])
def test_beside_failures_the_others_go_on(bad, kind):
    assert bad[kind]["winner"] == "onnxruntime"
    assert candidate(bad[kind], "onnxruntime")["latency_ns"]["p50"]["value"] > 0


@pytest.mark.parametrize(("kind", "name"), [("steps", "segfault-onnxruntime"), ("backends", "segfault")])
def test_the_log_of_a_segfault_holds_the_line_that_led_to_it(bad, kind, name):
    log = Path(bad[kind]["run"]) / candidate(bad[kind], name)["log"]
    assert "edgeopt_test_trouble.py" in log.read_text() or "edgeopt_test_backends.py" in log.read_text()


@pytest.mark.parametrize(("kind", "name"), [("steps", "loud-onnxruntime"), ("backends", "loud")])
def test_of_a_gigabyte_of_output_the_beginning_and_the_end_are_kept(bad, kind, name):
    log = (Path(bad[kind]["run"]) / candidate(bad[kind], name)["log"]).read_bytes()
    assert len(log) < 20 << 20
    assert log.startswith(b"all work and no play")
    assert b"MiB left out" in log
    assert log.rstrip().endswith(b"StageError: hoarse")


def test_a_failed_baseline_is_replaced_and_not_tried_again(tmp_path):
    recipe = "model: model.onnx\ndata: {validation: validation.npz}\nsteps: [compile: [segfault, plain]]" + LIMITS
    found = convert(project(tmp_path / "p", recipe), tmp_path / "cache")
    assert found["winner"] == "plain"
    log = Path(found["run"]) / candidate(found, "segfault")["log"]
    assert log.read_text().count("Fatal Python error") == 1


def test_where_every_candidate_fails_the_evidence_is_written_and_the_code_is_4(tmp_path):
    recipe = "model: model.onnx\ndata: {validation: validation.npz}\nsteps: [compile: segfault]" + LIMITS
    found = convert(project(tmp_path / "p", recipe), tmp_path / "cache", code=4)
    assert found["winner"] is None
    assert (Path(found["run"]) / "choice.json").is_file()


def test_an_unknown_stage_or_compiler_suggests_those_of_other_packages(tmp_path):
    recipe = "model: model.onnx\ndata: {validation: validation.npz}\nsteps: [troubel: none, compile: plian]"
    process = start(project(tmp_path / "p", recipe), tmp_path / "cache")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "did you mean 'trouble'?" in told
    assert "did you mean 'plain'?" in told


def test_an_output_below_a_file_is_refused_before_anything_is_built(tmp_path):
    folder = project(tmp_path / "p", ONE_CANDIDATE)
    process = start(folder, tmp_path / "cache", "--output", "recipe.yaml/run")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "cannot be written: Not a directory" in told
    assert not (tmp_path / "cache").exists()


def test_a_cache_below_a_file_is_refused_and_nothing_is_left(tmp_path):
    folder = project(tmp_path / "p", ONE_CANDIDATE)
    process = start(folder, folder / "recipe.yaml" / "cache")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the cache cannot be written (Not a directory)" in told
    assert not (folder / "runs").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here, so none can be full")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, leave_bytes: int) -> None:
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - leave_bytes))


@pytest.mark.parametrize("free_kib", [0, 60, 200])
def test_a_full_disk_under_the_cache_is_the_users_to_mend(tmp_path, small_disk, free_kib):
    folder = project(tmp_path / "p", ONE_CANDIDATE)
    (small_disk / "cache").mkdir()
    fill(small_disk, free_kib << 10)
    process = start(folder, small_disk / "cache")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2, told
    assert "no space left" in told.lower()
    assert not (folder / "runs").exists()
    assert not list(leftovers(folder, small_disk / "cache"))


@pytest.mark.parametrize("free_kib", [32, 72])
def test_a_full_disk_under_the_run_leaves_nothing_there(tmp_path, small_disk, free_kib):
    folder = project(tmp_path / "p", ONE_CANDIDATE.replace("rounds: 3", "rounds: 99"))  # tens of KiB of raw latencies
    fill(small_disk, free_kib << 10)
    process = start(folder, tmp_path / "cache", "--output", str(small_disk / "runs" / "one"))
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2, told
    assert "no space left for the run" in told
    assert os.listdir(small_disk) == ["ballast"]


def damaged(entry: Path, kind: str) -> None:
    """Damage one entry of the store."""
    file = max((path for path in (entry / "files").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    if kind == "bit":
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    elif kind == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "gone":
        file.unlink()
    elif kind == "garbage":
        (entry / "entry.json").write_bytes(b"\xff\x00{[")
    elif kind == "list":
        (entry / "entry.json").write_text("[1, 2]")
    else:
        told = (entry / "entry.json").read_text()
        (entry / "entry.json").write_text(told.replace('"seconds": ', '"seconds": 1', 1))


def test_a_damaged_entry_is_noticed_dropped_and_built_again(tmp_path):
    """Each entry of a finished run is damaged in one way or another, and the next run makes what the first one made."""
    folder, cache = project(tmp_path / "p", ONE_CANDIDATE), tmp_path / "cache"
    first = convert(folder, cache)
    entries = sorted((cache / "entries").iterdir())
    for number, entry in enumerate(entries):
        damaged(entry, ["bit", "truncated", "gone", "garbage", "list", "digit"][number % 6])
    second = convert(folder, cache)
    assert command.digests(second) == command.digests(first)
    assert command.built(second) == set(command.digests(first))
    wanted = f"{len(entries)} cache entries were damaged, and built again"
    assert any(told.startswith(wanted) for told in second["warnings"])
    assert not any("damaged" in told for told in convert(folder, cache)["warnings"])


def test_a_damaged_hint_costs_a_build_and_no_more(tmp_path):
    folder, cache = (
        project(tmp_path / "p", ONE_CANDIDATE.replace("validation.npz", "data.py:samples")),
        tmp_path / "cache",
    )
    (folder / "data.py").write_text(
        "import numpy\n\ndef samples():\n    return {'x': numpy.ones((60, 3, 16, 16), 'float32')}\n"
    )
    first = convert(folder, cache)
    for hint in (cache / "hints").iterdir():
        hint.write_text('{"sources": 5}')
    assert command.digests(convert(folder, cache)) == command.digests(first)
