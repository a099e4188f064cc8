"""edgeopt bench: proof first, then accuracy and time, of bundles and bare files; and what it says of mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import linear
import numpy as np
import onnx
import processes
import pytest
from onnx import TensorProto, helper

from edgeopt.__main__ import main
from edgeopt.bundle import MANIFEST
from edgeopt.kit import comparison, measure, rows, table
from edgeopt.measurement import Block, Measurement
from edgeopt.samples import Preprocess

PLUGIN = Path(__file__).parent / "plugin"
QUICK = ("--quick", "--rounds", "6")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with bundles, a run, bare models and samples."""
    folder = tmp_path_factory.mktemp("bench")
    linear.bundle(folder / "best")
    linear.bundle(folder / "run" / "best")
    linear.bundle(folder / "wrong", wrong_by=0.5)
    linear.save_onnx(folder / "bare.onnx")
    linear.save_onnx(folder / "integers.onnx", dtype="int64")
    save_flat(folder / "flat.onnx")
    linear.save_data(folder / "data.npz")
    linear.save_data(folder / "unlabelled.npz", None)
    linear.save_data(folder / "mislabelled.npz", (linear.LABELS + 1) % linear.CLASSES)
    np.savez(folder / "narrow.npz", x=linear.RAW[:, :3])
    (folder / "text.onnx").write_text("This is a text.\n" * 40)
    (folder / "text.txt").write_text("nothing")
    (folder / "empty").mkdir()
    (folder / "lost").mkdir()
    (folder / "lost" / "run.json").write_text("{}")
    return folder


