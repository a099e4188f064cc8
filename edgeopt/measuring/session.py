"""Measures candidates against each other: a process for each, blocks of inferences in random order, round after round.

The candidates of a group are loaded and warmed one after the other, undisturbed by each other, and then take turns: in
every round each runs one block. So whatever the machine does meanwhile, all of them meet it, and ratios are taken
within a round. The baseline runs in every group, and a second process of it, its twin, shows what difference means
nothing (an A/A test). A candidate that crashes, hangs or takes too much memory is recorded with its error, and
the others go on.

Rounds go on, up to a limit, for those whose speed-up is not known to within 5 %: a round in which the machine was
disturbed counts for nothing, and so is made up for. What ends it is the width of the interval, never what it says, so
that stopping favours neither side (fixed-width sequential intervals: Chow and Robbins 1965, Annals of Mathematical
Statistics 36, 457-462).

This module knows nothing of accuracy, nor of what the candidates are. It starts no process that outlives it.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeopt.artifact import TensorSpec
from edgeopt.caveats import caveats
from edgeopt.conditions import Disturbance, Machine, MachineState, disturbance
from edgeopt.errors import EdgeoptError, InputError, Interrupted, WorkerCrashed
from edgeopt.measurement import (
    Block,
    Measurement,
    Memory,
    compare,
    is_precise,
    ratio,
)
from edgeopt.statistics import LEAST_ROUNDS, Comparison, Ratio, through, verdict
from edgeopt.worker import Limits, Worker, resident_bytes

JOB = "edgeopt.measuring.candidate:run"
TWIN = "~twin"  # its key beside the ids of candidates
SETTLE_SECONDS = 0.005  # runtimes' threads spin for a moment after an inference, at the cost of the next candidate

DEFAULT_LIMITS = Limits(seconds=120.0)

OnEvent = Callable[[str, str, Optional[float]], None]
Observe = Callable[[Sequence[int]], MachineState]  # of the processes that are measured, by their ids


@dataclass(frozen=True)
class Candidate:
    """What to measure: the file `main` below `folder`, opened by `backend` with the settings `runtime`.

    `inputs` are the artifact's, `python` the interpreter to run it in, None for this one. `limits.seconds` is for
    loading and warming up, and again for each block; `limits.memory_bytes` for the whole process. `samples` is its own
    folder of samples, None for the session's.
    """

    id: str
    artifact: str
    backend: str
    folder: Path
    main: str
    inputs: Tuple[TensorSpec, ...]
    runtime: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    size_bytes: Optional[int] = None
    python: Optional[str] = None
    limits: Limits = DEFAULT_LIMITS
    env: Mapping[str, str] = field(default_factory=dict)
    samples: Optional[Path] = None


@dataclass(frozen=True)
class SessionOptions:
    """How to measure. `samples` is a folder that `edgeopt.samples.Samples` reads; `feeds` of them are run in turn.

    There are `rounds` rounds, and up to `most_rounds` (None: twice as many) for those that are not precise by then. A
    block lasts `block_ns` and at least `least_calls` calls. `baseline` is the id of the candidate that the others are
    compared with, the first where it is None. `group` is how many are measured at once, the baseline included.
    """

    samples: Path
    baseline: Optional[str] = None
    rounds: int = 16
    most_rounds: Optional[int] = None
    block_ns: int = 100_000_000
    least_calls: int = 5
    feeds: int = 8
    group: int = 12
    warm_up_ns: int = 5_000_000_000
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate: a measurement or an error. `speedup` is against the baseline, in the same group."""

    measurement: Optional[Measurement]
    error: Optional[EdgeoptError]
    speedup: Optional[Comparison]
    log: Path


@dataclass(frozen=True)
class Group:
    """Candidates that took turns, with their rounds. `reference` is the one that had a twin, None where it had none."""

    rounds: Mapping[str, Tuple[Block, ...]]
    reference: Optional[str]
    twin: Optional[Ratio]
    disturbance: Disturbance


@dataclass(frozen=True)
class SessionResult:
    """Outcomes by candidate id, in the order in which they were given, and the groups they were measured in."""

    outcomes: Mapping[str, Outcome]
    baseline: str
    groups: Tuple[Group, ...]
    machine: Machine

    def compare(self, a: str, b: str) -> Optional[Comparison]:
        """Whether b is faster than a, through the baseline where they never took turns; None where one has no rounds.

        The baseline is in every group.
        """
        for group in self.groups:
            if a in group.rounds and b in group.rounds:
                return compare(group.rounds[a], group.rounds[b], group.twin)
        over = [self.outcomes[name].speedup if name in self.outcomes else None for name in (a, b)]
        if over[0] is None or over[1] is None:
            return None
        return verdict(through(over[0].speedup, over[1].speedup), margin=max(over[0].margin, over[1].margin))


