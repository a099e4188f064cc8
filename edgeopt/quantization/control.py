"""Keeps as few layers in float as a goal takes: at most so much of the quality lost, at least so much signal to noise.

Where the quantized model is inside the goal, nothing is done. Else its layers are ranked by what each costs
(`edgeopt.quantization.sensitivity`), the shortest run of the worst that keeps inside is found by bisection, and then
each of them is tried in 8 bits again, the least harmful first. What is returned was itself measured.

It assumes that more float is not worse, which a noisy metric may break: the result is inside all the same, but a
smaller set may exist. It knows nothing of speed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeopt import units
from edgeopt.errors import InputError, StageError
from edgeopt.measuring import quality
from edgeopt.quantization import execution, sensitivity
from edgeopt.quantization.layers import QuantizedModel
from edgeopt.quantization.sensitivity import Progress, Ranked
from edgeopt.samples import Samples

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

RANKED_ON = 24  # samples: their order of layers is that of many more, and each costs a run for each layer
MOST_RETRIED = 16  # layers that are tried in 8 bits again, one by one


@dataclass(frozen=True)
class Goal:
    """What a quantized model may lose: `max_drop`, a fraction of the samples, and `min_snr_db`; None is no limit."""

    max_drop: float | None = None
    min_snr_db: float | None = None

    def __str__(self) -> str:
        drop = f"a drop of at most {units.format_fraction(self.max_drop)}" if self.max_drop is not None else ""
        snr = f"at least {self.min_snr_db:g} dB" if self.min_snr_db is not None else ""
        return " and ".join(filter(None, [drop, snr]))


@dataclass(frozen=True)
class Loss:
    """What a model lost on the control samples. `drop` is None without class scores, `snr_db` where nothing differs."""

    drop: float | None
    snr_db: float | None

    def inside(self, goal: Goal) -> bool:
        drops = goal.max_drop is None or (self.drop is not None and self.drop <= goal.max_drop + 1e-12)
        return drops and (goal.min_snr_db is None or self.snr_db is None or self.snr_db >= goal.min_snr_db)

    def to_json(self) -> dict[str, float | None]:
        return {"drop": self.drop, "snr_db": self.snr_db}

    def __str__(self) -> str:
        drop = f"a drop of {units.format_fraction(self.drop)}" if self.drop is not None else ""
        snr = f"{self.snr_db:.1f} dB" if self.snr_db is not None else ""
        return " and ".join(filter(None, [drop, snr])) or "no loss"


@dataclass(frozen=True)
class Controlled:
    """The model inside its goal, what was kept in float for it, and what it took.

    `metric` is "top1" (against labels) or "agreement" (with the float model), None without class scores.
    """

    model: Any
    kept: tuple[Ranked, ...]
    layers: int
    before: Loss
    after: Loss
    metric: str | None
    samples: int
    evaluations: int

    def details(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "samples": self.samples,
            "evaluations": self.evaluations,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "layers": self.layers,
            "float_layers": [
                {"name": r.layer.name, "title": r.layer.title, "operator": r.layer.operator, "snr_db": r.snr_db}
                for r in self.kept
            ],
        }


def keep_inside(
    quantized: Any, original: Any, samples: Samples, goal: Goal, threads: int | None, progress: Progress
) -> Controlled:
    """The quantized model inside `goal` on `samples`, its costliest layers in float where it takes that.

    `original` is the float model that `quantized` was made of. Raises InputError where the goal needs class scores or
    labels that fit and there are none, StageError where no layer could stay quantized, with how near it came.
    """
    progress(None, "control: the float model")
    control = _Control(QuantizedModel(quantized, original), original, samples, goal, threads, progress)
    before = control.loss(())
    if before.inside(goal):
        return control.done(quantized, (), before, before)
    ranking = control.ranking()
    least = control.bisect(ranking)
    kept = control.without_needless(ranking[:least])
    names = {ranked.layer.name for ranked in kept}
    return control.done(control.model.with_float(names), kept, before, control.loss(names))


class _Control:
    """The float model's answers on the control samples, and every loss measured so far by the layers in float."""

    def __init__(
        self,
        model: QuantizedModel,
        original: Any,
        samples: Samples,
        goal: Goal,
        threads: int | None,
        progress: Progress,
    ) -> None:
        self.model = model
        self._goal = goal
        self._threads = threads
        self._progress = progress
        self._feeds = execution.batches(original, samples)
        self._original = original
        self._reference = execution.outputs(original, self._feeds, threads)
        self._count = self._feeds.count
        labels, scores = samples.labels(), self._reference[0]
        self._labels = None if labels is None else labels[: self._count]
        self._right: Array | None = None
        if not quality.is_scores(scores):
            if goal.max_drop is not None:
                raise InputError(
                    f"max_drop needs class scores (samples, classes), and the model's first output is of shape "
                    f"{list(scores.shape)}",
                    remedy="Set `min_snr: 20 dB` instead.",
                )
        elif self._labels is not None and goal.max_drop is not None:
            self._right = quality.class_hits(scores, self._labels, 1)
        self._losses: dict[frozenset[str], Loss] = {}

    def loss(self, in_float: Collection[str]) -> Loss:
        names = frozenset(in_float)
        if names not in self._losses:
            so_far = len(self._losses)
            what = f"{len(names)} layers in float" if names else "all layers in 8 bits"
            self._progress(None, f"control: {what} (evaluation {so_far + 1})")
            found = execution.outputs(self.model.with_float(names), self._feeds, self._threads)
            snr_db = execution.lowest(execution.snr_db(self._reference, found))
            self._losses[names] = Loss(self._drop(found[0]), snr_db)
        return self._losses[names]

    def ranking(self) -> tuple[Ranked, ...]:
        feeds = self._feeds.first(RANKED_ON)
        reference = [value[: feeds.count] for value in self._reference]
        return sensitivity.rank(self.model, reference, feeds, self._threads, self._progress)

    def bisect(self, ranking: Sequence[Ranked]) -> int:
        """How many of the worst layers have to be in float, one less than all at the most."""

        def prefix(count: int) -> Loss:
            return self.loss({ranked.layer.name for ranked in ranking[:count]})

        outside, inside = 0, len(ranking) - 1
        nearest = prefix(inside) if inside > 0 else self.loss(())
        if not nearest.inside(self._goal):
            raise StageError(
                f"int8 cannot keep inside {self._goal}: with one of {len(ranking)} layers quantized there is still "
                f"{nearest}, with all {self.loss(())}, on {self._count} samples",
                remedy="Loosen max_drop or min_snr, or give more samples under data: tuning.",
            )
        while inside - outside > 1:
            middle = (inside + outside) // 2
            if prefix(middle).inside(self._goal):
                inside = middle
            else:
                outside = middle
        return inside

    def without_needless(self, kept: tuple[Ranked, ...]) -> tuple[Ranked, ...]:
        """Those of the layers that the goal takes: each is tried in 8 bits again, the least harmful alone first."""
        for ranked in kept[: -MOST_RETRIED - 1 : -1]:
            fewer = tuple(other for other in kept if other is not ranked)
            if fewer and self.loss({other.layer.name for other in fewer}).inside(self._goal):
                kept = fewer
        return kept

    def done(self, model: Any, kept: tuple[Ranked, ...], before: Loss, after: Loss) -> Controlled:
        metric = None if before.drop is None else "top1" if self._right is not None else "agreement"
        layers = len(self.model.layers)
        return Controlled(model, kept, layers, before, after, metric, self._count, len(self._losses))

    def _drop(self, scores: Array) -> float | None:
        """What is lost of top-1: of the float model's accuracy where there are labels, else of agreement with it."""
        if not quality.is_scores(self._reference[0]):
            return None
        if self._right is not None and self._labels is not None:
            hits = quality.class_hits(scores, self._labels, 1)
            return float(self._right.mean() - hits.mean())
        return float(1 - quality.agreements(self._reference[0], scores).mean())
