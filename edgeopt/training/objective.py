"""What a student is trained for: to give a teacher's outputs, and the right class where there are labels.

Hinton et al. 2015 (https://arxiv.org/abs/1503.02531): alpha T^2 KL(teacher || student) at the temperature T, plus
(1 - alpha) cross-entropy. It knows nothing of how either network is run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.errors import InputError

LOSSES = ("auto", "kl", "mse", "cosine")
SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class LossOptions:
    """`loss` is one of `LOSSES`: "auto" takes kl for class scores and mse for other outputs. Without labels the teacher
    alone is followed, whatever `alpha` says."""

    loss: str = "auto"
    temperature: float = 4.0
    alpha: float = 0.7
    label_smoothing: float = 0.0


class Objective:
    """The loss between a student's outputs and a teacher's, one kind for each output.

    kl: T^2 KL(teacher || student) at the temperature T, per sample; classes along axis 1. mse: mean squared error over
    the variance of the teacher's output, so that outputs of unlike ranges weigh alike. cosine: 1 - cosine similarity
    of whole samples. Outputs that are probabilities already (rows that sum to 1) are taken as such.
    """

    def __init__(self, examples: Sequence[Any], labels: Any | None, options: LossOptions) -> None:
        self.notes: list[str] = []
        self._options = options
        self.kinds = [_kind(value, options.loss) for value in examples]
        if all(kind == "none" for kind in self.kinds):
            raise InputError("no output of the model is a float tensor: there is nothing to learn from the teacher")
        self._scales = [
            max(float(value.float().var(unbiased=False)), 1e-12) if kind == "mse" else 1.0
            for value, kind in zip(examples, self.kinds)
        ]
        self._probabilities = [kind == "kl" and _are_probabilities(value) for value, kind in zip(examples, self.kinds)]
        self._scores = next((i for i, value in enumerate(examples) if _are_scores(value)), None)
        self._labelled = labels is not None and self._scores is not None
        if labels is not None and self._scores is None:
            self.notes.append("no output is class scores: the labels are not used")
        if labels is not None and self._scores is not None:
            classes = examples[self._scores].shape[1]
            if int(labels.max()) >= classes:
                raise InputError(
                    f"a label is {int(labels.max())}, and the model has {classes} classes, 0 to {classes - 1}",
                    remedy="Check that the training labels belong to this model, and count from 0.",
                )
        self.metric = "sqnr" if self._scores is None else "top1" if self._labelled else "agreement"

    def __call__(self, found: Sequence[Any], wanted: Sequence[Any], labels: Any | None) -> Any:
        """A scalar tensor; both sides have the shapes of the examples, `labels` is (N,) or None."""
        import torch

        alpha = self._options.alpha if self._labelled else 1.0
        loss = torch.zeros((), device=found[0].device)
        if alpha:
            for position, (left, right) in enumerate(zip(found, wanted)):
                loss = loss + alpha * self._difference(position, left.float(), right.float())
        if self._labelled and alpha < 1:
            assert self._scores is not None
            logits = self._logits(self._scores, found[self._scores].float())
            smoothing = self._options.label_smoothing
            loss = loss + (1 - alpha) * torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        return loss

    def score(self, found: Sequence[Any], wanted: Sequence[Any], labels: Any | None) -> float:
        """What `metric` names, over whole arrays of outputs."""
        if self._scores is not None:
            right = labels if self._labelled else wanted[self._scores].argmax(1)
            return float((found[self._scores].argmax(1) == right).double().mean())
        pairs = [(f.double(), w.double()) for f, w, kind in zip(found, wanted, self.kinds) if kind != "none"]
        signal = sum(float(w.square().sum()) for _, w in pairs)
        noise = sum(float((f - w).square().sum()) for f, w in pairs)
        return 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30))

    def _difference(self, position: int, found: Any, wanted: Any) -> Any:
        import torch

        kind, temperature = self.kinds[position], self._options.temperature
        if kind == "kl":
            left = torch.log_softmax(self._logits(position, found) / temperature, 1)
            right = torch.log_softmax(self._logits(position, wanted) / temperature, 1)
            rows = found.numel() // found.shape[1]
            divergence = torch.nn.functional.kl_div(left, right, log_target=True, reduction="sum") / rows
            return temperature**2 * divergence
        if kind == "mse":
            return torch.nn.functional.mse_loss(found, wanted) / self._scales[position]
        if kind == "cosine":
            return 1 - torch.nn.functional.cosine_similarity(found.flatten(1), wanted.flatten(1)).mean()
        return torch.zeros((), device=found.device)

    def _logits(self, position: int, value: Any) -> Any:
        return value.clamp(min=SMALLEST_PROBABILITY).log() if self._probabilities[position] else value


def _kind(value: Any, asked: str) -> str:
    if not value.is_floating_point():
        return "none"  # an argmax or a count: nothing that a gradient passes
    if asked == "auto":
        return "kl" if _are_scores(value) else "mse"
    if asked == "kl" and (value.ndim < 2 or value.shape[1] < 2):
        raise InputError(f"loss: kl needs classes along axis 1, and an output has the shape {list(value.shape)}")
    return asked


def _are_scores(value: Any) -> bool:
    """As the benchmark takes an output for class scores: (samples, classes)."""
    return bool(value.is_floating_point() and value.ndim == 2 and value.shape[1] >= 2)


def _are_probabilities(value: Any) -> bool:
    return bool(value.min() >= 0 and ((value.float().sum(1) - 1).abs() < 0.02).all())  # bf16 rounds


def same_outputs(student: Sequence[Any], teacher: Sequence[Any]) -> None:
    """Raise InputError, saying both, where two models' outputs differ in number or shape (the batch left out)."""
    told = ["; ".join(str(list(value.shape[1:])) for value in side) for side in (student, teacher)]
    if [tuple(v.shape[1:]) for v in student] != [tuple(v.shape[1:]) for v in teacher]:
        raise InputError(
            f"the teacher has other outputs than the model\nmodel: {told[0]} a sample\nteacher: {told[1]} a sample",
            remedy="Take a teacher with the same outputs, in the same order.",
        )