def run_session(
    candidates: Sequence[Candidate],
    options: SessionOptions,
    log_folder: Path,
    on_event: Optional[OnEvent] = None,
    *,
    machine: Machine,
    observe: Observe,
    stopping: Callable[[], bool] = lambda: False,
) -> SessionResult:
    """Measure all candidates. `machine` and `observe` are `edgeopt.measuring.machine`'s fingerprint() and state.

    `on_event(kind, candidate id, fraction)` is told "load", "ready", "round" and "failed", the fraction being of the
    whole session. Logs are written to `<log_folder>/<id>.log`. Raises Interrupted when `stopping()` says so between
    blocks, and InputError for a wrong list of candidates; what happens to a candidate is never raised.
    """
    ids = [candidate.id for candidate in candidates]
    if not ids or len(set(ids)) != len(ids):
        raise InputError("a session needs candidates, each with an id of its own")
    baseline = ids[0] if options.baseline is None else options.baseline
    if baseline not in ids:
        raise InputError(f"the baseline {baseline!r} is not among the candidates {', '.join(ids)}")
    session = _Session(candidates, baseline, options, log_folder, on_event, machine, observe, stopping)
    return session.run()


class _Session:
    """The state of one session: who is left to measure, and what was found."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        baseline: str,
        options: SessionOptions,
        log_folder: Path,
        on_event: Optional[OnEvent],
        machine: Machine,
        observe: Observe,
        stopping: Callable[[], bool],
    ) -> None:
        self._candidates = {candidate.id: candidate for candidate in candidates}
        self._baseline = baseline
        self._options = options
        self._log_folder = log_folder
        self._on_event = on_event
        self._machine = machine
        self._observe = observe
        self._stopping = stopping
        self._random = random.Random(options.seed)
        self._errors: Dict[str, EdgeoptError] = {}
        self._measurements: Dict[str, Measurement] = {}
        self._finished = 0.0

    def run(self) -> SessionResult:
        waiting = [name for name in self._candidates if name != self._baseline]
        groups: List[Group] = []
        while waiting or not groups:
            groups.append(self._measure_group(waiting))
        return SessionResult(
            outcomes={name: self._outcome(name, groups) for name in self._candidates},
            baseline=self._baseline,
            groups=tuple(groups),
            machine=self._machine,
        )

    def _measure_group(self, waiting: List[str]) -> Group:
        """Takes the names it measures off `waiting`, at least one."""
        options = self._options
        with ExitStack() as stack:
            ready: Dict[str, Mapping[str, Any]] = {}
            workers: Dict[str, Worker] = {}
            reference: Optional[str] = None
            if self._baseline not in self._errors:
                self._load(self._baseline, stack, workers, ready)
            if self._baseline in workers:
                reference = self._baseline
                self._load(self._baseline, stack, workers, ready, twin=True)
            started = 1 if reference else 0
            while waiting and started < max(2, options.group) and (started < 2 or self._has_room(workers)):
                name = waiting.pop(0)
                self._load(name, stack, workers, ready)
                started += 1
                if reference is None and name in workers:
                    reference = name
                    self._load(name, stack, workers, ready, twin=True)
            rounds, between = self._take_turns(workers, reference, len(waiting))
        twin_rounds = rounds.pop(TWIN, None)
        twin = ratio(rounds[reference], twin_rounds) if reference in rounds and twin_rounds else None
        for name, blocks in rounds.items():
            if name not in self._measurements:
                self._measurements[name] = self._measurement(name, blocks, ready[name], between)
        return Group(rounds, reference if twin else None, twin, between)

    def _has_room(self, workers: Mapping[str, Worker]) -> bool:
        """Whether memory is left for two more processes like the largest so far. True where that cannot be read."""
        sizes = [resident_bytes(worker.pid) or 0 for worker in workers.values()]
        available = self._observe(()).available_memory_bytes
        return available is None or available > 2 * max(sizes, default=0)

    def _load(
        self,
        name: str,
        stack: ExitStack,
        workers: Dict[str, Worker],
        ready: Dict[str, Mapping[str, Any]],
        twin: bool = False,
    ) -> None:
        """Start a worker, wait until it is warm. A failure goes to the errors; that of a twin leaves no twin."""
        candidate, key = self._candidates[name], TWIN if twin else name
        self._tell("load", name)
        try:
            worker = stack.enter_context(self._start(candidate, key))
            ready[key] = worker.receive(seconds=candidate.limits.seconds)["ready"]
        except EdgeoptError as error:
            if not twin:
                self._fail(name, error)
            return
        workers[key] = worker
        self._tell("ready", name)

    def _start(self, candidate: Candidate, key: str) -> Worker:
        args = {
            "backend": candidate.backend,
            "main": str(candidate.folder / candidate.main),
            "runtime": dict(candidate.runtime),
            "threads": candidate.threads,
            "inputs": [spec.to_json() for spec in candidate.inputs],
            "samples": str(candidate.samples or self._options.samples),
            "feeds": self._options.feeds,
            "warm_up_ns": self._options.warm_up_ns,
        }
        try:
            return Worker(
                JOB,
                args,
                log=self._log_folder / f"{key}.log",
                limits=Limits(memory_bytes=candidate.limits.memory_bytes),
                python=candidate.python,
                env=candidate.env,
            )
        except OSError as error:
            raise WorkerCrashed(f"the worker process could not be started: {error}") from error

    def _take_turns(
        self, workers: Dict[str, Worker], reference: Optional[str], waiting: int
    ) -> Tuple[Dict[str, Tuple[Block, ...]], Disturbance]:
        """All rounds, and what went on meanwhile. A worker that fails leaves `workers`, and its rounds are dropped."""
        least = self._options.rounds
        most = max(least, self._options.most_rounds or 2 * least) if least >= LEAST_ROUNDS else least
        rounds: Dict[str, List[Block]] = {name: [] for name in workers}
        share = (1 - self._finished) * len(workers) / max(1, len(workers) + waiting)
        pids = [worker.pid for worker in workers.values()]
        first = last = self._observe(pids)
        power: List[Mapping[str, float]] = []
        names, number = list(workers), 0
        while names and number < most:
            self._random.shuffle(names)
            blocks = {name: block for name in names if (block := self._block(name, workers, last, power)) is not None}
            before, last = last, self._observe(pids)
            reasons = disturbance(before, last).reasons
            for name, block in blocks.items():
                rounds[name].append(replace(block, disturbed=reasons))
            number += 1
            self._tell("round", "", self._finished + share * min(1.0, number / least))
            names = [name for name in names if name in workers]
            if number >= least:
                names = _imprecise(names, rounds, reference)
        self._finished += share
        between = replace(disturbance(first, last), power_watts=_means(power))
        return {name: tuple(rounds[name]) for name in workers}, between

    def _block(
        self, name: str, workers: Dict[str, Worker], state: MachineState, power: List[Mapping[str, float]]
    ) -> Optional[Block]:
        """One block of one worker, None where it failed. Sensors that `state` has are read while it runs."""
        if self._stopping():
            raise Interrupted("stopped while measuring")
        time.sleep(SETTLE_SECONDS)
        options, candidate = self._options, self._candidates.get(name)
        before = self._observe(()).energy if state.energy else None
        try:
            workers[name].send({"do": "block", "ns": options.block_ns, "calls": options.least_calls})
            if state.power_watts:
                time.sleep(options.block_ns / 2e9)
                power.append(self._observe(()).power_watts)
            answer = workers[name].receive(seconds=candidate.limits.seconds if candidate else None)
        except EdgeoptError as error:
            workers.pop(name).stop()
            if candidate:
                self._fail(name, error)
            return None
        after = self._observe(()).energy if state.energy else None
        return replace(Block.from_json(answer["block"]), energy_uj=after.since(before) if before and after else None)

    def _measurement(
        self, name: str, blocks: Tuple[Block, ...], ready: Mapping[str, Any], between: Disturbance
    ) -> Measurement:
        candidate, memory = self._candidates[name], Memory(**ready["memory"])
        measurement = Measurement(
            artifact=candidate.artifact,
            backend=candidate.backend,
            runtime_version=ready["runtime_version"],
            threads=candidate.threads,
            machine=replace(self._machine, python=ready["python"]),
            rounds=blocks,
            warm_up_calls=ready["warm_up_calls"],
            steady=ready["steady"],
            load_ns=ready["load_ns"],
            first_inference_ns=ready["first_inference_ns"],
            peak_memory_bytes=memory.peak_bytes,
            memory=memory,
            size_bytes=candidate.size_bytes,
            conditions=between,
            clock_overhead_ns=ready["clock_overhead_ns"],
            call_overhead_ns=ready["call_overhead_ns"],
        )
        return measurement.with_warnings(*caveats(measurement))

    def _outcome(self, name: str, groups: Sequence[Group]) -> Outcome:
        speedup = None
        for group in groups:
            if name in group.rounds and self._baseline in group.rounds:
                speedup = compare(group.rounds[self._baseline], group.rounds[name], group.twin)
                break
        error = self._errors.get(name)
        return Outcome(
            measurement=None if error else self._measurements.get(name),
            error=error,
            speedup=None if name == self._baseline else speedup,
            log=self._log_folder / f"{name}.log",
        )

    def _fail(self, name: str, error: EdgeoptError) -> None:
        self._errors[name] = error
        self._tell("failed", name)

    def _tell(self, kind: str, name: str, fraction: Optional[float] = None) -> None:
        if self._on_event:
            self._on_event(kind, name, fraction)


def _imprecise(names: Sequence[str], rounds: Mapping[str, Sequence[Block]], reference: Optional[str]) -> List[str]:
    """Those whose speed-up over the reference is not narrow yet, and the reference where there are any."""
    if reference is None or reference not in names:
        return []
    wide = [name for name in names if name != reference and not is_precise(rounds[reference], rounds[name])]
    return [reference, *wide] if wide else []


def _means(readings: Sequence[Mapping[str, float]]) -> Optional[Dict[str, float]]:
    """The mean of each rail, None without readings."""
    rails = sorted({rail for reading in readings for rail in reading})
    return {rail: fmean(reading[rail] for reading in readings if rail in reading) for rail in rails} or None
