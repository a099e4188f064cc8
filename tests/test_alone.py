"""What is measured of one artifact by itself: its batch curve, its starts, and how it does under sustained load."""

from __future__ import annotations

import json

import linear
import pytest

from edgeopt.__main__ import main
from edgeopt.kit import alone
from edgeopt.measurement import Block
from edgeopt.measuring import alone as jobs
from edgeopt.profile import BatchCurve, BatchPoint, Sustained, Window
from edgeopt.samples import write_samples
from edgeopt.worker import call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone")
    (path / "model").mkdir()
    linear.save_onnx(path / "model" / "model.onnx")
    (path / "samples").mkdir()
    write_samples(path / "samples", {"x": linear.RAW}, None, linear.PREPROCESS)
    return path


def arguments(folder, batch="batch", **changes):
    return {
        "backend": "onnxruntime",
        "main": str(folder / "model" / "model.onnx"),
        "runtime": {},
        "threads": 1,
        "inputs": [{"name": "x", "shape": [batch, linear.FEATURES], "dtype": "float32"}],
        "samples": str(folder / "samples"),
        "feeds": 4,
        "warm_up_ns": 10_000_000,
        "block_ns": 5_000_000,
        **changes,
    }


def in_worker(folder):
    return lambda function, args: call(function, args, log=folder / "log")


def test_a_batch_curve_has_a_point_for_each_size_with_raw_samples(folder):
    curve = alone.batch_curve(arguments(folder), (8, 1, 100), in_worker(folder))
    assert [point.batch for point in curve.points] == [1, 8, 100], "100 is more than there are samples"
    assert curve.ended is None
    assert all(len(point.rounds) == jobs.ROUNDS for point in curve.points)
    assert curve.offline.batch == 100, "a batch of a model that costs next to nothing costs hardly more than a sample"
    assert BatchCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve


def test_an_artifact_of_a_fixed_batch_says_so(folder):
    curve = alone.batch_curve(arguments(folder, batch=1), (1, 2), in_worker(folder))
    assert (curve.points, curve.offline) == ((), None)
    assert curve.ended == "the artifact takes batches of 1, and no others"


def test_a_batch_that_memory_has_no_room_for_ends_the_curve(folder, monkeypatch):
    little = jobs.machine.MachineState(0, available_memory_bytes=-1)
    monkeypatch.setattr(jobs.machine, "state", lambda: little)

    class Quiet:
        def progress(self, *_): ...

    told = jobs.batches({**arguments(folder), "batches": [1, 2, 4]}, Quiet())
    assert [point["batch"] for point in told["points"]] == [1]
    assert told["ended"].startswith("batches of 2 would take about")


def block(ns):
    return Block((ns,) * 30, (False,) * 30, 30 * ns, 30 * ns)


def test_offline_is_the_smallest_batch_within_3_percent_of_the_most_per_second():
    times = {1: 1_000_000, 2: 1_500_000, 4: 2_950_000, 8: 7_000_000}
    curve = BatchCurve(tuple(BatchPoint(batch, (block(ns),) * 6) for batch, ns in times.items()), None)
    assert curve.offline.batch == 2
    assert curve.summary()["offline_batch"] == 2


def test_starts_are_of_fresh_processes_in_turn(folder):
    asked = []

    def counted(function, args):
        asked.append(args["drop"])
        return in_worker(folder)(function, args)

    model = folder / "model" / "model.onnx"
    found = alone.starts(arguments(folder), [model], counted)
    assert asked == [[str(model)], []] * alone.STARTS
    assert len(found.warm) == alone.STARTS
    assert all(one.load_ns > 0 and one.first_inference_ns > 0 for one in found.warm)
    assert bool(found.dropped) != bool(found.reason)


@pytest.mark.parametrize(("read", "reason"), [(None, "not told here"), (10, "stay in the page cache"), (900, None)])
def test_that_the_files_came_from_the_disk_is_believed_when_the_system_says_so(read, reason, tmp_path):
    (tmp_path / "model").write_bytes(bytes(1000))
    found = alone.starts(
        {}, [tmp_path / "model"], lambda *_: {"load_ns": 5, "first_inference_ns": 6, "read_bytes": read}
    )
    assert (reason in found.reason) if reason else (found.reason is None)
    assert len(found.dropped) == (0 if reason else alone.STARTS)
    assert found.to_json()["warm"]["load_ns"] == 5


def load(slower_by):
    """Five minutes of windows of a second; over the last minutes it slows down."""
    p50s = [1_000_000 * (1 + slower_by * max(0, second - 120) / 180) + 1000 * (second % 7) for second in range(300)]
    windows = (Window(second * 10**9, 900, 890, int(p50), 2 * int(p50)) for second, p50 in enumerate(p50s))
    return Sustained(tuple(windows), throttled=None, temperature_c=None)


def test_a_load_that_slows_down_is_seen_and_one_that_holds_is_not():
    assert load(0.0).comparison.verdict == "tie"
    slowed = load(0.3).comparison
    assert slowed.verdict == "slower"
    assert slowed.speedup.value == pytest.approx(1 / 1.25, rel=0.03)


def test_sustained_load_is_measured_back_to_back(folder):
    found = alone.sustained(arguments(folder), 700_000_000, in_worker(folder))
    ends = [window.at_ns for window in found.windows]
    assert ends == sorted(ends) and len(ends) >= 3
    assert sum(window.calls for window in found.windows) > 100
    assert Sustained.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole conversion of the linear model."""
    path = tmp_path_factory.mktemp("convert")
    linear.save_onnx(path / "model.onnx")
    linear.save_data(path / "data.npz")
    (path / "r.yaml").write_text(
        "model: model.onnx\ndata: {validation: data.npz}\npreprocess: {mean: 128, std: 64}\n"
        "steps: [{compile: [onnxruntime]}]\nmeasure: {rounds: 6, block: 5 ms, batches: [1, 4]}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEOPT_CACHE", str(path / "cache"))
        assert main(["convert", str(path / "r.yaml"), "-o", str(path / "run"), "--json"]) == 0
    return path / "run"


def test_the_winner_s_curve_is_in_its_bundle_and_its_raw_samples_in_the_run(run):
    kept = json.loads((run / "best" / "edgeopt.json").read_text())["measurements"][0]["batch_curve"]
    assert [point["batch"] for point in kept["points"]] == [1, 4]
    assert "rounds" not in kept
    raw = BatchCurve.from_json(json.loads((run / "batch_curve.json").read_text()))
    assert json.loads(json.dumps(raw.summary())) == kept
