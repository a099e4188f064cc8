"""Measures candidates against each other: a process for each, blocks of inferences in random order, round after round.

The candidates of a group are loaded and warmed one after the other, undisturbed by each other, and then take turns: in
every round each runs one block. So whatever the machine does meanwhile, all of them meet it, and ratios are taken
within a round. The baseline runs in every group, and a second process of it, its twin, shows what difference means
nothing (an A/A test). A candidate that crashes, hangs or takes too much memory is recorded with its error, and
the others go on.

This module knows nothing of accuracy, nor of what the candidates are. It starts no process that outlives it.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeopt.artifact import TensorSpec
from edgeopt.errors import EdgeoptError, InputError, Interrupted, WorkerCrashed
from edgeopt.measurement import (
    LEAST_CLEAN_FRACTION,
    Block,
    Comparison,
    Disturbance,
    Machine,
    MachineState,
    Measurement,
    Ratio,
    compare,
    disturbance,
    ratio,
    through,
    verdict,
)
from edgeopt.worker import Limits, Worker, resident_bytes

JOB = "edgeopt.bench.candidate:run"
TWIN = "~twin"  # its key beside the ids of candidates
BUSY = 0.25
SETTLE_SECONDS = 0.005  # runtimes' threads spin for a moment after an inference, at the cost of the next candidate

DEFAULT_LIMITS = Limits(seconds=120.0)

OnEvent = Callable[[str, str, Optional[float]], None]


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

    A block lasts `block_ns` and at least `least_calls` calls. `baseline` is the id of the candidate that the others are
    compared with, the first where it is None. `group` is how many are measured at once, the baseline included.
    """

    samples: Path
    baseline: Optional[str] = None
    rounds: int = 16
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
    observe: Callable[[], MachineState],
    stopping: Callable[[], bool] = lambda: False,
) -> SessionResult:
    """Measure all candidates. `machine` and `observe` are `edgeopt.bench.machine`'s fingerprint() and state.

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
        observe: Callable[[], MachineState],
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
            before = self._observe()
            rounds = self._take_turns(workers, len(waiting))
            between = disturbance(before, self._observe())
        twin_rounds = rounds.pop(TWIN, None)
        twin = ratio(rounds[reference], twin_rounds) if reference in rounds and twin_rounds else None
        for name, blocks in rounds.items():
            if name not in self._measurements:
                self._measurements[name] = self._measurement(name, blocks, ready[name], between)
        return Group(rounds, reference if twin else None, twin, between)

    def _has_room(self, workers: Mapping[str, Worker]) -> bool:
        """Whether memory is left for two more processes like the largest so far. True where that cannot be read."""
        sizes = [resident_bytes(worker.pid) or 0 for worker in workers.values()]
        available = self._observe().available_memory_bytes
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

    def _take_turns(self, workers: Dict[str, Worker], waiting: int) -> Dict[str, Tuple[Block, ...]]:
        """All rounds. A worker that fails leaves `workers`, and its rounds are dropped."""
        rounds: Dict[str, List[Block]] = {name: [] for name in workers}
        order = {"do": "block", "ns": self._options.block_ns, "calls": self._options.least_calls}
        share = (1 - self._finished) * len(workers) / max(1, len(workers) + waiting)
        for number in range(self._options.rounds):
            names = list(workers)
            self._random.shuffle(names)
            for name in names:
                if self._stopping():
                    raise Interrupted("stopped while measuring")
                time.sleep(SETTLE_SECONDS)
                candidate = self._candidates.get(name)
                try:
                    workers[name].send(order)
                    answer = workers[name].receive(seconds=candidate.limits.seconds if candidate else None)
                except EdgeoptError as error:
                    workers.pop(name).stop()
                    rounds.pop(name)
                    if candidate:
                        self._fail(name, error)
                    continue
                rounds[name].append(Block.from_json(answer["block"]))
            self._tell("round", "", self._finished + share * (number + 1) / self._options.rounds)
        self._finished += share
        return {name: tuple(blocks) for name, blocks in rounds.items()}

    def _measurement(
        self, name: str, blocks: Tuple[Block, ...], ready: Mapping[str, Any], between: Disturbance
    ) -> Measurement:
        candidate = self._candidates[name]
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
            peak_memory_bytes=ready["peak_memory_bytes"],
            size_bytes=candidate.size_bytes,
        )
        return measurement.with_warnings(*warnings(measurement, between))

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


def warnings(measurement: Measurement, between: Disturbance) -> List[str]:
    """What makes the numbers worth less, and what to do."""
    found = []
    latency = measurement.latency
    if not measurement.steady:
        found.append("latencies had not settled when the warm-up ended")
    if latency.basis == "all":
        found.append(
            f"only {latency.clean_samples} of {latency.samples} calls ran without being switched out: "
            "percentiles are of all calls; stop other programs, or use fewer threads"
        )
    elif latency.clean_fraction < 0.5:
        found.append(
            f"{latency.clean_fraction:.0%} of the calls ran without being switched out: the machine is busy, "
            "and the tail is likely longer than the percentiles of the clean calls say"
        )
    if between.pressure is not None and between.pressure > BUSY:
        found.append(f"for {between.pressure:.0%} of the time some program waited for a processor")
    if between.steal is not None and between.steal > LEAST_CLEAN_FRACTION / 2:
        found.append(f"the hypervisor took {between.steal:.0%} of the processor time for others")
    governor = measurement.machine.governor
    if governor is not None and governor != "performance":
        found.append(f"the frequency governor is {governor}: with 'performance' latencies repeat better")
    if measurement.threads > measurement.machine.cores:
        found.append(f"{measurement.threads} threads on {measurement.machine.cores} usable cores")
    return found