def save_flat(path):
    """One number a sample."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def edgeopt(here, monkeypatch, capsys):
    """The command line, in the folder."""

    def run(*args):
        monkeypatch.chdir(here)
        code = main([*args])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, json=json.loads(out) if "--json" in args else None)

    return run


@pytest.fixture(scope="module")
def measured(here):
    """A bundle, its bare file and a file without samples of its own, measured together on labelled data."""
    request = measure.Request(
        (str(here / "best"), str(here / "bare.onnx")),
        data=str(here / "data.npz"),
        rounds=6,
        quick=True,
        preprocess=linear.PREPROCESS,
        output=here / "today.jsonl",
    )
    return measure.bench(request)


def test_a_bundle_is_proven_and_a_bare_file_is_not(measured):
    bundle, bare = measured["measurements"]
    assert bundle["kind"] == "bundle"
    assert bundle["proof"]["samples"] == 4
    assert bundle["proof"]["difference"] < bundle["proof"]["tolerance"]
    assert (bare["kind"], bare["proof"]) == ("model", None)


def test_both_take_turns_against_the_first_and_its_twin(measured):
    bundle, bare = measured["measurements"]
    assert bundle["speedup"] is None
    assert bare["speedup"]["against"] == measured["baseline"] == bundle["id"]
    assert bare["speedup"]["rounds"] == measured["rounds"] == 6
    (session,) = measured["sessions"]
    assert session["twin"]["rounds"] == 6


def test_the_document_has_latency_throughput_memory_and_the_machine(measured):
    row = measured["measurements"][0]
    assert row["latency_ns"]["p50"]["value"] > 0
    assert row["latency_ns"]["samples"] >= row["latency_ns"]["clean_samples"]
    assert row["offline_samples_per_s"] == row["throughput_per_s"] > 0
    assert row["load_ns"] > 0
    assert row["machine"]["cores"] == measured["machine"]["cores"]
    json.dumps(measured, allow_nan=False)


def test_accuracy_is_taken_here_with_the_bundles_own_preprocessing(measured):
    bundle, bare = measured["measurements"]
    assert (bundle["quality"]["metric"], bundle["quality"]["value"]) == ("top1", 1.0)
    assert bundle["quality"]["recorded"]["value"] == 1.0
    assert bare["quality"]["drop"] == 0.0
    assert bare["quality"]["drop_low"] < 0 < bare["quality"]["drop_high"]


def test_raw_samples_are_kept_as_measurements(here, measured):
    lines = (here / "today.jsonl").read_text().splitlines()
    kept = [Measurement.from_line(line) for line in lines]
    assert [one.artifact for one in kept] == [row["artifact"] for row in measured["measurements"]]
    assert sum(len(block.latencies_ns) for block in kept[0].rounds) == kept[0].latency.samples


def test_nothing_is_left_in_the_temporary_folder(here, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    measure.bench(measure.Request((str(here / "best"),), rounds=2, quick=True))
    assert not list(tmp_path.iterdir())


def test_a_run_is_its_best_and_the_table_says_what_was_proven(edgeopt):
    told = edgeopt("bench", "run", *QUICK)
    assert told.code == 0
    assert "proven: run: 4 golden samples, output y" in told.out
    for word in ("p50", "offline", "memory", "onnxruntime", "A/A twin"):
        assert word in told.out


def test_a_bare_model_without_data_runs_on_random_numbers_and_says_so(edgeopt):
    told = edgeopt("bench", "bare.onnx", *QUICK, "--json")
    (row,) = told.json["measurements"]
    assert row["inputs"] == "random"
    assert measure.RANDOM in row["warnings"]


def test_unlabelled_data_gives_agreement_with_the_first(edgeopt):
    told = edgeopt("bench", "best", "run", "--data", "unlabelled.npz", "--samples", "20", *QUICK, "--json")
    first, second = told.json["measurements"]
    assert told.json["data"] == {"location": "unlabelled.npz", "samples": 20, "labels": False}
    assert first["quality"]["value"] is None
    assert (second["quality"]["metric"], second["quality"]["value"]) == ("agreement", 1.0)


def test_whole_numbers_that_a_bare_model_gets_as_they_are_are_warned_of(edgeopt):
    told = edgeopt("bench", "bare.onnx", "--data", "unlabelled.npz", *QUICK)
    assert rows.AS_GIVEN in told.out
    told = edgeopt("bench", "bare.onnx", "--data", "data.npz", "--mean", "128", "--std", "64", *QUICK)
    assert rows.AS_GIVEN not in told.out
    assert "100.00 %" in told.out


def test_samples_of_another_kind_than_the_bundles_own_are_noticed(edgeopt, here, tmp_path):
    linear.bundle(tmp_path / "best", preprocess=Preprocess())
    told = edgeopt("bench", str(tmp_path / "best"), "--data", "mislabelled.npz", *QUICK, "--json")
    warnings = told.json["measurements"][0]["warnings"]
    assert rows.UNLIKE_GOLDEN in warnings
    assert any("was 100.00 % where it was made, more than chance explains" in warning for warning in warnings)


def test_batches_and_sustained_load_are_measured_when_asked(edgeopt, here):
    told = edgeopt("bench", "best", *QUICK, "--batch-curve", "--sustained", "1s", "-o", "alone.jsonl", "--json")
    (row,) = told.json["measurements"]
    assert [point["batch"] for point in row["batch_curve"]["points"]][:3] == [1, 2, 4]
    assert row["offline_batch"] == row["batch_curve"]["offline_batch"]
    assert row["offline_samples_per_s"] > row["throughput_per_s"]
    assert row["sustained"]["last_to_first"]["rounds"] >= 3
    assert row["starts"] is None, "a quick bench starts nothing afresh"
    (line,) = (here / "alone.jsonl").read_text().splitlines()
    assert json.loads(line)["batch_curve"]["rounds"]
    text = "\n".join(table.bench_lines(told.json))
    assert "batch 1 " in text and "back to back for 1 s" in text


def test_what_the_machine_does_not_tell_is_said_to_be_unavailable(edgeopt, measured):
    for session in measured["sessions"]:
        session["disturbance"].update(swapped_pages=0, power_watts=None, temperature_c=[40.0, 61.4])
    text = "\n".join(table.bench_lines(measured))
    assert "0 pages swapped, " in text and "40 °C before, 61 after" in text
    assert "power" in text.split("Unavailable here: ")[1].splitlines()[0]


def test_a_runtime_that_crashes_is_told_with_its_log(edgeopt, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PLUGIN))
    monkeypatch.syspath_prepend(PLUGIN)
    bundle = linear.bundle(tmp_path / "best")
    text = (bundle.folder / MANIFEST).read_text()
    (bundle.folder / MANIFEST).write_text(text.replace('"backend": "onnxruntime"', '"backend": "segfault"'))
    told = edgeopt("bench", str(bundle.folder))
    assert (told.code, told.out) == (4, "")
    assert "SIGSEGV" in told.err
    log = Path(told.err.split("Log: ")[1].strip())
    assert "Fatal Python error" in log.read_text()
    shutil.rmtree(log.parents[1])


def test_what_computes_something_else_here_is_not_timed(edgeopt):
    told = edgeopt("bench", "best", "wrong", *QUICK)
    assert told.code == 4
    assert told.out == ""
    assert "output y is off by" in told.err
    assert "wrong/model.onnx" in told.err


def test_one_that_fails_is_a_row_and_the_others_go_on(here, edgeopt):
    """Gather of an index that the golden samples do not have."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "gather",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor("table", TensorProto.FLOAT, [2], [0.0, 1.0])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), here / "gather.onnx")
    told = edgeopt("bench", "integers.onnx", "gather.onnx", "--data", "unlabelled.npz", *QUICK, "--json")
    first, second = told.json["measurements"]
    assert told.code == 0
    assert first["error"] is None
    assert "indices element out of data bounds" in second["error"]["message"]
    assert second["latency_ns"] is None
    told = edgeopt("bench", "gather.onnx", "--data", "unlabelled.npz", *QUICK)
    assert (told.code, told.out) == (4, "")


