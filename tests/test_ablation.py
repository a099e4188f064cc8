"""What each step bought: which candidates are set beside each other, and what is told of the two."""

from __future__ import annotations

from typing import Any

import pytest

from edgeopt.report.ablation import Gain, gains, way


def candidate(name: str, steps: dict[str, str], times_faster: float, *, size: int = 100, quality: float = 0.9) -> Any:
    """A candidate that ran on the runtime that its last step's label begins with."""
    speedup = {
        "value": times_faster,
        "low": times_faster * 0.99,
        "high": times_faster * 1.01,
        "basis": "clean",
        "rounds": 16,
        "against": "ort",
        "verdict": "faster",
    }
    return {
        "id": name,
        "steps": steps,
        "backend": steps["compile"].partition("-")[0],
        "artifact": {"size_bytes": size},
        "latency_ns": {"basis": "clean"},
        "speedup": speedup if name != "ort" else None,
        "quality": {"value": quality},
    }


def document(*candidates: Any) -> dict[str, Any]:
    return {"baseline": "ort", "candidates": [candidate("ort", {"compile": "ort"}, 1.0, size=400), *candidates]}


def pairs(found: list[Gain]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(gain.before, gain.after, gain.added) for gain in found]


VINO = candidate("vino", {"compile": "vino"}, 2.0, size=400)
INT8 = candidate("int8-ort", {"quantize": "int8", "compile": "ort"}, 3.0)
INT8_VINO = candidate("int8-vino", {"quantize": "int8", "compile": "vino"}, 8.0, quality=0.89)


def test_a_candidate_stands_beside_the_one_that_lacks_one_step() -> None:
    [gain] = gains(document(INT8))
    assert pairs([gain]) == [("ort", "int8-ort", ("int8",))]
    assert gain.latency and gain.latency.verdict == "faster"
    assert gain.latency.speedup.value == pytest.approx(3)
    assert gain.smaller == 4


def test_a_runtime_is_told_against_the_same_model_on_the_baselines() -> None:
    found = gains(document(VINO, INT8, INT8_VINO))
    assert ("int8-ort", "int8-vino", ("vino",)) in pairs(found)
    [gain] = [one for one in found if one.before == "int8-ort"]
    assert gain.replaced == ("ort",)
    assert gain.latency and gain.latency.speedup.value == pytest.approx(8 / 3)


def test_a_precision_is_told_against_the_same_runtimes_own() -> None:
    half = candidate("vino-bf16", {"compile": "vino-bf16"}, 4.0)
    assert ("vino", "vino-bf16", ("vino-bf16",)) in pairs(gains(document(VINO, half)))


def test_steps_never_built_apart_are_told_together() -> None:
    trained = candidate("half-distill-ort", {"prune": "half", "distill": "distill", "compile": "ort"}, 2.0)
    assert pairs(gains(document(trained))) == [("ort", "half-distill-ort", ("half", "distill"))]


def test_only_what_lacks_least_is_compared() -> None:
    half = candidate("half-ort", {"prune": "half", "compile": "ort"}, 2.0)
    both = candidate("half-int8-ort", {"prune": "half", "quantize": "int8", "compile": "ort"}, 5.0)
    found = {gain.before for gain in gains(document(half, INT8, both)) if gain.after == "half-int8-ort"}
    assert found == {"half-ort", "int8-ort"}


def test_a_second_step_of_a_stage_is_that_stages() -> None:
    one = candidate("half-ort", {"prune": "half", "compile": "ort"}, 2.0)
    two = candidate("less-half-ort", {"prune": "less", "prune 2": "half", "compile": "ort"}, 3.0)
    assert ("half-ort", "less-half-ort", ("less",)) in pairs(gains(document(one, two)))


def test_the_way_goes_from_the_baseline_and_multiplies_to_the_whole_speedup() -> None:
    found = way(document(VINO, INT8, INT8_VINO), "int8-vino")
    assert pairs(found) == [("ort", "vino", ("vino",)), ("vino", "int8-vino", ("int8",))]
    ratios = [gain.latency.speedup.value for gain in found if gain.latency]
    assert ratios[0] * ratios[1] == pytest.approx(8)
    assert sum(gain.quality or 0 for gain in found) == pytest.approx(-0.01)


def test_the_way_jumps_over_what_was_not_built() -> None:
    [gain] = way(document(INT8_VINO), "int8-vino")
    assert (gain.before, gain.added, gain.replaced) == ("ort", ("int8", "vino"), ("ort",))


def test_the_baseline_has_no_way_to_itself() -> None:
    assert way(document(VINO), "ort") == []


def test_what_was_not_measured_is_none() -> None:
    unmeasured = {**INT8, "speedup": None, "quality": None}
    [gain] = gains(document(unmeasured))
    assert (gain.latency, gain.quality, gain.smaller) == (None, None, 4)


def test_a_speedup_over_another_baseline_is_not_taken() -> None:
    other = {**INT8, "speedup": {**INT8["speedup"], "against": "elsewhere"}}
    [gain] = gains(document(other))
    assert gain.latency is None


def test_what_failed_or_was_left_out_is_in_no_comparison() -> None:
    failed = {**INT8, "artifact": None}
    assert gains(document(failed, {"id": "left-out", "status": "skipped", "reasons": []})) == []


def test_gains_stand_by_step_and_the_largest_of_each_comes_first() -> None:
    found = gains(document(VINO, INT8, INT8_VINO))
    assert [gain.step for gain in found] == ["vino instead of ort", "vino instead of ort", "int8", "int8"]
    assert [gain.after for gain in found if gain.step == "int8"] == ["int8-vino", "int8-ort"]
