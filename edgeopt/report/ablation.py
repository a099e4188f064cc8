"""What each step bought on the target: each candidate beside the one that lacks a single step of it.

Candidates are leaves of a tree, so what lacks one step was often built too. Where it was not (every branch was trained
after it was pruned), the steps that differ are told together, never apart. A change of runtime is told against the
same model on the baseline's runtime.

Two candidates are compared through the speed-ups that the run found for each over the baseline, in the same rounds.
Pure: it reads the document of `edgeopt.results` and nothing else. It does not know the raw samples, so its intervals
are a little wider than those of two that took turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.statistics import Comparison, Ratio, through, verdict


@dataclass(frozen=True)
class Gain:
    """What `added` did to `before`, which became `after`; both are candidates' ids.

    `replaced` are the labels that `added` stands in place of: those of another runtime. `latency` is the speed-up of
    `after` over `before`; `smaller` how many times smaller it is; `quality` what was gained in the `metric`'s own unit
    (a fraction of one, dB for sqnr), negative where it was lost. None is what was not measured.
    """

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    before: str
    after: str
    latency: Comparison | None
    smaller: float | None
    quality: float | None
    metric: str | None

    @property
    def step(self) -> str:
        """ "prune50 + distill3", "openvino instead of onnxruntime"."""
        told = " + ".join(self.added)
        return f"{told} instead of {', '.join(self.replaced)}" if self.replaced else told


def gains(document: Mapping[str, Any]) -> list[Gain]:
    """Every candidate beside each of those that lack the least of it: by step, and of each step the largest first."""
    built = _built(document)
    found = [_gain(before, after, document) for after in built for before in _nearest(after, built, document)]
    steps = list(dict.fromkeys(gain.step for gain in found))
    return sorted(
        found, key=lambda gain: (steps.index(gain.step), -(gain.latency.speedup.value if gain.latency else 0))
    )


def way(document: Mapping[str, Any], candidate: str) -> list[Gain]:
    """The steps from the baseline to a candidate, each one's gain on top of those before it.

    The last step is taken off first, and the runtime last of all. Where the next candidate was not built, what is left
    is one gain from the baseline.
    """
    built = _built(document)
    by_id = {one["id"]: one for one in built}
    found: list[Gain] = []
    here, start = by_id.get(candidate), by_id.get(document["baseline"])
    while here is not None and start is not None and here is not start:
        before = next(_nearest(here, built, document), start)
        found.append(_gain(before, here, document))
        here = before
    return found[::-1]


def _built(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in document["candidates"] if one.get("artifact") and one.get("steps")]


def _nearest(
    after: Mapping[str, Any], built: Sequence[Mapping[str, Any]], document: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    """Those that lack a step and nothing that others lack too, the last steps first; then the same on the baseline's
    runtime, or in the runtime's own precision."""
    steps, runtime = _steps(after), after["steps"].get("compile")
    fewer = [
        (lacking, one)
        for one in built
        if one["steps"].get("compile") == runtime and (lacking := _lacking(steps, _steps(one)))
    ]
    for lacking, one in sorted(fewer, key=lambda pair: pair[0][::-1], reverse=True):
        if not any(set(other) < set(lacking) for other, _ in fewer):
            yield one
    first = next((one["steps"].get("compile") for one in built if one["id"] == document["baseline"]), None)
    if runtime == first:
        return
    for plain in (after["backend"], first):
        same = [one for one in built if _steps(one) == steps and one["steps"].get("compile") == plain]
        if same and plain != runtime:
            yield same[0]
            return


def _steps(candidate: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The stages and labels before the runtime; a stage's second step is of the same stage ("prune 2")."""
    return tuple((stage.partition(" ")[0], label) for stage, label in candidate["steps"].items() if stage != "compile")


def _lacking(steps: Sequence[tuple[str, str]], fewer: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """The places in `steps` of those that `fewer` lacks; nothing where `fewer` has others, or as many."""
    lacking, left = [], list(fewer)
    for place, step in enumerate(steps):
        if left and left[0] == step:
            left.pop(0)
        else:
            lacking.append(place)
    return () if left else tuple(lacking)


def _gain(before: Mapping[str, Any], after: Mapping[str, Any], document: Mapping[str, Any]) -> Gain:
    steps, fewer = _steps(after), _steps(before)
    added = [steps[place][1] for place in _lacking(steps, fewer)]
    runtimes = [one["steps"].get("compile") for one in (before, after)]
    other = runtimes[0] != runtimes[1]
    ratios = [_over_baseline(one, document) for one in (before, after)]
    sizes = [one["artifact"]["size_bytes"] for one in (before, after)]
    qualities = [one.get("quality") or {} for one in (before, after)]
    values = [quality.get("value") for quality in qualities]
    return Gain(
        added=(*added, *([runtimes[1]] if other and runtimes[1] else [])),
        replaced=(runtimes[0],) if other and runtimes[0] else (),
        before=before["id"],
        after=after["id"],
        latency=verdict(through(ratios[0], ratios[1])) if ratios[0] and ratios[1] else None,
        smaller=sizes[0] / sizes[1] if sizes[1] else None,
        quality=values[1] - values[0] if values[0] is not None and values[1] is not None else None,
        metric=qualities[1].get("metric"),
    )


def _over_baseline(candidate: Mapping[str, Any], document: Mapping[str, Any]) -> Ratio | None:
    """Its speed-up over the baseline; that of the baseline itself is one, for certain."""
    told = candidate.get("speedup")
    if candidate["id"] == document["baseline"] and candidate.get("latency_ns"):
        return Ratio(1.0, 1.0, 1.0, candidate["latency_ns"]["basis"], _MANY_ROUNDS)
    if told is None or told["against"] != document["baseline"]:
        return None
    return Ratio(told["value"], told["low"], told["high"], told["basis"], told["rounds"])


_MANY_ROUNDS = 1 << 30  # a ratio through it stands on the rounds of the other one
