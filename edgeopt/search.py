"""What a recipe leaves to be found by measuring: how many channels have to go for a latency or a size on the target,
and which fractions pay at all. Done before anything is trained.

Neither latency nor size depends on how well a network is trained. So a probe is the recipe without its training: the
model with a fraction removed, through those quantizations and runtimes of the recipe that are best for the model as it
is or for a quarter of it, built and measured like all else, and kept in the store like all else. What is found stands
in the recipe in place of what was asked for.

- A limit: the smallest fraction, in sixteenths, of which some artifact keeps it: for a latency the upper end of the
  95 % interval of the median, for a size the bytes. It is found by halving, as more removed is taken to be no slower.
- A ladder: some fractions, each of which stays only where its fastest artifact is measured to be faster than that of
  the next smaller one which stays (or smaller, where the recipe prefers size). Of these the most promising are built,
  by speed-up per channel removed: log(speed-up) / fraction.

It knows nothing of accuracy, which is what a fraction costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from edgeopt import evaluation, pipeline, plan, stages
from edgeopt.budget import QUANTITIES
from edgeopt.devices import Device
from edgeopt.errors import EdgeoptError, NoTimeLeft, StageError
from edgeopt.measuring import machine
from edgeopt.measuring.session import SessionResult
from edgeopt.pipeline import Built, Workers
from edgeopt.plan import Candidate, Plan
from edgeopt.recipe import Alternative, MeasureOptions, Recipe, RecipeStep
from edgeopt.schedule import Done, Observer, run_all
from edgeopt.stages import Options, Search
from edgeopt.statistics import LEAST_MARGIN, LEAST_ROUNDS
from edgeopt.store import Store
from edgeopt.target import Target

GRID = 16  # a limit is searched in steps of 1/16
FIRST = (4, 8, 12, 15)  # of them, what is tried first
LADDER = (0.25, 0.375, 0.5, 0.625, 0.75)
LATENCY, SIZE = "latency p50", "size"
HEAT = MeasureOptions(rounds=3, block_ns=50_000_000)  # to find each fraction's fastest artifact
ENDS = (0.0, 0.75)  # the fractions at which all ways to quantize and compile are tried
BEST_WAYS = 2  # of them, at each end, are tried on every fraction
MOST_IN_TURN = 10  # artifacts that are measured at once, beside the baseline
TIME_SHARE = 0.5  # of a run's limit, what all searches together may take

Show = Callable[[Plan, str], None]


@dataclass(frozen=True)
class Tried:
    """A fraction, and its best artifact: `value` in ns or bytes, with its interval where it was measured.

    `candidate` is its name in the probes' plan, `way` what was done to it beside the removal.
    """

    fraction: float
    candidate: str
    way: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def bound(self) -> float:
        """What is held against a limit."""
        return self.value if self.high is None else self.high

    def told(self, quantity: str) -> str:
        return f"{QUANTITIES[quantity].format(self.value)} ({self.way})"


@dataclass(frozen=True)
class Found:
    """What became of one alternative: `chosen` stand in its place, best first; `tried` by rising fraction."""

    stage: str
    label: str
    quantity: str
    limit: int | None
    chosen: tuple[str, ...]
    tried: tuple[Tried, ...]
    why: str

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "label": self.label,
            "quantity": self.quantity,
            "limit": self.limit,
            "chosen": list(self.chosen),
            "tried": [
                {"fraction": t.fraction, "artifact": t.way, "value": t.value, "low": t.low, "high": t.high}
                for t in self.tried
            ],
            "why": self.why,
        }


@dataclass(frozen=True)
class Resolved:
    """A recipe in which nothing is left to be found, what was left out of it, and what was found."""

    recipe: Recipe
    left_out: Mapping[str, str] = field(default_factory=dict)
    found: tuple[Found, ...] = ()

    @property
    def promise(self) -> tuple[str, ...]:
        """Labels of what was found, the most promising first."""
        return tuple(label for found in self.found for label in found.chosen)


def resolve(
    made: Plan, store: Store, workers: Workers, device: Device, target: Target, observer: Observer, show: Show
) -> Resolved:
    """The recipe of a plan with every search done. `show(plan, title)` is told of each plan of probes.

    What cannot be reached, or fails, is left out with the reason. Raises what building and measuring raise.
    """
    recipe, left_out, found = made.recipe, {}, []
    searched = {(step.stage, step.label) for step in made.searches()}
    steps = list(recipe.steps)
    for index, step in enumerate(recipe.steps):
        alternatives: list[Alternative] = []
        for alternative in step.alternatives:
            if (step.stage, alternative.label() or step.stage) not in searched:
                alternatives.append(alternative)
                continue
            prober = _Prober(recipe, index, alternative, store, workers, device, target, observer, show)
            asked = stages.search_of(step.stage, alternative.choice, alternative.options) or Search()
            try:
                result, dropped = _limit(prober, asked) if asked.limit is not None else _ladder(prober, asked)
            except StageError as error:
                left_out[prober.label] = error.message
                continue
            left_out.update(dropped)
            found.append(result)
            by_label = {prober.alternative(t.fraction).label(): prober.alternative(t.fraction) for t in result.tried}
            alternatives += [chosen for label, chosen in by_label.items() if label in result.chosen]
        steps[index] = replace(step, alternatives=tuple(dict.fromkeys(alternatives)))
    return Resolved(replace(recipe, steps=tuple(steps)), left_out, tuple(found))


def _limit(prober: _Prober, asked: Search) -> tuple[Found, dict[str, str]]:
    """The smallest fraction that keeps a limit. Raises StageError with the nearest where none does."""
    quantity, limit = str(asked.quantity), asked.limit or 0
    tried: dict[int, Tried] = {}

    def meets(sixteenths: int) -> bool:
        return sixteenths in tried and tried[sixteenths].bound <= limit

    def measure(*sixteenths: int) -> None:
        found = prober.tried([number / GRID for number in sixteenths], quantity)
        tried.update({round(fraction * GRID): one for fraction, one in found.items()})

    measure(0, *FIRST)
    if not any(tried) and prober.failed:
        raise next(iter(prober.failed.values()))
    reached = [number for number in sorted(tried) if meets(number)]
    if not reached:
        if not tried:
            raise StageError("no artifact could be measured")
        nearest = min(tried.values(), key=lambda one: one.bound)
        raise StageError(
            f"{QUANTITIES[quantity].format(limit)} cannot be reached by pruning: the nearest is "
            f"{nearest.told(quantity)} with {nearest.fraction * 100:g} % of the channels removed"
        )
    high = reached[0]
    low = max((number for number in (0, *FIRST) if number < high), default=high)
    while high - low > 1:
        middle = (low + high) // 2
        measure(middle)
        low, high = (low, middle) if meets(middle) else (middle, high)
    chosen = prober.alternative(high / GRID).label()
    why = f"{chosen} is the least: {tried[high].told(quantity)}"
    if high == 0:
        why = f"no channel has to go: {tried[high].told(quantity)} as it is"
    return Found(prober.stage, prober.label, quantity, limit, (chosen,), _sorted(tried.values()), why), {}


def _ladder(prober: _Prober, asked: Search) -> tuple[Found, dict[str, str]]:
    """The fractions that pay, and {label: reason} of those that do not."""
    quantity = SIZE if prober.recipe.budget.prefer[0] == SIZE else LATENCY
    better = "smaller" if quantity == SIZE else "faster"
    tried = prober.tried([0.0, *LADDER], quantity)
    dropped: dict[str, str] = {}
    kept = [tried[0.0]] if 0.0 in tried else []
    for fraction in LADDER:
        label = prober.alternative(fraction).label()
        before = _name(prober, kept[-1]) if kept else ""
        if fraction in prober.failed:
            dropped[label] = prober.failed[fraction].message
        elif (same := prober.same.get(fraction)) is not None:
            dropped[label] = f"the same network as {prober.alternative(same).label()}: its channels round alike"
        elif fraction not in tried:
            dropped[label] = "no artifact of it could be measured"
        elif kept and not prober.pays(kept[-1], tried[fraction], quantity):
            told = f"{tried[fraction].told(quantity)} against {kept[-1].told(quantity)}"
            dropped[label] = f"measured to be no {better} than {before}: {told}"
        else:
            kept.append(tried[fraction])
    rungs = [one for one in kept if one.fraction]
    if not rungs:
        why = f"no fraction is measured to be {better} than the model as it is"
        return Found(prober.stage, prober.label, quantity, None, (), _sorted(tried.values()), why), dropped
    start = (tried.get(0.0) or rungs[0]).value
    rungs.sort(key=lambda one: -math.log(start / one.value) / one.fraction)
    chosen = tuple(prober.alternative(one.fraction).label() for one in rungs[: asked.rungs])
    for one in rungs[asked.rungs :]:
        dropped[prober.alternative(one.fraction).label()] = (
            f"{', '.join(chosen)} gain more for each channel removed (this one {start / one.value:.2f}x), "
            f"and rungs is {asked.rungs}"
        )
    shown = [f"{_name(prober, one)} ({start / one.value:.2f}x)" for one in rungs[: asked.rungs]]
    why = f"{', '.join(shown)} are {better} than the model as it is, and promise most"
    return Found(prober.stage, prober.label, quantity, None, chosen, _sorted(tried.values()), why), dropped


def _name(prober: _Prober, one: Tried) -> str:
    return prober.alternative(one.fraction).label() if one.fraction else "the model as it is"


def _sorted(tried: Any) -> tuple[Tried, ...]:
    return tuple(sorted(tried, key=lambda one: one.fraction))


@dataclass
class _Prober:
    """Builds and measures the fractions of one alternative, `searched`, of the recipe's step `index`.

    `failed` are the fractions that could not be built, with the error; `same` those that gave the very network of a
    smaller one.
    """

    recipe: Recipe
    index: int
    searched: Alternative
    store: Store
    workers: Workers
    device: Device
    target: Target
    observer: Observer
    show: Show
    failed: dict[float, EdgeoptError] = field(default_factory=dict)
    same: dict[float, float] = field(default_factory=dict)
    _made: dict[str, float] = field(default_factory=dict)
    _ways: set[str] | None = None
    _session: SessionResult | None = None

    @property
    def stage(self) -> str:
        return self.recipe.steps[self.index].stage

    @property
    def label(self) -> str:
        return self.searched.label() or self.stage

    def alternative(self, fraction: float) -> Alternative:
        """The searched alternative at a fraction."""
        choice, options = self.searched.choice, self.searched.options
        return Alternative(choice, stages.at(self.stage, choice, options, fraction))

    def tried(self, fractions: Sequence[float], quantity: str) -> dict[float, Tried]:
        """The best artifact of each fraction, of those that could be built and are not the same as a smaller one's."""
        if self._ways is None:
            self._ways = self._best_ways(quantity)
        made = _only(plan.make(self._probes(fractions)), self.stage, self._ways)
        self.show(made, f"searching {self.label}")
        done = self._build(made)
        labels = {_cheap(self.stage, self.alternative(f)).label(): f for f in fractions if f}
        leaves: dict[float, list[Candidate]] = {fraction: [] for fraction in fractions}
        for candidate in made.candidates:
            way = made.lineage(made.step(candidate.step))
            removed = next((s for s in way if s.stage == self.stage and s.label in labels), None)
            fraction = labels[removed.label] if removed else 0.0
            if fraction not in leaves:
                continue
            if isinstance(error := done[candidate.step], EdgeoptError):
                self.failed.setdefault(fraction, error)
            elif removed is None or self._is_new(fraction, done[removed.id]):
                leaves[fraction].append(candidate)
        for fraction in [fraction for fraction, built in leaves.items() if built]:
            self.failed.pop(fraction, None)
        builds = {c.id: _value(done[c.step]) for built in leaves.values() for c in built}
        if not builds:
            return {}
        if quantity == SIZE:
            return {f: self._smallest(f, built, builds) for f, built in leaves.items() if built}
        return self._fastest(made, leaves, builds, done)

    def pays(self, smaller: Tried, larger: Tried, quantity: str) -> bool:
        """Whether the larger of two fractions is measurably better. Where the machine was too busy to say so for
        certain, by the medians alone."""
        if quantity == SIZE or self._session is None:
            return larger.value < smaller.value
        found = self._session.compare(smaller.candidate, larger.candidate)
        if found is None:
            return larger.value * (1 + LEAST_MARGIN) < smaller.value
        if found.verdict == "inconclusive":
            return found.speedup.value > 1 + found.margin
        return found.verdict == "faster"

    def _best_ways(self, quantity: str) -> set[str]:
        """The ways to quantize and compile that make both ends of the fractions fastest or smallest."""
        made = plan.make(self._probes(ENDS))
        ways = {candidate.id: _way(candidate, self.stage) for candidate in made.candidates}
        if len(set(ways.values())) <= 2 * BEST_WAYS:
            return set(ways.values())
        self.show(made, f"searching {self.label}")
        done = self._build(made)
        builds = {c.id: _value(d) for c in made.candidates if isinstance(d := done[c.step], Done)}
        if quantity == SIZE:
            scores: dict[str, float] = {name: built.artifact.size_bytes for name, built in builds.items()}
        else:
            session = self._measured(made, builds, done, HEAT)
            scores = {name: _least(session, name) for name in builds}
        removed = _cheap(self.stage, self.alternative(ENDS[1])).label()
        kept = set()
        for end in (False, True):
            there = [c.id for c in made.candidates if c.id in scores and (removed in c.labels.values()) == end]
            kept |= {ways[name] for name in sorted(there, key=lambda name: scores[name])[:BEST_WAYS]}
        return kept

    def _probes(self, fractions: Sequence[float]) -> Recipe:
        """The recipe without what is trained, and with these fractions alone in the place of the search."""
        steps = []
        for index, step in enumerate(self.recipe.steps):
            alternatives: tuple[Alternative, ...] = step.alternatives
            if index == self.index:
                alternatives = tuple(_cheap(step.stage, self.alternative(f)) if f else _nothing() for f in fractions)
            elif stages.recovers(step.stage, None):
                continue
            else:
                known = [a for a in alternatives if not stages.search_of(step.stage, a.choice, a.options)]
                alternatives = tuple(dict.fromkeys(_cheap(step.stage, a) for a in known)) or (_nothing(),)
            steps.append(RecipeStep(step.stage, alternatives))
        return replace(self.recipe, steps=tuple(steps))

    def _build(self, made: Plan) -> dict[str, Done | EdgeoptError]:
        limited = self.workers.clock is not None and self.workers.clock.limited
        ranks = plan.ranks(made, ()) if limited else None
        jobs = pipeline.build_jobs(made, self.store, self.workers, self.target, ranks)
        at_once = machine.usable_cores()
        done = run_all(jobs, at_once=at_once, observer=self.observer, stop=self.workers.stop)
        for error in done.values():
            if isinstance(error, NoTimeLeft):
                raise error  # what is found must not depend on how far a search came
        return done

    def _is_new(self, fraction: float, removed: Done | EdgeoptError) -> bool:
        first = self._made.setdefault(_value(removed).artifact.digest, fraction)
        if first < fraction:
            self.same[fraction] = first
        return first >= fraction

    def _told(self, candidate: Candidate) -> str:
        """What was done beside the removal, by the labels of the recipe."""
        labels = {}
        for step in self.recipe.steps:
            for alternative in reversed(step.alternatives):
                labels[step.stage, _cheap(step.stage, alternative).label()] = alternative.label()
        others = {key.partition(" ")[0]: label for key, label in candidate.labels.items()}
        return "-".join(labels.get((key, label), label) for key, label in others.items() if key != self.stage)

    def _smallest(self, fraction: float, built: Sequence[Candidate], builds: Mapping[str, Built]) -> Tried:
        best = min(built, key=lambda c: builds[c.id].artifact.size_bytes)
        return Tried(fraction, best.id, self._told(best), builds[best.id].artifact.size_bytes)

    def _fastest(
        self,
        made: Plan,
        leaves: Mapping[float, Sequence[Candidate]],
        builds: Mapping[str, Built],
        done: Mapping[str, Done | EdgeoptError],
    ) -> dict[float, Tried]:
        """Many artifacts are measured shortly, and the fastest of each fraction then against one another."""
        if len(builds) > MOST_IN_TURN:
            heat = self._measured(made, builds, done, HEAT)
            fastest = [min(built, key=lambda c: _least(heat, c.id)).id for built in leaves.values() if built]
            builds = {name: builds[name] for name in fastest if _least(heat, name) < math.inf}
        options = replace(self.recipe.measure, rounds=max(self.recipe.measure.rounds, LEAST_ROUNDS))
        session = self._session = self._measured(made, builds, done, options)
        found = {}
        for fraction, built in leaves.items():
            measured = {c.id: self._told(c) for c in built if c.id in builds and _p50(session, c.id) < math.inf}
            if not measured:
                continue
            best = min(measured, key=lambda name: _p50(session, name))
            measurement = session.outcomes[best].measurement
            assert measurement is not None and measurement.latency.p50 is not None
            p50 = measurement.latency.p50
            found[fraction] = Tried(fraction, best, measured[best], p50.value, p50.low, p50.high)
        return found

    def _measured(
        self,
        made: Plan,
        ready: Mapping[str, Built],
        done: Mapping[str, Done | EdgeoptError],
        options: MeasureOptions,
    ) -> SessionResult:
        """One session, kept in the store like that of a run."""
        started = dict(ready)
        baseline = next(c for c in made.candidates if c.id == made.baseline)
        if not isinstance(done[baseline.step], EdgeoptError):
            started = {baseline.id: _value(done[baseline.step]), **started}
        session, _ = evaluation.measure(
            made,
            started,
            _value(done["data:validation"]),
            options,
            self.store,
            self.workers,
            self.device,
            self.target,
            self.observer,
            again=False,
        )
        return session