MISTAKES = [
    ("no such path", ("bench", "bset"), 2, ("bset", "Did you mean best?")),
    ("nothing", ("bench",), 2, ("nothing to measure", "best/")),
    ("an empty folder", ("bench", "empty"), 2, ("empty", MANIFEST)),
    ("a run without a winner", ("bench", "lost"), 2, ("lost", "no best/")),
    ("another file", ("bench", "text.txt"), 2, ("text.txt", ".onnx")),
    ("no ONNX", ("bench", "text.onnx"), 4, ("text.onnx", "not an ONNX file", "Give the file")),
    ("integers without data", ("bench", "integers.onnx"), 2, ("int64", "--data")),
    ("samples that do not fit", ("bench", "best", "--data", "narrow.npz"), 2, ("narrow.npz", "[1, 3]")),
    ("no such data", ("bench", "best", "--data", "dta.npz"), 2, ("dta.npz", "Did you mean data.npz?")),
    ("labels without class scores", ("bench", "flat.onnx", "--data", "data.npz"), 2, ("data.npz", "flat.onnx gives y")),
    ("no unit", ("bench", "best", "--sustained", "5"), 2, ("--sustained", "5m")),
    ("too short", ("bench", "best", "--sustained", "5 ms"), 2, ("--sustained", "too short")),
    ("no numbers", ("bench", "bare.onnx", "--mean", "x"), 2, ("--mean", "0.5")),
    ("output that is there", ("bench", "best", "-o", "text.txt"), 2, ("text.txt", "--output")),
    ("output without a folder", ("bench", "best", "-o", "no/a.jsonl"), 2, ("no/a.jsonl", "--output")),
    ("compare without files", ("bench", "--compare", "a.jsonl", "b.jsonl"), 2, ("a.jsonl", "no such file")),
    ("compare no measurements", ("bench", "--compare", "text.txt", "text.txt"), 2, ("text.txt:1", "not a measurement")),
    ("compare rounds without calls", ("bench", "--compare", "today.jsonl", "hollow.jsonl"), 2, ("hollow.jsonl:1",)),
    ("both", ("bench", "best", "--compare", "a.jsonl", "b.jsonl"), 2, ("best", "either")),
]


