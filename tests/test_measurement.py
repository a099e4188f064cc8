"""Percentiles, ratios and verdicts: exact where they can be, else by simulation with fixed seeds."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.conditions import Disturbance, EnergyCounter, Machine, MachineState, disturbance
from edgeopt.errors import InputError, UnlikeMachines
from edgeopt.measurement import Block, Measurement, Memory, compare, is_precise, latency, ratio, require_alike
from edgeopt.statistics import Ratio, least_samples, paired_drop, percentile, through, verdict

MACHINE = Machine("A processor", "x86_64", 4, 8 << 30, "performance", "Linux 6.1", "3.11.2", ("avx2",))


def block(latencies, switched=()):
    return Block(tuple(latencies), tuple(i in switched for i in range(len(latencies))), sum(latencies), sum(latencies))


def noisy_rounds(seed, scale, rounds=16, calls=20):
    """Rounds whose level wanders, as a shared machine's does. The wandering is the same for the same seed."""
    wander, noise = random.Random(seed), random.Random(f"{seed} {scale}")
    levels = [wander.uniform(1, 3) for _ in range(rounds)]
    return [block([int(scale * level * noise.lognormvariate(0, 0.05)) for _ in range(calls)]) for level in levels]


def measurement(**changes):
    rounds = (block([100, 110, 120], switched={1}), block([105, 115, 125]))
    values = Measurement(
        "a" * 64, "onnxruntime", "1.31", 1, MACHINE, rounds, 12, True, 5_000, 900, None, 4096, ("busy",)
    )
    went_on = Disturbance(0.1, 0.0, others=0.5, frequency_hz=(10**9, 2 * 10**9), power_watts={"VDD_IN": 4.5})
    values = replace(values, memory=Memory(100, 200, 50, 60), conditions=went_on)
    return replace(values, **changes)


def test_least_samples_are_the_textbook_ones():
    assert least_samples(0.95, 0.95) == 59
    assert least_samples(0.99, 0.99) == 459


def test_p99_is_absent_with_a_reason_below_459_samples():
    assert percentile(range(458), 0.99) == (None, "458 samples cannot bound it: 459 are needed")
    found, reason = percentile(range(459), 0.99)
    assert reason is None
    assert found.value == 454
    assert found.low < 454 < found.high


def test_p95_has_no_upper_bound_at_59_samples():
    found, reason = percentile(range(59), 0.95)
    assert found.value == 56
    assert found.low is not None
    assert found.high is None
    assert reason == "59 samples give no upper bound: 72 are needed"
    assert percentile(range(72), 0.95)[0].high == 71


def test_no_samples_give_no_percentile():
    assert percentile([], 0.5) == (None, "there are no samples")


@pytest.mark.parametrize(("q", "count"), [(0.5, 30), (0.9, 120), (0.95, 200), (0.99, 600)])
def test_the_interval_of_a_percentile_covers_the_truth_95_times_of_100(q, count):
    draw = random.Random(1)
    truth = 1_000_000 * q
    runs = 400
    covered = 0
    for _ in range(runs):
        found, _reason = percentile([int(draw.random() * 1_000_000) for _ in range(count)], q)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / runs <= 0.995


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=600), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_bounds_enclose_the_value_and_are_samples(samples, q):
    found, reason = percentile(samples, q)
    if found is None:
        assert reason
        return
    assert found.value in samples
    assert found.low is None or (found.low <= found.value and found.low in samples)
    assert found.high is None or (found.high >= found.value and found.high in samples)
    assert (reason is not None) == (found.low is None or found.high is None)


def test_switched_out_calls_are_kept_apart_and_counted():
    rounds = [block([100] * 9 + [9000], switched={9}) for _ in range(10)]
    found = latency(rounds)
    assert (found.samples, found.clean_samples, found.basis) == (100, 90, "clean")
    assert found.percentiles["p95"].value == 100
    assert found.of_all["p95"].value == 9000