def _nothing() -> Alternative:
    return Alternative("none", Options())


def _value(done: Done | EdgeoptError) -> Any:
    assert isinstance(done, Done)
    return done.value


def _only(made: Plan, stage: str, ways: Collection[str]) -> Plan:
    """A plan of these ways alone, and its baseline."""
    kept = [c for c in made.candidates if c.id == made.baseline or _way(c, stage) in ways]
    needed = {step.id for c in kept for step in made.lineage(made.step(c.step))}
    return replace(made, candidates=tuple(kept), steps=tuple(step for step in made.steps if step.id in needed))


def _cheap(stage: str, alternative: Alternative) -> Alternative:
    return Alternative(*stages.probe(stage, alternative.choice, alternative.options))


def _way(candidate: Candidate, stage: str) -> str:
    return "-".join(label for key, label in candidate.labels.items() if key.partition(" ")[0] != stage)


def _least(session: SessionResult, name: str) -> float:
    """The least median of a block in ns, which other programs disturb least; infinite where the candidate failed."""
    measurement = session.outcomes[name].measurement
    return min(median(block.latencies_ns) for block in measurement.rounds) if measurement else math.inf


def _p50(session: SessionResult, name: str) -> float:
    """The median latency in ns, infinite where the candidate failed."""
    measurement = session.outcomes[name].measurement
    return measurement.latency.p50.value if measurement and measurement.latency.p50 else math.inf