@pytest.mark.parametrize(("argv", "code", "words"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_mistakes_are_told_in_five_lines(edgeopt, measured, here, argv, code, words):
    value = json.loads((here / "today.jsonl").read_text().splitlines()[0])
    (here / "hollow.jsonl").write_text(json.dumps({**value, "rounds": []}))
    told = edgeopt(*argv)
    assert told.code == code
    assert told.out == ""
    assert told.err.startswith("Error: ")
    assert len(told.err.splitlines()) <= 5
    for word in words:
        assert word in told.err


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), ("model.onnx", "missing")),
        (lambda folder: (folder / "golden.npz").write_bytes(b"PK"), ("golden.npz", "bytes")),
        (lambda folder: (folder / MANIFEST).write_text("{"), (MANIFEST, "not a manifest")),
    ],
    ids=["missing", "changed", "manifest"],
)
def test_a_damaged_bundle_is_told_with_the_file_and_a_remedy(edgeopt, tmp_path, damage, words):
    linear.bundle(tmp_path / "best")
    damage(tmp_path / "best")
    told = edgeopt("bench", str(tmp_path / "best"), "--json")
    assert told.code == told.json["error"]["exit_code"] == 4
    assert "again" in told.json["error"]["remedy"]
    for word in words:
        assert word in told.err


def test_comparing_a_session_with_itself_is_a_tie(edgeopt, measured):
    told = edgeopt("bench", "--compare", "today.jsonl", "today.jsonl", "--json")
    assert [row["speedup"]["value"] for row in told.json["comparisons"]] == [1.0, 1.0]
    assert all(row["same_artifact"] for row in told.json["comparisons"])
    text = edgeopt("bench", "--compare", "today.jsonl", "today.jsonl").out
    assert "differences under 5 %" in text
    assert "what differs is the state of the machine" in text


@pytest.fixture
def elsewhere(here, measured):
    """The same measurements, as of another processor and half as fast."""
    path = here / "elsewhere.jsonl"
    lines = []
    for line in (here / "today.jsonl").read_text().splitlines():
        value = json.loads(line)
        value["machine"]["cpu"] = "Another CPU"
        for block in value["rounds"]:
            block["latencies_ns"] = [2 * ns for ns in block["latencies_ns"]]
        lines.append(json.dumps(value))
    path.write_text("\n".join(lines[:1]))
    return path


def test_unlike_machines_are_not_compared_unless_told(edgeopt, elsewhere):
    told = edgeopt("bench", "--compare", "today.jsonl", elsewhere.name)
    assert told.code == 8
    assert "Another CPU" in told.err
    assert "--unlike" in told.err
    told = edgeopt("bench", "--compare", "today.jsonl", elsewhere.name, "--unlike", "--json")
    (row,) = told.json["comparisons"]
    assert row["speedup"]["value"] == pytest.approx(0.5)
    assert "Another CPU" in told.json["unlike"][0]
    assert told.json["only_a"] == [str(Path.cwd() / "bare.onnx")]


def blocks(*medians):
    return [Block((ns, ns, ns), (False, False, False), 3 * ns, 3 * ns) for ns in medians]


def test_sessions_with_unlike_numbers_of_rounds_are_compared():
    found = comparison.between_sessions(blocks(*range(100, 116)), blocks(*range(200, 208)))
    assert found.value == pytest.approx(107.5 / 203.5)
    assert found.low < found.value < found.high
    assert found.rounds == 8


def test_few_rounds_give_no_interval():
    assert comparison.between_sessions(blocks(100, 101), blocks(100, 102)).low is None


def test_ctrl_c_leaves_nothing_running(here, tmp_path):
    never = tmp_path / "never.jsonl"
    command = [sys.executable, "-m", "edgeopt", "bench", "best", "--rounds", "10000", "-o", str(never)]
    with processes.started(command, cwd=here, env={**os.environ, "TMPDIR": str(tmp_path)}) as process:
        left = processes.wait_for_children(process, 2)
        assert len(left) == 2, "the model and its twin"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "nothing is left running" in err
    assert processes.gone(left)
    assert not list(tmp_path.glob("edgeopt*")), "folders of ours"
    assert not never.exists()