def test_too_few_clean_samples_fall_back_to_all():
    rounds = [block([100] * 20, switched=range(19)) for _ in range(16)]
    found = latency(rounds)
    assert (found.samples, found.clean_samples, found.basis) == (320, 16, "all")


def test_latency_says_why_a_percentile_is_missing():
    found = latency([block([100] * 30)]).to_json()
    assert found["p99"] is None
    assert "459" in found["reasons"]["p99"]
    assert found["p50"] == {"value": 100, "low": 100, "high": 100}
    assert found["p90"]["high"] is None


def test_ratio_is_of_the_same_round_whatever_the_machine_does():
    found = ratio(noisy_rounds(3, 2_000_000), noisy_rounds(3, 1_000_000))
    assert found.value == pytest.approx(2.0, rel=0.02)
    assert found.low < 2.0 < found.high
    assert found.high / found.low < 1.05
    assert found.basis == "clean"


def test_the_interval_of_a_ratio_covers_the_truth():
    covered = 0
    for seed in range(150):
        found = ratio(noisy_rounds(seed, 1_500_000), noisy_rounds(seed, 1_000_000), seed=seed)
        covered += found.low <= 1.5 <= found.high
    assert 0.88 <= covered / 150 <= 1.0


def test_ratio_leaves_out_rounds_without_clean_calls():
    good = [(block([200] * 5), block([100] * 5))] * 10
    bad = [(block([9000] * 5, switched=range(5)), block([100] * 5))] * 6
    found = ratio(*zip(*good + bad))
    assert (found.value, found.rounds, found.basis) == (2.0, 10, "clean")


def test_ratio_of_all_calls_says_so():
    rounds = [block([200] * 5, switched=range(4))] * 16
    found = ratio(rounds, [block([100] * 5)] * 16)
    assert (found.value, found.rounds, found.basis) == (2.0, 16, "all")


def test_ratio_is_the_same_for_the_same_samples():
    a, b = noisy_rounds(5, 1_100_000), noisy_rounds(5, 1_000_000)
    assert ratio(a, b) == ratio(a, b)


def test_rounds_that_one_has_alone_are_left_out():
    found = ratio(noisy_rounds(1, 2000), noisy_rounds(1, 1000)[:9])
    assert found == ratio(noisy_rounds(1, 2000)[:9], noisy_rounds(1, 1000)[:9])
    assert found.rounds == 9
    with pytest.raises(InputError, match="needs rounds of both"):
        ratio(noisy_rounds(1, 1000), [])


@pytest.mark.parametrize(
    ("low", "value", "high", "expected"),
    [
        (1.9, 2.0, 2.1, "faster"),
        (0.4, 0.5, 0.6, "slower"),
        (0.99, 1.0, 1.01, "tie"),
        (1.01, 1.04, 1.06, "tie"),
        (0.7, 1.1, 1.5, "inconclusive"),
    ],
)
def test_verdicts(low, value, high, expected):
    assert verdict(Ratio(value, low, high, "clean", 16)).verdict == expected


def test_what_the_twin_showed_is_not_claimed():
    speedup = Ratio(1.06, 1.05, 1.07, "clean", 16)
    assert verdict(speedup).verdict == "faster"
    assert verdict(speedup, twin=Ratio(0.92, 0.90, 0.94, "clean", 16)).verdict == "tie"


def test_no_verdict_without_clean_samples():
    switched = [block([200] * 5, switched=range(5))] * 16
    found = compare(switched, [block([100] * 5)] * 16)
    assert found.verdict == "inconclusive"
    assert "switched out" in found.reason


def test_no_verdict_from_five_rounds():
    found = compare([block([200] * 5)] * 5, [block([100] * 5)] * 5)
    assert (found.verdict, found.speedup.low) == ("inconclusive", None)
    assert found.reason == "5 rounds are too few: 6 are needed"


def test_equal_processes_are_seldom_called_different():
    verdicts = [compare(noisy_rounds(s, 1_000_000), noisy_rounds(s, 1_000_001)).verdict for s in range(60)]
    assert verdicts.count("faster") + verdicts.count("slower") == 0


