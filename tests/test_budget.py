"""Limits held against values, and the choice among candidates."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.budget import LATENCY_CLASSES_NS, QUANTITIES, Budget, Choice, Interval, Limit, Scored, choose, judge
from edgeopt.statistics import paired_drop

MS = 10**6
MIB = 2**20


def scored(name: str, p50: float | None = MS, size: float | None = MIB, steps: int = 1, **more: float | None) -> Scored:
    values = {"latency p50": p50, "size": size, **{key.replace("_", " "): value for key, value in more.items()}}
    return Scored(name, values, steps)


def by_value(candidates: list[Scored]):
    """Two candidates tie where they are within 10 % of each other."""
    values = {candidate.id: candidate.values for candidate in candidates}

    def compare(quantity: str, a: str, b: str) -> str:
        one, other = values[a][quantity], values[b][quantity]
        if one is None or other is None:
            return "inconclusive"
        if abs(one - other) <= 0.1 * max(abs(one), abs(other)):
            return "tie"
        return "faster" if (one < other) == QUANTITIES[quantity].lower_is_better else "slower"

    return compare


def choice(candidates: list[Scored], *limits: Limit, prefer: tuple[str, ...] = ("latency p50",)) -> Choice:
    return choose(candidates, Budget(limits, prefer), by_value(candidates))


@pytest.mark.parametrize("name", QUANTITIES)
def test_each_quantity_reads_its_example_and_tells_it_again(name: str) -> None:
    quantity = QUANTITIES[name]
    bound = quantity.parse(quantity.example)
    assert bound > 0 or quantity.example == "0"
    assert str(Limit(name, bound)).startswith(f"{name} {'≤' if quantity.lower_is_better else '≥'} ")


@pytest.mark.parametrize(("name", "nanoseconds"), LATENCY_CLASSES_NS.items())
def test_latency_classes_are_limits(name: str, nanoseconds: int) -> None:
    assert QUANTITIES["latency p95"].parse(name) == nanoseconds


@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("value", [[], {}, None, "fast", 5.5])
def test_what_is_no_limit_is_a_value_error(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"is not|has no unit"):
        QUANTITIES[name].parse(value)


@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        (Limit("latency p50", 5 * MS), 5 * MS, "latency p50 5.00 ms ≤ 5.00 ms"),
        (Limit("latency p50", 5 * MS), 6 * MS, "latency p50 6.00 ms > 5.00 ms (20 % outside)"),
        (Limit("throughput", 100), 100, "throughput 100 /s ≥ 100 /s"),
        (Limit("throughput", 100), 50, "throughput 50 /s < 100 /s (50 % outside)"),
        (Limit("fidelity", 0.98), 0.97, "fidelity 97.00 % < 98.00 % (1.0 % outside)"),
        (Limit("accuracy drop", 0.01), -0.002, "accuracy drop -0.20 points ≤ 1.00 points"),
        (Limit("accuracy drop", 0.0), 0.001, "accuracy drop 0.10 points > 0.00 points"),
        (Limit("sqnr", 20), math.inf, "sqnr exact ≥ 20.0 dB"),
        (Limit("peak memory", 200 * MIB), None, "peak memory was not measured, the limit is 200 MiB"),
    ],
)
def test_a_verdict_says_how_the_value_stands_to_the_limit(limit: Limit, value: float | None, told: str) -> None:
    (verdict,) = judge(Budget((limit,)), {limit.quantity: value})
    assert str(verdict) == told
    assert verdict.passed == ("≤" in told or "≥" in told)


def test_what_was_not_measured_breaks_its_limit_and_no_other() -> None:
    limits = (Limit("latency p50", MS), Limit("peak memory", MIB))
    assert [v.passed for v in judge(Budget(limits), {"latency p50": MS})] == [True, False]
    assert judge(Budget(()), {}) == ()


def test_the_fastest_inside_the_budget_wins() -> None:
    found = choice(
        [
            scored("quick", 1 * MS, accuracy_drop=0.05),
            scored("good", 2 * MS, accuracy_drop=0.0),
            scored("slow", 9 * MS),
        ],
        Limit("accuracy drop", 0.01),
    )
    assert found.winner == "good"
    assert found.rejected == {
        "quick": ("accuracy drop 5.00 points > 1.00 points (400 % outside)",),
        "slow": ("accuracy drop was not measured, the limit is 1.00 points",),
    }


def test_fallbacks_are_ranked_and_the_unmeasured_are_last() -> None:
    found = choice([scored("c", 9 * MS), scored("unknown", None), scored("a", 1 * MS), scored("b", 4 * MS)])
    assert (found.winner, *found.fallbacks) == ("a", "b", "c", "unknown")
    assert found.ties == ()
    assert found.why == "best latency p50 (1.00 ms) of 4 candidates inside the budgets"


def test_more_is_better_for_throughput() -> None:
    assert choice([scored("a", throughput=10), scored("b", throughput=90)], prefer=("throughput",)).winner == "b"


def test_a_candidate_that_failed_is_rejected_with_its_error() -> None:
    found = choice([Scored("broken", {"latency p50": 1}, 1, error="out of memory"), scored("fine")])
    assert found.winner == "fine"
    assert found.rejected == {"broken": ("out of memory",)}


def test_a_tie_is_broken_by_what_is_preferred_next() -> None:
    tied = [scored("quick", 100, 1, peak_memory=9), scored("lean", 104, 5, peak_memory=3), scored("slow", 999, 1)]
    found = choice(tied, prefer=("latency p50", "peak memory"))
    assert (found.winner, found.ties, found.fallbacks) == ("lean", ("quick",), ("quick", "slow"))
    assert "ties with quick, decided by peak memory" in found.why


def test_then_by_size_then_by_fewer_steps_then_by_name() -> None:
    assert choice([scored("large", 100, 9), scored("small", 105, 1)]).winner == "small"
    found = choice([scored("many", 100, steps=3), scored("few", 105, steps=2)])
    assert found.winner == "few"
    assert "decided by fewer steps" in found.why
    found = choice([scored("b", 100), scored("a", 105)])
    assert found.winner == "a"
    assert "decided by name" in found.why


def test_the_reason_names_what_parted_the_winner_from_the_next() -> None:
    found = choice([scored("a", 100, 1, steps=2), scored("b", 100, 1, steps=1), scored("c", 100, 5)])
    assert found.winner == "b"
    assert "decided by fewer steps" in found.why


def test_what_cannot_be_told_apart_is_not_a_tie() -> None:
    found = choose([scored("a", 100, 9), scored("b", 101, 1)], Budget(), lambda quantity, a, b: "inconclusive")
    assert (found.winner, found.ties) == ("a", ())


def test_nothing_measured_leaves_the_smaller() -> None:
    found = choice([scored("large", None, 9), scored("small", None, 1)])
    assert (found.winner, found.ties) == ("small", ("large",))
    assert "was not measured" in found.why


def test_the_nearest_is_told_when_nothing_is_inside() -> None:
    far, near = scored("far", 9 * MS, size=MIB), scored("near", 2 * MS, size=3 * MIB)
    unknown = scored("unknown", None, size=MIB)
    found = choice([far, near, unknown], Limit("latency p50", MS), Limit("size", 2 * MIB))
    assert (found.winner, found.nearest, found.fallbacks) == (None, "near", ())
    assert set(found.rejected) == {"far", "near", "unknown"}
    assert len(found.rejected["near"]) == 2


def test_nothing_is_nearest_where_nothing_was_measured() -> None:
    assert choice([scored("a", None)], Limit("latency p50", MS)).nearest is None
    assert choice([]).winner is None


numbers = st.none() | st.integers(0, 30).map(float)
candidates = st.lists(
    st.builds(
        scored,
        st.text("abcdef", min_size=1, max_size=3),
        p50=numbers,
        size=numbers,
        steps=st.integers(1, 3),
        throughput=numbers,
        accuracy_drop=numbers,
    ),
    max_size=8,
    unique_by=lambda candidate: candidate.id,
)
names = st.sampled_from(["latency p50", "size", "throughput", "accuracy drop"])
budgets = st.builds(
    Budget,
    st.lists(st.builds(Limit, names, st.integers(0, 30)), max_size=3).map(tuple),
    st.lists(names, min_size=1, max_size=3, unique=True).map(tuple),
)


@given(candidates, budgets)
def test_the_winner_is_inside_and_nothing_inside_is_clearly_better(found: list[Scored], budget: Budget) -> None:
    compare = by_value(found)
    result = choose(found, budget, compare)
    inside = {c.id: c for c in found if all(verdict.passed for verdict in judge(budget, c.values))}
    assert set(result.rejected) == {c.id for c in found} - set(inside)
    assert (result.winner is None) == (not inside)
    assert result.nearest is None or result.winner is None
    if result.winner is None:
        return
    assert {result.winner, *result.fallbacks} == set(inside)
    assert result.winner not in result.fallbacks
    first, sign = budget.prefer[0], 1 if QUANTITIES[budget.prefer[0]].lower_is_better else -1
    won = inside[result.winner].values[first]
    for other in inside.values():
        value = other.values[first]
        if other.id != result.winner and value is not None:
            assert won is not None
            assert sign * won <= sign * value or result.winner in _tied_with_best(inside, first, sign, compare)


def _tied_with_best(inside: dict[str, Scored], quantity: str, sign: int, compare) -> set[str]:
    """The candidates that tie with the best of them by value."""
    measured = [c for c in inside.values() if c.values[quantity] is not None]
    top = min(measured, key=lambda c: (sign * (c.values[quantity] or 0), c.steps, c.id))
    return {c.id for c in measured if compare(quantity, top.id, c.id) == "tie"}


@given(candidates, budgets, st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(found: list[Scored], budget: Budget, random) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    assert choose(shuffled, budget, by_value(found)) == choose(found, budget, by_value(found))


def test_what_could_not_be_told_from_the_best_is_said():
    fast, slow = scored("fast", 1.0), scored("slow", 2.0)
    choice = choose([fast, slow], Budget(), lambda quantity, a, b: "inconclusive")
    assert choice.winner == "fast"
    assert choice.unclear == ("slow",)
    assert "slow could not be told" in choice.why


def drop(value: float, low: float, high: float, samples: int = 500, bound: float = 0.01):
    limits = (Limit("accuracy drop", bound),)
    intervals = {"accuracy drop": Interval(low, high, samples)}
    (verdict,) = judge(Budget(limits), {"accuracy drop": value}, intervals)
    return verdict


def test_a_drop_is_inside_or_outside_with_its_whole_interval():
    assert (drop(0.0, -0.005, 0.008).passed, drop(0.0, -0.005, 0.008).undecided) == (True, False)
    assert (drop(0.05, 0.02, 0.08).passed, drop(0.05, 0.02, 0.08).undecided) == (False, False)


def test_an_undecided_drop_says_how_many_samples_would_decide():
    found = drop(0.0, -0.02, 0.02)
    assert (found.passed, found.undecided, found.needed) == (True, True, 2000)
    assert "(undecided: about 2000 samples would decide, 500 were taken)" in str(found)
    assert (drop(0.02, -0.01, 0.05).passed, drop(0.02, -0.01, 0.05).needed) == (False, 4500)
    assert "no number of samples would decide" in str(drop(0.01, -0.01, 0.03))


@pytest.mark.parametrize(("only_base", "only_candidate"), [(20, 18), (22, 12), (30, 28)])
def test_so_many_samples_bring_the_interval_to_the_limit(only_base, only_candidate):
    """Of paired answers in the proportions that were seen: a tenth more decide, three quarters of them do not."""

    def judged(samples: float):
        b, c = round(only_base * samples / 500), round(only_candidate * samples / 500)
        found = paired_drop(round(samples) - b - c, b, c, 0)
        return drop(found.value, found.low, found.high, round(samples))

    few = judged(500)
    assert few.undecided
    assert not judged(1.1 * few.needed).undecided
    assert judged(0.75 * few.needed).undecided


def test_the_choice_says_what_is_undecided_of_the_winner():
    one = Scored("one", {"latency p50": MS, "size": MIB, "accuracy drop": 0.0}, 1)
    one = replace(one, intervals={"accuracy drop": Interval(-0.02, 0.02, 500)})
    found = choose([one], Budget((Limit("accuracy drop", 0.01),)), lambda *_: "tie")
    assert found.winner == "one"
    assert found.why.endswith(
        "accuracy drop 0.00 points ≤ 1.00 points (undecided: about 2000 samples would decide, 500 were taken)"
    )
