"""Graphs of jobs: order, what a failure costs, and how a run is broken off."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import EdgeoptError, InputError, StageError, WorkerCrashed
from edgeopt.schedule import Done, Job, run_all


class Told:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.reused: dict[str, bool] = {}
        self.seconds: dict[str, float] = {}

    def started(self, job: str) -> None:
        self.events.append(("started", job))

    def progressed(self, job: str, fraction: float | None, text: str) -> None:
        self.events.append(("progressed", job))

    def finished(self, job: str, *, reused: bool, seconds: float) -> None:
        self.events.append(("finished", job))
        self.reused[job], self.seconds[job] = reused, seconds

    def failed(self, job: str, error: EdgeoptError) -> None:
        self.events.append(("failed", job))

    def of(self, kind: str) -> list[str]:
        return [job for event, job in self.events if event == kind]


def job(name: str, *needs: str, run: Callable[[Mapping[str, Any]], Any] = lambda values: None, **more: Any) -> Job:
    return Job(name, needs, lambda values: Done(run(values), reused=False), **more)


def failing(error: BaseException) -> Callable[[Mapping[str, Any]], Any]:
    def run(_: Mapping[str, Any]) -> Any:
        raise error

    return run


def never() -> None:
    raise AssertionError("stop was called")


def run(jobs: Sequence[Job], told: Told | None = None, at_once: int = 2) -> dict[str, Any]:
    found = run_all(jobs, at_once=at_once, observer=told or Told(), stop=never)
    return {name: done.value if isinstance(done, Done) else done for name, done in found.items()}


def test_values_go_from_job_to_job_whatever_their_order() -> None:
    found = run(
        [
            job("c", "a", "b", run=lambda values: values["a"] + values["b"]),
            job("b", "a", run=lambda values: values["a"] * 10),
            job("a", run=lambda values: 1),
        ]
    )
    assert found == {"a": 1, "b": 10, "c": 11}


def test_no_jobs_are_no_work() -> None:
    assert run([]) == {}


graphs = st.integers(1, 8).flatmap(
    lambda count: st.tuples(*[st.sets(st.integers(0, max(0, i - 1))).map(frozenset) for i in range(count)])
)


@given(graphs, st.integers(1, 3), st.sets(st.integers(0, 7)))
def test_each_job_runs_once_after_all_that_it_needs(
    graph: Sequence[frozenset[int]], at_once: int, bad: set[int]
) -> None:
    told = Told()
    jobs = [
        job(str(i), *(str(n) for n in needs if n < i), run=failing(StageError("bad")) if i in bad else dict)
        for i, needs in enumerate(graph)
    ]
    found = run(jobs[::-1], told, at_once)
    assert set(found) == {j.id for j in jobs}
    for one in jobs:
        ran = told.of("started").count(one.id)
        doomed = any(isinstance(found[need], StageError) for need in one.needs)
        assert ran == (0 if doomed else 1)
        assert isinstance(found[one.id], StageError) == (doomed or int(one.id) in bad)
        if ran:
            began = told.events.index(("started", one.id))
            assert all(told.events.index(("finished", need)) < began for need in one.needs)


def test_jobs_run_side_by_side_up_to_the_limit() -> None:
    together = threading.Barrier(2, timeout=10)
    run([job("a", run=lambda values: together.wait()), job("b", run=lambda values: together.wait())], at_once=2)
    running, most = [], []

    def alone(_: Mapping[str, Any]) -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()

    run([job(str(i), run=alone) for i in range(4)], at_once=1)
    assert max(most) == 1


def test_a_failure_costs_what_needs_it_and_nothing_else() -> None:
    told, error = Told(), WorkerCrashed("out of memory")
    found = run(
        [
            job("bad", run=failing(error)),
            job("after", "bad"),
            job("after that", "after"),
            job("fine", run=lambda values: 5),
        ],
        told,
    )
    assert found == {"bad": error, "after": error, "after that": error, "fine": 5}
    assert told.of("failed") == ["bad", "after", "after that"]
    assert "after" not in told.of("started")


def test_what_is_hoped_for_is_waited_for_and_not_needed() -> None:
    jobs = [
        job("report", hopes=("good", "bad"), run=lambda values: dict(values)),
        job("good", run=lambda values: time.sleep(0.02) or 1),
        job("bad", run=failing(StageError("no"))),
    ]
    assert run(jobs)["report"] == {"good": 1}


@pytest.mark.parametrize(
    ("error", "fatal"),
    [(StageError("no"), True), (InputError("wrong"), False), (RuntimeError("a bug"), False), (SystemExit(3), False)],
)
def test_what_ends_everything_stops_the_rest_and_is_raised(error: BaseException, fatal: bool) -> None:
    stopped, told = threading.Event(), Told()
    jobs = [
        job("long", run=lambda values: stopped.wait(10)),
        job("bad", run=failing(error), fatal=fatal),
        job("never", "long"),
    ]
    with pytest.raises(type(error)):
        run_all(jobs, at_once=2, observer=told, stop=stopped.set)
    assert stopped.is_set()
    assert "never" not in told.of("started")


CTRL_C = """
import signal, threading, time
from edgeopt.errors import StageError
from edgeopt.schedule import Done, Job, run_all