def stopped(seed, scale):
    """Rounds as a session takes them: 16, then more until the speed-up is precise, 32 at the most."""
    a, b = noisy_rounds(seed, scale, rounds=32), noisy_rounds(seed, 1_000_000, rounds=32)
    count = next((n for n in range(16, 32) if is_precise(a[:n], b[:n])), 32)
    return a[:count], b[:count]


def test_stopping_when_it_is_precise_favours_neither_side():
    """The interval covers the truth as often as after a fixed number of rounds, and equals are not called different."""
    covered = sum(
        found.low <= 1.1 <= found.high for found in (ratio(*stopped(seed, 1_100_000), seed=seed) for seed in range(120))
    )
    assert covered >= 0.88 * 120
    assert {compare(*stopped(seed, 1_000_001)).verdict for seed in range(40)} <= {"tie", "inconclusive"}


def test_a_speed_up_is_precise_when_enough_clean_rounds_agree():
    steady = [block([200] * 5)] * 8
    assert is_precise(steady, [block([100] * 5)] * 8)
    assert not is_precise(steady[:5], [block([100] * 5)] * 5)
    assert not is_precise(steady, [block([100] * 5, switched=range(5))] * 8)
    assert not is_precise(steady, [block([90 + 4 * i] * 5) for i in range(8)])


def test_a_disturbed_round_counts_for_nothing_and_is_told():
    calm, hot = block([200] * 5), replace(block([900] * 5), disturbed=("throttled",))
    found = ratio([calm] * 10 + [hot] * 4, [block([100] * 5)] * 14)
    assert (found.value, found.rounds, found.basis) == (2.0, 10, "clean")
    worse = compare([calm] * 5 + [hot] * 9, [block([100] * 5)] * 14)
    assert worse.verdict == "inconclusive"
    assert worse.reason == "in 9 of 14 rounds the processor slowed itself down (heat or power)"


def test_a_measurement_survives_its_line():
    kept = measurement()
    line = kept.to_line()
    assert "\n" not in line
    assert Measurement.from_line(line) == kept


def test_summaries_are_never_read_back():
    value = measurement().to_json()
    value["latency_ns"]["p50"] = {"value": 1, "low": 1, "high": 1}
    assert Measurement.from_json(value).latency.p50.value == median([100, 105, 110, 115, 120, 125]) - 2.5


def test_throughput_is_calls_over_the_time_of_their_blocks():
    assert measurement().throughput_per_s == pytest.approx(6e9 / 675)


def test_a_measurement_of_another_schema_is_refused():
    with pytest.raises(InputError, match="schema 2"):
        Measurement.from_json({**measurement().to_json(), "schema": 2})


@pytest.mark.parametrize(
    "change", [{"cpu": "Another"}, {"cores": 2}, {"governor": "powersave"}, {"isa": ()}, {"memory_bytes": 4 << 30}]
)
def test_unlike_machines_refuse_to_be_compared(change):
    other = measurement(machine=replace(MACHINE, **change))
    with pytest.raises(UnlikeMachines, match="unlike machines"):
        require_alike(measurement(), other)


def test_a_newer_kernel_is_the_same_machine():
    require_alike(measurement(), measurement(machine=replace(MACHINE, os="Linux 6.9", memory_bytes=(8 << 30) - 4096)))


def test_unlike_threads_refuse_to_be_compared():
    with pytest.raises(UnlikeMachines, match="threads: 1 and 2"):
        require_alike(measurement(), measurement(threads=2))


def test_machine_survives_json():
    assert Machine.from_json(json.loads(json.dumps(MACHINE.to_json()))) == MACHINE


def test_disturbance_is_a_share_of_the_time_between():
    before = MachineState(time_ns=0, pressure_us=100, steal_ticks=10, total_ticks=1000)
    after = MachineState(time_ns=1_000_000_000, pressure_us=250_100, steal_ticks=30, total_ticks=1200)
    found = disturbance(before, after)
    assert (found.pressure, found.steal) == (0.25, 0.1)


