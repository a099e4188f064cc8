"""The document of a run, and the reports that are drawn from it: what they show, and names that try to break out."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgeopt import yaml
from edgeopt.artifact import Artifact, FileEntry, MadeBy
from edgeopt.conditions import Machine
from edgeopt.errors import UnsupportedOperator
from edgeopt.measurement import Block, Measurement
from edgeopt.plan import Plan, make
from edgeopt.recipe import resolve
from edgeopt.report import markdown, terminal
from edgeopt.report.cells import rows_of, speedup_text, summary_of
from edgeopt.results import Outcome, Quality, RunResult, decide, document, values
from edgeopt.statistics import Comparison, Drop, Ratio

HOSTILE = "<script>alert(1)</script>|`x`*\\|<img src=x>[a](http://b)&lt;\x1b[2J\x07\r\n\u202e"
MACHINE = Machine("cpu", "x86_64", 2, 2**33, None, "Linux", "3.11")
ARTIFACT = Artifact("onnx", "m", (FileEntry("m", "0" * 64, 2**20),), (), (), "fp32", MadeBy("compile", 1, {}, {}))
RECIPE = """
model: a.onnx
data: {calibration: c.npz, validation: v.npz}
steps:
  - quantize: [none, int8]
  - compile: [onnxruntime, openvino, {openvino: {precision: bf16}}]
