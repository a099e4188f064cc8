"""The gate on runs: budgets, regressions by the statistical verdict, baselines, and what machines read of it."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_reports import ARTIFACT, HOSTILE, MACHINE, Timed, measurement, outcomes, planned, quality

from edgeopt import check as gate
from edgeopt.__main__ import main
from edgeopt.budget import Budget
from edgeopt.check import Tolerance
from edgeopt.evidence import Evidence, Reading, Record
from edgeopt.measurement import Block, Measurement
from edgeopt.results import Outcome, Quality, decide, document
from edgeopt.statistics import Drop

MEDIAN_ALONE = ("--tolerance", "latency p95: any")
SMALL = replace(ARTIFACT, files=(replace(ARTIFACT.files[0], size_bytes=2**19),))


def noisy(milliseconds: float, spread: float, rounds: int = 16) -> tuple[Block, ...]:
    """Rounds whose medians lie evenly within +-`spread` of a time."""
    found = []
    for index in range(rounds):
        middle = milliseconds * 1e6 * (1 + spread * (2 * index / (rounds - 1) - 1))
        latencies = tuple(int(middle) + call for call in range(50))
        found.append(Block(latencies, (False,) * 50, sum(latencies), sum(latencies)))
    return tuple(found)


def write_run(folder: Path, *, slower: float = 1.0, winner: Outcome | None = None, **changes: Any) -> Path:
    """A run's directory. Its winner is int8-onnxruntime at 1 ms; `changes` go over the winner's measurement."""
    plan = planned()
    found = outcomes(plan, slower=slower)
    for name, one in found.items():
        if one.measurement:
            found[name] = replace(one, measurement=replace(one.measurement, artifact=ARTIFACT.digest))
    best = winner or found["int8-onnxruntime"]
    if best.measurement and best.artifact:
        best = replace(best, measurement=replace(best.measurement, artifact=best.artifact.digest, **changes))
    found[best.candidate.id] = best
    timed = Timed(plan, found, {}, {}, None, None, {"build": 1.0, "measure": 1.0}, {}, False, (), {})
    choice = decide(found, plan.recipe.budget, timed.compare)
    folder.mkdir(parents=True)
    told = document(timed, choice, str(folder), {"build": 1.0, "measure": 1.0, "total": 2.0})
    (folder / "choice.json").write_text(json.dumps(told, allow_nan=False))
    lines = [one.measurement.to_line() + "\n" for one in found.values() if one.measurement]
    (folder / "measurements.jsonl").write_text("".join(lines))
    return folder


def best(**changes: Any) -> Outcome:
    return replace(outcomes(planned())["int8-onnxruntime"], **changes)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run."""
    return write_run(tmp_path_factory.mktemp("check") / "before")


@pytest.fixture(scope="module")
def base(before: Path) -> str:
    """The file of `edgeopt baseline` of that run."""
    path = before.with_name("base.json")
    assert main(["baseline", str(before), "-o", str(path)]) == 0
    return str(path)