def test_what_others_used_is_what_was_in_use_without_ones_own():
    before = MachineState(time_ns=0, total_ticks=1000, busy_ticks=500, own_ticks=100)
    after = MachineState(time_ns=10**9, total_ticks=1200, busy_ticks=640, own_ticks=200)
    assert disturbance(before, after).others == 0.2
    assert disturbance(before, replace(after, own_ticks=None)).others is None


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({}, ()),
        ({"throttled": 4}, ("throttled",)),
        ({"swapped_pages": 8}, ("swapped",)),
        ({"steal_ticks": 60}, ("stolen",)),
    ],
)
def test_what_disturbs_a_round(change, reasons):
    before = MachineState(0, throttled=3, swapped_pages=7, steal_ticks=10, total_ticks=1000, frequency_hz=10**9)
    after = replace(before, **{"time_ns": 10**9, "total_ticks": 1200, **change})
    assert disturbance(before, after).reasons == reasons


def test_an_energy_counter_that_begins_again_is_counted_on():
    before = EnergyCounter(((900, 1000), (10, 1000)))
    assert EnergyCounter(((950, 1000), (30, 1000))).since(before) == 70
    assert EnergyCounter(((50, 1000), (10, 1000))).since(before) == 150


def test_energy_is_by_inference_where_it_was_read():
    rounds = (replace(block([100] * 4), energy_uj=8_000), replace(block([100] * 4), energy_uj=16_000), block([100] * 4))
    assert measurement(rounds=rounds).energy_uj_per_inference == 3_000
    assert measurement().energy_uj_per_inference is None


def test_disturbance_that_cannot_be_read_is_unknown():
    found = disturbance(MachineState(time_ns=0), MachineState(time_ns=10**9))
    assert (found.pressure, found.steal, found.temperature_rise_c) == (None, None, None)


def test_paired_drop_follows_agresti_and_min():
    found = paired_drop(both=900, only_base=40, only_candidate=20, neither=40)
    assert found.value == pytest.approx(0.02)
    n, b, c = 1002, 40.5, 20.5
    spread = 1.959964 * ((b + c) - (b - c) ** 2 / n) ** 0.5 / n
    assert found.low == pytest.approx((b - c) / n - spread)
    assert found.high == pytest.approx((b - c) / n + spread)


def test_paired_drop_of_equal_answers_is_nought_with_an_interval():
    found = paired_drop(100, 0, 0, 0)
    assert found.value == 0.0
    assert found.low < 0.0 < found.high


def test_paired_drop_covers_the_truth():
    draw = random.Random(2)
    covered, runs = 0, 400
    for _ in range(runs):
        counts = [0, 0, 0, 0]
        for _sample in range(150):
            counts[draw.choices(range(4), (0.85, 0.06, 0.02, 0.07))[0]] += 1
        found = paired_drop(*counts)
        covered += found.low <= 0.04 <= found.high
    assert 0.93 <= covered / runs <= 0.99


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.integers(0, 50)] * 4).filter(any))
def test_paired_drop_is_inside_its_interval(counts):
    found = paired_drop(*counts)
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_paired_drop_needs_samples():
    with pytest.raises(InputError):
        paired_drop(0, 0, 0, 0)


def test_two_that_never_took_turns_are_compared_through_their_baseline():
    slow, fast = (Ratio(value, value * 0.98, value * 1.02, "clean", 16) for value in (2.0, 5.0))
    found = through(slow, fast)
    assert found.value == pytest.approx(2.5)
    assert 2.5 / 1.03 < found.low < 2.5 / 1.02 and 2.5 * 1.02 < found.high < 2.5 * 1.03
    assert verdict(found).verdict == "faster"
    assert through(slow, replace(fast, low=None, high=None)).low is None
    assert through(slow, replace(fast, basis="all")).basis == "all"
