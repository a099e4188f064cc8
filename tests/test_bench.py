"""Measuring sessions on a real runtime, with candidates that behave and candidates that do not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.artifact import TensorSpec
from edgeopt.backends import BoundRun
from edgeopt.caveats import caveats
from edgeopt.conditions import Disturbance
from edgeopt.errors import InputError, Interrupted, StageError, UnsupportedOperator, WorkerCrashed
from edgeopt.measuring import machine
from edgeopt.measuring.candidate import read_feeds, run_block, warm_up
from edgeopt.measuring.session import Candidate, SessionOptions, run_session
from edgeopt.samples import Preprocess, write_samples
from edgeopt.worker import Limits, Worker

PLUGIN = Path(__file__).parent / "plugin"
SPEC = (TensorSpec("x", ("batch", 64), "float32"),)


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    """Another package's backends, found by workers through its entry points."""
    monkeypatch.setenv("PYTHONPATH", str(PLUGIN))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """relu(x @ w) models: small.onnx with one layer, large.onnx with 40 wider ones."""
    folder = tmp_path_factory.mktemp("models")
    save_mlp(folder / "small.onnx", [64, 10])
    save_mlp(folder / "large.onnx", [64] + [512] * 40 + [10])
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    raw = np.random.default_rng(0).integers(0, 256, (20, 64)).astype(np.uint8)
    write_samples(folder, {"x": raw}, None, Preprocess((128.0,), (64.0,)))
    return folder


def save_mlp(path, widths):
    draw = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for index, (rows, columns) in enumerate(pairwise(widths)):
        weight = (draw.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        out = "y" if index == len(widths) - 2 else f"h{index}"
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [out]))
        last = out
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", widths[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", widths[-1]])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def candidate(models, name, backend="onnxruntime", main="small.onnx", **changes):
    limits = Limits(seconds=20, memory_bytes=1 << 30)
    return replace(Candidate(name, name * 8, backend, models, main, SPEC, limits=limits), **changes)


def session(candidates, samples, logs, on_event=None, stopping=lambda: False, **options):
    chosen = {"rounds": 8, "most_rounds": 8, "block_ns": 3_000_000, "warm_up_ns": 300_000_000, **options}
    return run_session(
        candidates,
        SessionOptions(samples, **chosen),
        logs,
        on_event,
        machine=machine.fingerprint(),
        observe=machine.state,
        stopping=stopping,
    )


def is_alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.fixture(scope="module")
def measured(models, samples, tmp_path_factory):
    """One session of a small and a large model."""
    return session(
        [candidate(models, "large", main="large.onnx"), candidate(models, "small")],
        samples,
        tmp_path_factory.mktemp("logs"),
    )


def test_the_larger_model_is_the_slower(measured):
    speedup = measured.outcomes["small"].speedup
    assert speedup.speedup.value > 3
    assert measured.outcomes["large"].speedup is None


def test_a_measurement_holds_what_was_measured(measured):
    found = measured.outcomes["large"].measurement
    assert len(found.rounds) == 8
    assert all(len(block.latencies_ns) == len(block.switched) >= 5 for block in found.rounds)
    assert found.load_ns > 0
    assert found.first_inference_ns > 0
    assert found.warm_up_calls > 8
    assert 0 < found.clock_overhead_ns < found.call_overhead_ns < min(found.rounds[0].latencies_ns)
    assert found.runtime_version
    assert found.machine.cores >= 1
    assert found.throughput_per_s < 1e9 / min(ns for block in found.rounds for ns in block.latencies_ns)
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_is_of_the_model_alone(measured):
    weights_bytes = 40 * 512 * 512 * 4
    large = measured.outcomes["large"].measurement.peak_memory_bytes
    small = measured.outcomes["small"].measurement.peak_memory_bytes
    assert weights_bytes < large < 6 * weights_bytes
    assert small < large - weights_bytes / 2