stopped, started = threading.Event(), []

class Watch:
    def started(self, job): started.append(job)
    def progressed(self, job, fraction, text): pass
    def finished(self, job, *, reused, seconds): pass
    def failed(self, job, error): pass

def interrupted(values):
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    if not stopped.wait(10):
        raise StageError("nobody stopped this")
    return Done(None, False)

begun = time.monotonic()
try:
    run_all([Job("a", (), interrupted), Job("b", ("a",), interrupted)], at_once=2, observer=Watch(), stop=stopped.set)
except KeyboardInterrupt:
    print("interrupted", stopped.is_set(), started, time.monotonic() - begun < 5)
"""


def test_ctrl_c_stops_what_is_running_and_starts_nothing_more() -> None:
    # In a process of its own: a real SIGINT in one that has loaded OpenVINO corrupts its memory.
    done = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "interrupted True ['a'] True\n", done.stderr


def test_what_was_there_already_took_no_time() -> None:
    told = Told()
    jobs = [
        Job("found", (), lambda values: Done(1, reused=True, seconds=9.0)),
        job("made", run=lambda values: time.sleep(0.01)),
    ]
    run(jobs, told)
    assert told.reused == {"found": True, "made": False}
    assert told.seconds["found"] == 0
    assert told.seconds["made"] >= 0.01


@pytest.mark.parametrize(
    "jobs", [[job("a", "missing")], [job("a", "b"), job("b", "a")], [job("a", hopes=("missing",))]]
)
def test_jobs_that_can_never_run_are_a_bug_and_not_a_hang(jobs: list[Job]) -> None:
    with pytest.raises(ValueError, match="can never run: a"):
        run_all(jobs, at_once=1, observer=Told(), stop=lambda: None)


def test_of_the_jobs_that_could_begin_that_of_the_lowest_rank_does() -> None:
    told = Told()
    run([job("a", rank=3), job("b", rank=1), job("c", "b", rank=2), job("d", "a", rank=0)], told, at_once=1)
    assert told.of("started") == ["b", "c", "a", "d"]


def test_no_more_jobs_run_at_once_than_were_allowed() -> None:
    running, most = set(), []

    def busy(name: str) -> Callable[[Mapping[str, Any]], None]:
        def run(_: Mapping[str, Any]) -> None:
            running.add(name)
            most.append(len(running))
            time.sleep(0.01)
            running.remove(name)

        return run

    run([job(name, run=busy(name)) for name in "abcdefgh"], at_once=3)
    assert max(most) == 3
