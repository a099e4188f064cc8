"""A step or a backend that harms its process costs its own candidate, and says why; the others go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import candidate, convert, finish, gone, project, start

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
HARMS = {
    "segfault": ("segfaults", "it reads the address 0"),
    "hang": ("hangs", "it sleeps past the step's time limit, or in the middle of a session"),
    "stuck": ("hangs", "it sleeps past the step's time limit, or in the middle of a session"),
    "glutton": ("takes too much memory", "it fills 2 GiB, and the step's limit is 500 MiB"),
    "closed": ("closes its pipes", "it closes every file descriptor, and sleeps"),
    "loud": ("prints a gigabyte", "half to standard output and half to standard error; then it fails"),
    "garbage": ("writes garbage to every pipe", "things that are no messages of a worker, and nearly are"),
    "orphan": ("ends without a word", "it exits, and leaves a child that holds its pipes"),
}
STEPS = ["segfault", "hang", "glutton", "closed", "loud", "garbage", "orphan"]
BACKENDS = ["segfault", "stuck", "glutton", "refuse", "closed", "loud", "garbage", "orphan"]


def harmful(name):
    """A parameter, a row of the table of faults where it does harm."""
    fault, how = HARMS.get(name, ("", ""))
    outcome = f"its candidate fails and the others are measured: “{REASONS[name]}”"
    return pytest.param(name, marks=[pytest.mark.fault(f"a step or backend that {fault}", how, outcome)] * bool(how))


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Two runs at once, one with steps that fail and one with backends that do: their documents, and a cache each."""
    base = tmp_path_factory.mktemp("bad")
    recipes = {"steps": BAD_STEPS, "backends": BAD_BACKENDS}
    running = {kind: start(project(base / kind, recipe), base / f"{kind}-cache") for kind, recipe in recipes.items()}
    found = {kind: finish(process) for kind, process in running.items()}
    assert all(gone(base / f"{kind}-cache", 2) for kind in recipes)
    return found


@pytest.mark.parametrize("name", [harmful(name) for name in STEPS])
def test_a_step_that_fails_costs_its_candidate_alone_and_says_why(bad, name):
    row = candidate(bad["steps"], f"{name}-onnxruntime")
    assert row["status"] == "failed"
    assert REASONS[name] in row["error"]["message"]
    assert (Path(bad["steps"]["run"]) / row["log"]).is_file()


@pytest.mark.parametrize("name", [harmful(name) for name in BACKENDS])
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