def test_the_baseline_has_a_twin(measured):
    (group,) = measured.groups
    assert group.reference == "large"
    assert 0 < group.twin.rounds <= len(group.rounds["large"])
    assert group.twin.low <= group.twin.value <= group.twin.high
    assert set(group.rounds) == {"large", "small"}


def test_a_disturbed_round_is_kept_and_repeated(models, samples, tmp_path):
    """The machine is said to throttle in each of the first three rounds."""
    states = iter(range(10**6))

    def observe(pids):
        return replace(machine.state(pids), throttled=min(next(states), 3))

    found = (
        run_session(
            [candidate(models, "one")],
            SessionOptions(samples, rounds=6, block_ns=3_000_000, warm_up_ns=300_000_000),
            tmp_path,
            machine=machine.fingerprint(),
            observe=observe,
        )
        .outcomes["one"]
        .measurement
    )
    disturbed = [block.disturbed for block in found.rounds]
    assert disturbed[:3] == [("throttled",)] * 3
    assert not any(disturbed[3:])
    assert 9 <= len(found.rounds) <= 12
    assert all(block.latencies_ns and not block.clean_ns for block in found.rounds[:3])
    assert any("in 3 of" in warning and "slowed itself down" in warning for warning in found.warnings)


def test_candidates_that_fail_are_rows_and_the_others_go_on(models, samples, tmp_path):
    events = []
    found = session(
        [
            candidate(models, "good"),
            candidate(models, "crash", "segfault"),
            candidate(models, "stuck", "hang", limits=Limits(seconds=1.0)),
            candidate(models, "greedy", "glutton", limits=Limits(seconds=20, memory_bytes=400 << 20)),
            candidate(models, "lacking", "refuse"),
            candidate(models, "late", "late-hang", limits=Limits(seconds=1.0)),
            candidate(models, "absent", main="absent.onnx"),
            candidate(models, "other"),
        ],
        samples,
        tmp_path,
        lambda kind, name, fraction: events.append((kind, name, fraction)),
    )
    errors = {name: outcome.error for name, outcome in found.outcomes.items()}
    assert errors["good"] is None
    assert errors["other"] is None
    assert "SIGSEGV" in errors["crash"].message
    assert "no sign of life for 1 s" in errors["stuck"].message
    assert "more than its limit of 400 MiB" in errors["greedy"].message
    assert isinstance(errors["lacking"], UnsupportedOperator)
    assert isinstance(errors["late"], WorkerCrashed)
    assert isinstance(errors["absent"], StageError)
    assert found.outcomes["late"].measurement is None
    assert len(found.outcomes["other"].measurement.rounds) == 8
    assert found.outcomes["other"].speedup is not None
    assert {name for kind, name, _ in events if kind == "failed"} == set(errors) - {"good", "other"}
    fractions = [fraction for kind, _, fraction in events if kind == "round"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    assert "Fatal Python error" in (tmp_path / "crash.log").read_text()


def test_the_others_are_measured_where_the_baseline_fails(models, samples, tmp_path):
    found = session(
        [candidate(models, "base", "refuse"), candidate(models, "a"), candidate(models, "b")], samples, tmp_path
    )
    assert found.outcomes["base"].error is not None
    assert found.outcomes["a"].measurement is not None
    assert found.outcomes["b"].speedup is None
    assert found.groups[0].reference == "a"
    assert found.compare("a", "b") is not None


def test_every_group_has_the_baseline(models, samples, tmp_path):
    names = ["base", "a", "b", "c"]
    found = session([candidate(models, name) for name in names], samples, tmp_path, group=3, rounds=6)
    assert [set(group.rounds) for group in found.groups] == [{"base", "a", "b"}, {"base", "c"}]
    assert all(found.outcomes[name].speedup for name in names[1:])
    through_it = found.compare("a", "c")
    a, c = (found.outcomes[name].speedup.speedup.value for name in "ac")
    assert through_it is not None and through_it.speedup.value == pytest.approx(c / a)


def test_the_overhead_of_a_slow_candidate_shows(models, samples, tmp_path):
    found = session([candidate(models, "fast", "plain"), candidate(models, "slow", "slow")], samples, tmp_path)
    assert found.outcomes["slow"].measurement.latency.p50.value > 2_000_000
    assert found.outcomes["slow"].speedup.speedup.value < 0.5


def test_samples_that_do_not_fit_are_an_error_of_the_candidate(models, samples, tmp_path):
    wrong = candidate(models, "wrong", inputs=(TensorSpec("x", ("batch", 32), "float32"),))
    error = session([wrong, candidate(models, "right")], samples, tmp_path).outcomes["wrong"].error
    assert isinstance(error, InputError)
    assert "[20, 64]" in error.message or "[1, 64]" in error.message


def test_stopping_leaves_no_process_behind(models, samples, tmp_path):
    before = children()
    with pytest.raises(Interrupted):
        session([candidate(models, "a"), candidate(models, "b")], samples, tmp_path, stopping=lambda: True)
    assert children() == before


def test_ctrl_c_leaves_no_process_behind(models, samples, tmp_path):
    def interrupt(kind, name, fraction):
        if kind == "round":
            raise KeyboardInterrupt

    before = children()
    with pytest.raises(KeyboardInterrupt):
        session([candidate(models, "a"), candidate(models, "b")], samples, tmp_path, interrupt)
    assert children() == before


def test_workers_die_with_a_coordinator_that_is_killed(models, samples, tmp_path):
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_bench as t
logs = Path({str(tmp_path)!r})
tell = lambda kind, name, fraction: print(kind, flush=True)
t.session([t.candidate(Path({str(models)!r}), "a", "late-hang")], Path({str(samples)!r}), logs, tell)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    watch = threading.Timer(60, parent.kill)
    watch.start()
    try:
        assert any(line.startswith("ready") for line in parent.stdout)
        orphans = children(parent.pid)
        assert orphans
    finally:
        watch.cancel()
        parent.kill()
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(is_alive, orphans)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, orphans))


