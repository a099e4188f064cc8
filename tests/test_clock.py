"""The limit on a run's wall time: what may be begun, and for how long."""

from __future__ import annotations

import pytest

from edgeopt import clock
from edgeopt.clock import Clock, Work
from edgeopt.errors import NoTimeLeft

TRAINING = Work("distill", (("compile tflite", "quality tflite"), ("compile openvino", "quality openvino")))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock on the wall that is turned by hand."""
    shown = [1000.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: shown[0])
    return shown


def test_without_a_limit_everything_may_take_as_long_as_it_likes(now: list[float]) -> None:
    free = Clock(None, "", 1.0)
    now[0] += 1e9
    assert free.begin(TRAINING) is None
    assert not free.limited


def test_what_was_never_done_is_begun_while_any_time_is_left(now: list[float]) -> None:
    found = Clock(60.0, "--time 1m", 2.0)
    now[0] += 57.9
    assert found.begin(TRAINING) == pytest.approx(0.1)
    now[0] += 0.1
    with pytest.raises(NoTimeLeft, match="no time left: --time 1m"):
        found.begin(TRAINING)


def test_time_to_measure_all_that_come_first_is_kept(now: list[float]) -> None:
    found = Clock(60.0, "", 5.0)
    assert found.begin(Work("compile openvino", candidates=10)) == pytest.approx(10.0)
    with pytest.raises(NoTimeLeft):
        found.begin(Work("compile openvino", candidates=12))


def test_what_would_take_too_long_as_its_like_did_is_not_begun(now: list[float]) -> None:
    found = Clock(60.0, "", 0.0)
    found.ended(TRAINING, 40.0)
    found.ended(TRAINING, 10.0)
    assert found.begin(TRAINING) == pytest.approx(60.0)
    now[0] += 21
    with pytest.raises(NoTimeLeft):
        found.begin(TRAINING)
    assert found.begin(Work("quantize int8")) == pytest.approx(39.0)


def test_time_for_the_shortest_way_to_a_candidate_is_kept(now: list[float]) -> None:
    found = Clock(60.0, "", 0.0)
    for kind, seconds in {"compile tflite": 50, "compile openvino": 8, "quality openvino": 4}.items():
        found.ended(Work(kind), seconds)
    assert found.begin(TRAINING) == pytest.approx(48.0)


def test_a_part_of_a_run_has_its_share_of_the_time(now: list[float]) -> None:
    found = Clock(60.0, "", 0.0)
    with found.part(0.5):
        assert found.begin(TRAINING) == pytest.approx(30.0)
    assert found.begin(TRAINING) == pytest.approx(60.0)