@pytest.fixture(autouse=True)
def outside_of_github(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def check(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What `edgeopt check --json` prints."""
    capsys.readouterr()
    code = main(["check", *map(str, arguments), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == code
    assert found["passed"] == (code == 0)
    return found


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {rule["quantity"]: rule["verdict"] for rule in found["rules"] if rule["kind"] == "regression"}


# Budgets


def test_a_run_inside_its_budgets_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(capsys, write_run(tmp_path / "run"))
    deciding = [rule for rule in found["rules"] if rule["gates"]]
    assert found["exit_code"] == 0
    assert [rule["quantity"] for rule in deciding[1:]] == ["latency p50", "accuracy drop"]
    assert {rule["verdict"] for rule in deciding} == {"inside"}


def test_budgets_of_candidates_that_lost_are_told_and_decide_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(capsys, write_run(tmp_path / "run"))
    lost = [rule for rule in found["rules"] if not rule["passed"]]
    assert [(rule["candidate"], rule["quantity"]) for rule in lost] == [("openvino-bf16", "accuracy drop")]
    assert not lost[0]["gates"]


def test_an_undecided_drop_is_inconclusive_and_only_strict_fails_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = best(quality=Quality("top1", 0.94, Drop(0.009, 0.007, 0.011), 0.99, 30.0, False, 1000))
    run = write_run(tmp_path / "run", winner=near)
    (rule,) = [one for one in check(capsys, run)["rules"] if one["gates"] and one["quantity"] == "accuracy drop"]
    assert (rule["verdict"], rule["passed"]) == ("inconclusive", True)
    assert "undecided: about 4000 samples would decide, 1000 were taken" in rule["told"]
    assert check(capsys, run, "--strict")["exit_code"] == 3


def test_no_winner_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(capsys, write_run(tmp_path / "run", slower=6))
    assert found["exit_code"] == 3
    assert found["rules"][0]["told"] == "no candidate is inside the budgets"


def test_a_named_candidate_is_judged_instead_of_the_winner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(capsys, write_run(tmp_path / "run"), "--candidate", "openvino-bf16")
    assert (found["exit_code"], found["candidate"]) == (3, "openvino-bf16")


def test_budgets_are_judged_on_the_samples_and_not_on_what_is_said_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    lines = [Measurement.from_line(line) for line in (run / "measurements.jsonl").read_text().splitlines()]
    slower = [replace(line, rounds=noisy(50, 0)) for line in lines]
    (run / "measurements.jsonl").write_text("".join(line.to_line() + "\n" for line in slower))
    assert main(["check", str(run)]) == 2
    assert "contradict each other" in capsys.readouterr().err


# Regressions


def test_the_same_run_is_no_regression(
    tmp_path: Path, before: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(capsys, before, "--baseline", base)
    assert found["exit_code"] == 0
    assert verdicts(found) == dict.fromkeys(("latency p50", "latency p95", "peak memory", "size", "accuracy"), "tie")


def test_a_slower_winner_is_exit_code_7(tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(capsys, write_run(tmp_path / "run", slower=1.3), "--baseline", base)
    assert found["exit_code"] == 7
    rule = next(rule for rule in found["rules"] if rule["kind"] == "regression")
    assert (rule["quantity"], rule["verdict"], rule["passed"]) == ("latency p50", "regression", False)
    assert rule["change"] == pytest.approx(0.3, abs=0.01)
    assert rule["limit"] == pytest.approx(1.1e6, rel=0.01)
    assert rule["told"] == "latency p50 1.30 ms, was 1.00 ms: 30.0 % worse (30.0 to 30.0), tolerated is ≤ 1.10 ms"


def test_a_faster_winner_is_an_improvement(tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(capsys, write_run(tmp_path / "run", slower=0.7), "--baseline", base)
    assert (found["exit_code"], verdicts(found)["latency p50"]) == (0, "improvement")
    slightly = check(capsys, write_run(tmp_path / "slightly", slower=0.95), "--baseline", base)
    assert verdicts(slightly)["latency p50"] == "tie"


def test_inside_the_tolerance_is_a_tie_and_the_tolerance_can_be_set(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", slower=1.07)
    assert check(capsys, run, "--baseline", base)["exit_code"] == 0
    assert check(capsys, run, "--baseline", base, "--tolerance", "latency p50: 5 %")["exit_code"] == 7
    assert check(capsys, run, "--baseline", base, "--tolerance", "latency=0.05 ms")["exit_code"] == 7
    assert "latency p50" not in verdicts(check(capsys, run, "--baseline", base, "--tolerance", "latency: any"))


def test_what_may_be_chance_is_a_tie(tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The median is 15 % up, and its interval over the rounds reaches back into the tolerance of 10 %."""
    found = check(capsys, write_run(tmp_path / "run", rounds=noisy(1.15, 0.12)), "--baseline", base, *MEDIAN_ALONE)
    rule = next(rule for rule in found["rules"] if rule["kind"] == "regression")
    assert rule["change"] > 0.1 > rule["low"]
    assert (rule["verdict"], found["exit_code"]) == ("tie", 0)


@pytest.mark.parametrize("why", ["too few rounds", "switched out", "too wide"])
def test_what_cannot_be_told_passes_unless_it_has_to_be_certain(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    rounds = {"too few rounds": noisy(1.0, 0.01, 3), "too wide": noisy(1.3, 0.9)}.get(why, noisy(1.0, 0.01))
    if why == "switched out":
        rounds = tuple(replace(block, switched=(True,) * 50) for block in rounds)
    run = write_run(tmp_path / "run", rounds=rounds)
    found = check(capsys, run, "--baseline", base, *MEDIAN_ALONE)
    assert (verdicts(found)["latency p50"], found["exit_code"]) == ("inconclusive", 0)
    assert check(capsys, run, "--baseline", base, *MEDIAN_ALONE, "--strict")["exit_code"] == 7


def test_memory_and_size_are_compared_by_value(tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    larger = replace(ARTIFACT, files=(replace(ARTIFACT.files[0], size_bytes=int(2**20 * 1.02)),))
    run = write_run(tmp_path / "run", winner=best(artifact=larger), peak_memory_bytes=2**25 + 3 * 2**20)
    found = check(capsys, run, "--baseline", base)
    assert found["exit_code"] == 7
    assert (verdicts(found)["peak memory"], verdicts(found)["size"]) == ("regression", "regression")
    relaxed = ("--tolerance", "peak memory: 4 MiB", "--tolerance", "size: 5 %")
    assert check(capsys, run, "--baseline", base, *relaxed)["exit_code"] == 0
    smaller = write_run(tmp_path / "small", winner=best(artifact=SMALL))
    assert verdicts(check(capsys, smaller, "--baseline", base))["size"] == "improvement"


def test_a_lost_accuracy_is_a_regression_where_the_samples_tell(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = write_run(tmp_path / "worse", winner=best(quality=quality(0.936, 0.014)))
    allowed = ("--tolerance", "accuracy: 0.3 %", "--candidate", "int8-onnxruntime")
    found = check(capsys, worse, "--baseline", base, *allowed)
    assert verdicts(found)["accuracy"] == "regression"
    slightly = write_run(tmp_path / "slightly", winner=best(quality=quality(0.941, 0.009)))
    assert verdicts(check(capsys, slightly, "--baseline", base, *allowed))["accuracy"] == "tie"


def test_a_worse_original_is_seen_though_nothing_more_was_lost_from_it(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", winner=best(quality=quality(0.845, 0.005)))
    assert verdicts(check(capsys, run, "--baseline", base))["accuracy"] == "regression"


def test_the_speed_up_can_be_held_against_the_baseline_s(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Intervals of this speed-up are unknown: nothing is claimed."""
    found = check(capsys, write_run(tmp_path / "run"), "--baseline", base, "--tolerance", "speed-up: 10 %")
    assert verdicts(found)["speed-up"] == "inconclusive"


def test_a_lost_speed_up_is_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the machine's own speed was in each session."""
    runs = []
    for name, speedup in (("before", 4.0), ("after", 3.0)):
        run = write_run(tmp_path / name)
        told = json.loads((run / "choice.json").read_text())
        chosen = next(one for one in told["candidates"] if one["status"] == "chosen")
        chosen["speedup"] |= {"value": speedup, "low": speedup * 0.98, "high": speedup * 1.02}
        (run / "choice.json").write_text(json.dumps(told))
        runs.append(run)
    asked = ("--tolerance", "speed-up: 10 %")
    assert verdicts(check(capsys, runs[1], "--baseline", runs[0], *asked))["speed-up"] == "regression"
    assert verdicts(check(capsys, runs[0], "--baseline", runs[1], *asked))["speed-up"] == "improvement"
    found = check(capsys, runs[1], "--baseline", runs[0], *asked)
    assert [rule["change"] for rule in found["rules"] if rule["quantity"] == "speed-up"] == [pytest.approx(0.25)]
    original = ("--candidate", "onnxruntime")
    assert verdicts(check(capsys, runs[1], "--baseline", runs[0], *asked, *original))["speed-up"] == "tie"


def test_outputs_that_are_exact_no_more_are_a_regression_of_sqnr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = replace(quality(0.945, 0.005), sqnr_db=None, exact=True)
    runs = [write_run(tmp_path / "exact", winner=best(quality=exact)), write_run(tmp_path / "not")]
    base = tmp_path / "exact.json"
    assert main(["baseline", str(runs[0]), "-o", str(base)]) == 0
    asked = ("--tolerance", "sqnr: 2 dB")
    assert verdicts(check(capsys, runs[1], "--baseline", base, *asked))["sqnr"] == "regression"
    assert verdicts(check(capsys, runs[0], "--baseline", base, *asked))["sqnr"] == "tie"
    assert verdicts(check(capsys, runs[0], "--baseline", runs[1], *asked))["sqnr"] == "improvement"


def test_what_the_baseline_has_and_the_run_does_not_fails(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", peak_memory_bytes=None)
    found = check(capsys, run, "--baseline", base)
    assert (verdicts(found)["peak memory"], found["exit_code"]) == ("unmeasured", 7)


def test_winner_is_compared_with_winner_and_a_candidate_with_its_like(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = best(artifact=None, measurement=None, quality=None, error=RuntimeError("gone"))
    run = write_run(tmp_path / "run", winner=replace(failed, error=outcomes(planned())["int8-openvino"].error))
    found = check(capsys, run, "--baseline", base)
    assert (found["candidate"], found["baseline"]["candidate"]) == ("openvino", "int8-onnxruntime")
    assert found["exit_code"] == 7
    found = check(capsys, run, "--baseline", base, "--candidate", "openvino")
    assert (found["baseline"]["candidate"], found["exit_code"]) == ("openvino", 0)


def record(p50: tuple[float, float, float]) -> Record:
    """A run whose one candidate has this median and interval."""
    low, value, high = sorted(p50)
    one = Evidence(
        "one", "chosen", rounds=16, clean=True, threads=1, readings={"latency p50": Reading(value, low, high)}
    )
    return Record("r", "r", "host", "one", "", None, Budget(), MACHINE, {"one": one})


NANOSECONDS = st.tuples(*[st.floats(1e3, 1e9)] * 3)


@given(now=NANOSECONDS, before=NANOSECONDS, percent=st.integers(3, 200))
def test_a_regression_is_beyond_the_tolerance_with_its_whole_interval(
    now: tuple[float, float, float], before: tuple[float, float, float], percent: int
) -> None:
    allowed = {"latency p50": Tolerance(relative=percent / 100)}
    found = gate.check(record(now), record(before), allowed=allowed).rules[-1]
    back = gate.check(record(before), record(now), allowed=allowed).rules[-1]
    assert found.value is not None and found.limit is not None and found.low is not None and found.high is not None
    assert found.low <= found.change <= found.high
    assert found.passed or (found.value > found.limit and found.low > percent / 100)
    assert (found.verdict == "regression") == (back.verdict == "improvement")
    same = gate.check(record(now), record(now), allowed=allowed).rules[-1]
    assert same.verdict in ("tie", "inconclusive")


# Machines


def test_an_unlike_machine_is_refused_with_its_own_exit_code(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", machine=replace(MACHINE, cpu="another"), slower=1.3)
    lines = (run / "measurements.jsonl").read_text().replace('"cpu":"cpu"', '"cpu":"another"')
    (run / "measurements.jsonl").write_text(lines)
    found = check(capsys, run, "--baseline", base)
    assert found["exit_code"] == 8
    assert found["machine_differences"] == ["cpu: another and cpu"]
    assert verdicts(found) == {
        "latency p50": "refused",
        "latency p95": "refused",
        "peak memory": "refused",
        "size": "tie",
        "accuracy": "tie",
    }
    assert check(capsys, run, "--baseline", base, "--unlike")["exit_code"] == 7
    dropped = [word for name in ("latency p50", "latency p95", "memory") for word in ("--tolerance", f"{name}: any")]
    assert check(capsys, run, "--baseline", base, *dropped)["exit_code"] == 0


def test_other_thread_counts_are_another_machine(tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, write_run(tmp_path / "run", threads=2), "--baseline", base)["exit_code"] == 8


# Baselines


def test_a_baseline_is_small_and_the_same_for_the_same_run(tmp_path: Path, before: Path, base: str) -> None:
    again = tmp_path / "again.json"
    assert main(["baseline", str(before), "-o", str(again)]) == 0
    assert again.read_bytes() == Path(base).read_bytes()
    assert again.stat().st_size < 6000
    assert str(before) not in again.read_text()


def test_a_baseline_s_candidates_stand_on_lines_of_their_own(base: str) -> None:
    lines = Path(base).read_text().splitlines()
    assert [json.loads(line.rstrip(","))["id"] for line in lines if line.startswith(" {")] == [
        "int8-onnxruntime", "onnxruntime", "openvino", "openvino-bf16"
    ]  # fmt: skip


def test_a_run_s_folder_is_a_baseline_too(
    tmp_path: Path, before: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", slower=1.3)
    by_file, by_folder = check(capsys, run, "--baseline", base), check(capsys, run, "--baseline", before)
    assert verdicts(by_file) == verdicts(by_folder)
    changes = [[rule["change"] for rule in found["rules"]] for found in (by_file, by_folder)]
    assert changes[0] == pytest.approx(changes[1], abs=1e-4)


def git(folder: Path, *arguments: str) -> None:
    named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_baseline_is_read_from_a_revision(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    (repository / "b.json").write_text(Path(base).read_text())
    git(repository, "add", "b.json")
    git(repository, "commit", "-qm", "baseline")
    (repository / "b.json").write_text("{}")
    monkeypatch.chdir(repository)
    run = write_run(tmp_path / "run", slower=1.3)
    assert check(capsys, run, "--baseline", "HEAD:b.json")["exit_code"] == 7
    assert main(["check", str(run), "--baseline", "HEAD:c.json"]) == 2
    assert "'c.json' does not exist in 'HEAD'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not JSON"),
        ("[]", "no baseline"),
        ("{}", "no baseline"),
        ('{"kind": "edgeopt baseline", "schema": 2}', "schema 2"),
        ('{"kind": "edgeopt baseline", "schema": 1}', "damaged"),
        ('{"kind": "edgeopt baseline", "schema": 1, "recipe": "r", "target": "t", "winner": "w", "machine": {}, "candidates": []}', "damaged"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_is_no_baseline_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "b.json").write_text(text)
    assert main(["check", str(run), "--baseline", str(tmp_path / "b.json")]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("place", ["nothing.json", "--output=x:y", "-x:y", ":y", "rev:", "a\0b", "no-such-revision:b"])
def test_a_baseline_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(write_run(tmp_path / "run")), f"--baseline={place}"]) == 2
    assert capsys.readouterr().err.startswith("Error: --baseline")


def test_a_run_without_a_winner_makes_no_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", str(write_run(tmp_path / "run", slower=6))]) == 3


# What the user writes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("latency p50", "write it like"),
        ("latency p50:", "write it like"),
        ("latencyy p50: 5 %", "did you mean 'latency p50'?"),
        ("latency p50: 5", "has no unit"),
        ("latency p50: 1 %", "cannot be told"),
        ("latency p50: 5 MB", "unknown unit 'MB'"),
        ("accuracy: 1 ms", "unknown unit 'ms'"),
        ("throughput: 100 %", "nothing could break that"),
    ],
)
def test_a_wrong_tolerance_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str) -> None:
    assert main(["check", str(tmp_path), "--tolerance", text]) == 2
    assert told in capsys.readouterr().err


def test_what_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for name, told in (("rum", "is not there"), ("file", "is not a folder"), (".", "is no run")):
        assert main(["check", str(tmp_path / name)]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"candidates": [{}]},
        {"candidates": {}},
        {"candidates": [5]},
        {"budget": {"limits": {"speed": 1}, "prefer": []}},
        {"budget": None},
        {"winner": "somebody"},
        {"schema": 2},
    ],
    ids=str,
)
def test_a_damaged_run_is_told(
    tmp_path: Path, before: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    told = json.loads((before / "choice.json").read_text())
    (tmp_path / "choice.json").write_text(json.dumps({**told, **change}))
    (tmp_path / "measurements.jsonl").write_text((before / "measurements.jsonl").read_text())
    assert main(["check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {tmp_path}")


@pytest.mark.parametrize(
    ("key", "value"),
    [("rounds", "many"), ("clean", 1), ("samples", "x"), ("threads", None), ("metric", 5), ("readings", []), ("id", 5)],
)
def test_a_damaged_baseline_is_told(
    tmp_path: Path, before: Path, base: str, capsys: pytest.CaptureFixture[str], key: str, value: Any
) -> None:
    told = json.loads(Path(base).read_text())
    told["candidates"][0][key] = value
    (tmp_path / "b.json").write_text(json.dumps(told))
    assert main(["check", str(before), "--baseline", str(tmp_path / "b.json")]) == 2
    assert "damaged" in capsys.readouterr().err


def test_an_unknown_candidate_is_told_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write_run(tmp_path / "run")), "--candidate", "int8-onnxruntim"]) == 2
    assert "did you mean 'int8-onnxruntime'?" in capsys.readouterr().err


# What machines read


def hostile_run(folder: Path, **changes: Any) -> Path:
    """A run in which every text tries to break out."""
    run = write_run(folder, **changes)
    name = json.dumps("int8-onnxruntime" + HOSTILE)[1:-1]
    told = json.loads((run / "choice.json").read_text().replace("int8-onnxruntime", name))
    (run / "choice.json").write_text(json.dumps({**told, "recipe": HOSTILE, "target": HOSTILE, "why": HOSTILE}))
    return run


def everything(tmp_path: Path, run: Path, base: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """All that a check writes, by kind, with the exit code 7."""
    names = {"junit": "j.xml", "markdown": "m.md", "code-quality": "q.json"}
    flags = [f"--{kind}={tmp_path / 'out' / name}" for kind, name in names.items()]
    capsys.readouterr()
    assert main(["check", str(run), "--baseline", base, "--annotations", "github", *flags]) == 7
    texts = {kind: (tmp_path / "out" / name).read_text() for kind, name in names.items()}
    return {**texts, "out": capsys.readouterr().out}


@pytest.mark.parametrize("write", [write_run, hostile_run])
def test_junit_has_a_case_for_each_rule(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str], write: Any
) -> None:
    """Elements, attributes and counts as junit-10.xsd of Jenkins' xUnit plugin has them."""
    root = ElementTree.fromstring(everything(tmp_path, write(tmp_path / "r", slower=1.3), base, capsys)["junit"])
    assert root.tag == "testsuites"
    assert set(root.keys()) <= {"name", "time", "tests", "failures", "errors"}
    suites = list(root)
    assert [suite.get("name") for suite in suites] == ["budgets", "regressions"]
    for suite in suites:
        cases = list(suite)
        assert {case.tag for case in cases} == {"testcase"}
        assert set(suite.keys()) <= {
            "name",
            "tests",
            "failures",
            "errors",
            "time",
            "skipped",
            "hostname",
            "id",
            "timestamp",
        }
        assert all(set(case.keys()) == {"classname", "name"} for case in cases)
        count = {tag: len(suite.findall(f"testcase/{tag}")) for tag in ("failure", "skipped", "system-out")}
        assert sum(count.values()) == len(cases)
        assert (suite.get("tests"), suite.get("failures")) == (str(len(cases)), str(count["failure"]))
        assert suite.get("skipped") == str(count["skipped"])
    assert root.get("tests") == str(sum(len(suite) for suite in suites))
    assert {case.get("name") for case in suites[1] if case.find("failure") is not None} == {
        "latency p50 against the baseline", "latency p95 against the baseline"
    }  # fmt: skip
    names = [(case.get("classname"), case.get("name")) for suite in suites for case in suite]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("write", [write_run, hostile_run])
def test_annotations_are_lines_that_no_name_breaks(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str], write: Any
) -> None:
    out = everything(tmp_path, write(tmp_path / "r", slower=1.3), base, capsys)["out"]
    assert not {c for c in out if not c.isprintable() and c != "\n"}
    commands = [line for line in out.splitlines() if line.startswith("::")]
    assert len(commands) == 2
    for command in commands:
        found = re.fullmatch(r"::error file=([^,:]*),line=(\d+),title=([^,:]*)::(.*)", command)
        assert found
        assert json.loads(Path(base).read_text().splitlines()[int(found.group(2)) - 1].rstrip(","))["id"] == (
            "int8-onnxruntime"
        )
        assert "%" not in re.sub(r"%(25|0A|0D|3A|2C)", "", command)


def test_github_reads_back_what_was_escaped() -> None:
    """As the runner unescapes: data, then properties."""
    from edgeopt.report.annotations import Finding, github

    line = github([Finding("error", "a:b,c%", "50 %: a,b ::error::", "edgeopt-budget", "r:1.yaml", 3)])
    head, _, data = line.rstrip("\n").partition("::")[2].partition("::")
    assert data.replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%") == "50 %: a,b ::error::"
    told = dict(pair.split("=") for pair in head.removeprefix("error ").split(","))
    plain = {name: value.replace("%3A", ":").replace("%2C", ",").replace("%25", "%") for name, value in told.items()}
    assert plain == {"file": "r:1.yaml", "line": "3", "title": "a:b,c%"}


def test_a_broken_budget_is_annotated_at_its_limit_in_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: m.onnx\nbudget:\n  latency: 5 ms\n  accuracy drop: 1 %\n")
    run = write_run(tmp_path / "run")
    flags = ["--candidate", "openvino-bf16", "--annotations", "github", "--recipe", str(recipe)]
    assert main(["check", str(run), *flags]) == 3
    assert f"::error file={recipe},line=4,title=accuracy drop%3A outside::" in capsys.readouterr().out


def test_annotations_and_the_summary_come_by_themselves_on_github(
    tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", slower=1.3)
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    capsys.readouterr()
    assert main(["check", str(run), "--baseline", base, "--json"]) == 7
    streams = capsys.readouterr()
    assert json.loads(streams.out)["exit_code"] == 7
    assert streams.err.startswith("::error ")
    assert summary.read_text().startswith("before\n### edgeopt check: r on host\n")
    assert main(["check", str(run), "--baseline", base, "--annotations", "none"]) == 7
    assert "::error" not in capsys.readouterr().out


def test_gitlab_reads_an_array_of_issues(tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    issues = json.loads(everything(tmp_path, hostile_run(tmp_path / "r", slower=1.3), base, capsys)["code-quality"])
    assert len(issues) == 2
    assert len({issue["fingerprint"] for issue in issues}) == 2
    for issue in issues:
        assert issue.keys() == {"description", "check_name", "fingerprint", "severity", "location"}
        assert issue["severity"] == "major"
        assert issue["location"]["path"] == base
        assert issue["location"]["lines"]["begin"] > 1


def test_markdown_lets_no_name_break_out(tmp_path: Path, base: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = everything(tmp_path, hostile_run(tmp_path / "r", slower=1.3), base, capsys)["markdown"]
    assert not {c for c in page if not c.isprintable() and c != "\n"}
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 1 + 2 + 5
    assert {len(re.findall(r"(?:\\.|[^|\\])+", row.strip().strip("|"))) for row in rows} == {4}
    assert not set("<`[&") & set(re.sub(r"\\.", "", page))


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["check", str(write_run(tmp_path / "run")), "--junit", str(tmp_path / "file" / "j.xml")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.partial"))


def test_the_time_of_all_samples_is_what_counts() -> None:
    """The helper's rounds: medians spread as asked, so that the tests above test what they say."""
    measured = replace(measurement("onnxruntime", 1.0), rounds=noisy(1.15, 0.12))
    p50 = measured.latency.p50
    assert p50 is not None
    assert 1.05e6 < p50.value < 1.25e6