def children(pid="self"):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for task in tasks for child in task.read_text().split())


def test_what_makes_numbers_worth_less_is_said(measured):
    calm = measured.outcomes["large"].measurement
    crowded = replace(calm, steady=False, threads=64, machine=replace(calm.machine, cores=2, governor="powersave"))
    told = "; ".join(caveats(replace(crowded, conditions=Disturbance(pressure=0.6, steal=0.2))))
    for part in ("not settled", "60% of the time", "took 20%", "powersave", "64 threads on 2"):
        assert part in told


def test_ids_must_be_unique(models, samples, tmp_path):
    with pytest.raises(InputError, match="id of its own"):
        session([candidate(models, "a"), candidate(models, "a")], samples, tmp_path)


def test_the_baseline_must_be_a_candidate(models, samples, tmp_path):
    with pytest.raises(InputError, match="baseline 'z'"):
        session([candidate(models, "a")], samples, tmp_path, baseline="z")


def test_feeds_are_real_samples_preprocessed(samples):
    feeds = read_feeds(samples, SPEC, 8)
    assert len(feeds) == 8
    assert feeds[0]["x"].shape == (1, 64)
    assert feeds[0]["x"].dtype == np.float32
    assert len({feed["x"].tobytes() for feed in feeds}) == 8


def test_a_fixed_batch_is_filled_with_samples(samples):
    feeds = read_feeds(samples, (TensorSpec("x", (4, 64), "float32"),), 8)
    assert {feed["x"].shape for feed in feeds} == {(4, 64)}


def test_warm_up_gives_up_on_latencies_that_never_settle():
    naps = iter(range(1, 1000))
    bound = BoundRun(lambda feeds: time.sleep(0.0005 * 1.5 ** next(naps)), {})
    calls, steady = warm_up(bound, [{}], 50_000_000)
    assert not steady
    assert calls >= 5