budget: {latency p50: 5 ms, accuracy drop: 1 %}
"""


def planned() -> Plan:
    return make(resolve(yaml.parse(RECIPE, "r.yaml"), base=Path("/base"), name="r"))


def measurement(backend: str, milliseconds: float) -> Measurement:
    latencies = tuple(int(milliseconds * 1e6) + call for call in range(50))
    rounds = tuple(Block(latencies, (False,) * 50, sum(latencies), sum(latencies)) for _ in range(8))
    return Measurement("0" * 64, backend, "1.0", 1, MACHINE, rounds, 10, True, 30_000_000, 9_000_000, 2**25)


def quality(value: float, drop: float) -> Quality:
    return Quality("top1", value, Drop(drop, drop - 0.002, drop + 0.002), 0.99, 30.0, False, 1000)


def outcomes(plan: Plan, *, slower: float = 1.0) -> dict[str, Outcome]:
    """int8-onnxruntime wins, openvino-bf16 drops too much, int8-openvino failed."""
    made = {
        "onnxruntime": (4.0, quality(0.95, 0.0)),
        "openvino": (3.0, quality(0.95, 0.0)),
        "openvino-bf16": (2.0, quality(0.90, 0.05)),
        "int8-onnxruntime": (1.0, quality(0.945, 0.005)),
    }
    found = {}
    for candidate in plan.candidates:
        if candidate.id in made:
            milliseconds, how_right = made[candidate.id]
            measured = measurement(candidate.backend, milliseconds * slower)
            found[candidate.id] = Outcome(candidate, ARTIFACT, measured, how_right, None)
        else:
            error = UnsupportedOperator("no Einsum here", where="openvino")
            found[candidate.id] = Outcome(candidate, None, None, None, error, "log/it.log")
    return found


class Timed(RunResult):
    """A result whose candidates are compared by their p50 alone: there was no session."""

    def compare(self, a: str, b: str) -> Comparison | None:
        times = {
            name: outcome.measurement.latency.percentiles["p50"]
            for name, outcome in self.outcomes.items()
            if outcome.measurement
        }
        one, other = times.get(a), times.get(b)
        if one is None or other is None:
            return None
        times_faster = one.value / other.value
        return Comparison("faster" if times_faster > 1 else "slower", Ratio(times_faster, None, None, "clean", 8), 0.03)


def result(plan: Plan | None = None, found: Mapping[str, Outcome] | None = None, **changes: Any) -> dict[str, Any]:
    plan = plan or planned()
    found = found or outcomes(plan)
    seconds = {"build": 1.0, "measure": 2.0}
    reused = {"import": True, "import/compile=onnxruntime": False}
    timed = Timed(plan, found, {}, {}, None, None, seconds, reused, False, (), {})
    choice = decide(found, plan.recipe.budget, timed.compare)
    return {**document(timed, choice, "/runs/r", {**seconds, "total": 3.0}), **changes}


def by_id(found: Mapping[str, Any]) -> dict[str, Any]:
    return {candidate["id"]: candidate for candidate in found["candidates"]}


def test_the_document_names_the_winner_and_says_why_each_other_is_not() -> None:
    found = result()
    assert (found["schema"], found["winner"], found["baseline"]) == (1, "int8-onnxruntime", "onnxruntime")
    assert found["fallbacks"] == ["openvino", "onnxruntime"]
    status = {name: candidate["status"] for name, candidate in by_id(found).items()}
    assert status == {
        "onnxruntime": "inside",
        "openvino": "inside",
        "openvino-bf16": "outside",
        "int8-onnxruntime": "chosen",
        "int8-openvino": "failed",
        "int8-openvino-bf16": "skipped",
    }
    assert by_id(found)["openvino-bf16"]["reasons"] == ["accuracy drop 5.00 points > 1.00 points (400 % outside)"]
    assert by_id(found)["int8-openvino"]["reasons"] == ["openvino: no Einsum here"]


def test_the_document_is_json_and_has_the_published_fields() -> None:
    found = json.loads(json.dumps(result(), allow_nan=False))
    fields = {"id", "steps", "backend", "artifact", "parameters", "macs", "latency_ns", "throughput_per_s", "load_ns"}
    fields |= {"first_inference_ns", "peak_memory_bytes", "quality", "speedup", "operators", "status", "reasons", "log"}
    for candidate in found["candidates"]:
        assert fields <= candidate.keys() or candidate["status"] == "skipped"
    chosen = by_id(found)["int8-onnxruntime"]
    assert chosen["latency_ns"]["p50"].keys() == {"value", "low", "high"}
    assert chosen["speedup"]["against"] == "onnxruntime"
    assert chosen["speedup"]["value"] == pytest.approx(4, rel=0.01)
    assert chosen["steps"] == {"quantize": "int8", "compile": "onnxruntime"}


def test_what_was_not_measured_is_null_and_not_zero() -> None:
    failed = by_id(result())["int8-openvino"]
    for field in ("artifact", "latency_ns", "throughput_per_s", "load_ns", "peak_memory_bytes", "quality", "speedup"):
        assert failed[field] is None
    plan = planned()
    assert set(values(outcomes(plan)["int8-openvino"]).values()) == {None}


def test_an_exact_result_is_json_too() -> None:
    plan = planned()
    found = outcomes(plan)
    exact = replace(quality(0.95, 0.0), sqnr_db=None, exact=True)
    found["onnxruntime"] = replace(found["onnxruntime"], quality=exact)
    assert values(found["onnxruntime"])["sqnr"] == float("inf")
    json.dumps(result(plan, found), allow_nan=False)


def test_a_speed_up_that_is_not_precise_or_not_told_is_marked() -> None:
    told = {"value": 4.0, "low": 3.0, "high": 5.0, "verdict": "faster", "precise": False}
    assert speedup_text(told) == "~4.00x"
    assert speedup_text({**told, "precise": True}) == "4.00x"
    assert speedup_text({**told, "verdict": "inconclusive"}) == "4.00x?"


def test_rows_stand_as_a_person_reads_them() -> None:
    rows = rows_of(result())
    order = ["onnxruntime", "int8-onnxruntime", "openvino", "openvino-bf16", "int8-openvino"]
    assert [row.id for row in rows][:5] == order
    assert [row.baseline for row in rows][:2] == [True, False]
    cells = rows[1].cells
    assert (cells["p50"], cells["speedup"], cells["size"]) == ("1.00 ms", "4.00x", "1.00 MiB")
    assert (cells["quality"], cells["drop"], cells["memory"]) == ("94.50 %", "0.50 ±0.20", "32.0 MiB")


def test_the_summary_names_the_winner_or_the_nearest() -> None:
    assert summary_of(result())[0].startswith("Winner: int8-onnxruntime: best latency p50 (1.00 ms) of 3 candidates")
    plan = planned()
    told = "\n".join(summary_of(result(plan, outcomes(plan, slower=6))))
    assert told.startswith("No winner: no candidate is inside the budgets.")
    assert "int8-onnxruntime (nearest) outside: latency p50 6.00 ms > 5.00 ms (20 % outside)" in told


def hostile() -> dict[str, Any]:
    """A result in which everything that comes from outside tries to break out."""
    plan = planned()
    candidates = tuple(replace(c, id=c.id + HOSTILE) for c in plan.candidates)
    renamed = {c.id: replace(o, candidate=c) for c, o in zip(candidates, outcomes(plan).values(), strict=True)}
    failed = "int8-openvino" + HOSTILE
    renamed[failed] = replace(renamed[failed], error=UnsupportedOperator(HOSTILE), log=HOSTILE)
    plan = replace(
        plan,
        recipe=replace(plan.recipe, name=HOSTILE, target=replace(plan.recipe.target, name=HOSTILE)),
        candidates=candidates,
        baseline=plan.baseline + HOSTILE,
        left_out={HOSTILE: HOSTILE},
    )
    return result(plan, renamed, warnings=[HOSTILE])


def controls(text: str) -> set[str]:
    return {c for c in text if not c.isprintable() and c != "\n"}


def cells_of(line: str) -> list[str]:
    """A table's row as GitHub splits it: at each pipe that no backslash escapes."""
    return re.findall(r"(?:\\.|[^|\\])+", line.strip().strip("|"))


def test_markdown_lets_no_name_break_out() -> None:
    page = markdown.render(hostile())
    assert not controls(page)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5
    assert {len(cells_of(row)) for row in rows} == {len(cells_of(rows[0]))}
    bare = re.sub(r"\\.", "", page)
    assert "<" not in bare
    assert "`" not in bare
    assert "[" not in bare
    assert "&" not in bare


@pytest.mark.parametrize("width", [60, 120, 200])
def test_the_terminal_obeys_no_name(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    terminal.print_result(hostile(), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert not controls(text)


def test_a_report_shows_each_candidate_and_the_budgets() -> None:
    page = markdown.render(result())
    for text in ("int8-onnxruntime", "openvino-bf16", "1.00 ms", "latency p50 ≤ 5.00 ms", "left out", "4.00x"):
        assert text in page