def test_a_call_finds_the_next_sample_in_place_and_its_copying_is_not_timed():
    class Slowly(BoundRun):
        def fill(self, feeds):
            time.sleep(0.003)
            super().fill(feeds)

    seen = []
    block, turn = run_block(Slowly(seen.append, 0), [1, 2, 3], 1, 0, 5)
    assert seen == [0, 2, 3, 1, 2, 3]
    assert max(block["latencies_ns"]) < 3_000_000 < block["wall_ns"] / 5
    assert run_block(Slowly(seen.append, 0), [1, 2, 3], turn, 0, 1)[1] == 7


def test_warm_up_ends_when_latencies_have_settled():
    _, steady = warm_up(BoundRun(lambda feeds: time.sleep(0.002), {}), [{}], 5_000_000_000)
    assert steady


def test_the_machine_is_read():
    found = machine.fingerprint()
    assert found.cores >= 1
    assert found.arch
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert not found.differences(machine.fingerprint())


def test_cpu_models_of_arm_and_x86():
    assert machine.cpu_model("processor\t: 0\nmodel name\t: Intel(R) N100\n") == "Intel(R) N100"
    pi = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\nModel\t: Raspberry Pi 5 Model B Rev 1.0\n"
    assert machine.cpu_model(pi) == "Raspberry Pi 5 Model B Rev 1.0, Arm implementer 0x41 part 0xd0b"
    assert machine.cpu_model("") is None


def test_counters_of_the_kernel():
    assert machine.pressure_us("some avg10=0.00 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0 total=9") == 1234
    assert machine.pressure_us("") is None
    assert machine.cpu_ticks("cpu  10 20 30 40 50 60 70 80 5 5\ncpu0 1 2") == (80, 190, 360)
    assert machine.cpu_ticks("") is None
    assert machine.process_ticks("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20") == 42
    assert machine.process_ticks("") is None
    assert machine.swapped_pages("nr_free 3\npswpin 4\npswpout 5\n") == 9


def test_the_device_half_needs_the_standard_library_and_numpy_alone(models, samples, tmp_path):
    code = """
import sys, json
import edgeopt.measurement
standard = {name.partition(".")[0] for name in sys.modules}
assert "numpy" not in standard
import edgeopt.measuring.session, edgeopt.measuring.machine
edgeopt.measuring.machine.fingerprint(), edgeopt.measuring.machine.state()
assert "numpy" not in sys.modules, "the coordinator must not need numpy"
import edgeopt.measuring.candidate, edgeopt.measuring.quality, edgeopt.bundle, edgeopt.samples, edgeopt.worker
edgeopt.measuring.candidate.read_feeds
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, env=bare())
    assert done.returncode == 0, done.stderr
    strangers = set(json.loads(done.stdout)) - set(sys.stdlib_module_names) - {"edgeopt", "__main__", "numpy"}
    assert not strangers


def test_a_measurement_imports_the_runtime_and_numpy_alone(models, samples, tmp_path):
    args = {"backend": "numpy", "main": "", "runtime": {}, "threads": 1, "inputs": [SPEC[0].to_json()]}
    args |= {"samples": str(samples), "feeds": 4, "warm_up_ns": 10_000_000}
    with Worker("edgeopt_test_backends:measure_and_tell", args, log=tmp_path / "log") as worker:
        worker.receive()
        worker.send({"do": "stop"})
        imported = worker.result()["modules"]
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    expected = {"edgeopt", "numpy", "edgeopt_test_backends", *before.stdout.split()}
    assert "numpy" in imported
    assert not set(imported) - set(sys.stdlib_module_names) - {name.partition(".")[0] for name in expected}


def bare():
    """An environment in which only the standard library and edgeopt can be imported."""
    return {"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": "/usr/bin:/bin"}
