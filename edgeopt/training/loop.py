"""Fine-tuning a network after a teacher: loss, optimizer, schedule, augmentation, averaging, checkpoints.

The loss is that of Hinton et al. 2015 (https://arxiv.org/abs/1503.02531): alpha T^2 KL(teacher || student) at the
temperature T, plus (1 - alpha) cross-entropy where there are labels. The teacher sees the very images the student sees,
augmented ones too (Beyer et al. 2022, https://arxiv.org/abs/2106.05237). What is kept is the epoch that did best on a
split of the training data that is never trained on; validation data is not known here.

Everything random follows from the seed and the number of the epoch, and nothing else: a run that was killed goes on
from its last checkpoint to bitwise the same weights on the same machine. This module knows nothing of stages or files
of models.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import InputError, StageError
from edgeopt.formats.exporting import flatten
from edgeopt.text import named_line
from edgeopt.training.augmentation import augment
from edgeopt.training.checkpoint import Checkpoint, Epoch, State, copy_of
from edgeopt.training.features import Features
from edgeopt.training.objective import LossOptions, Objective, same_outputs

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Teacher = Callable[[Sequence[Array]], Sequence[Array]]

Progress = Callable[[float | None, str], None]

LARGEST_HELD_OUT = 5000
START_OF_RATE = 0.04  # of the peak, where the warm-up starts
DIVERGED = 10.0  # times the loss of a network that outputs zeros
FEWEST_FOR_STATISTICS = 8  # samples in a batch, under which batch norm keeps the statistics it has


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    `rate` is the peak of the learning rate, reached after `warm_up` (a fraction of all steps) and falling to zero with
    a cosine. `ema` is the decay of the average of weights, 0 for none. `patience` is how many epochs without a better
    held-out loss end the training, 0 for never. `held_out` is the fraction of samples that is not trained on, at most
    5,000. `batch_statistics`: whether batch norm computes with those of a batch and updates its own. `bf16` and
    `channels_last`: None takes what is faster here. `cache_bytes` is what the teacher's outputs may take in memory;
    beyond it, and where images are augmented, the teacher runs in every step.
    """

    epochs: int = 5
    batch: int = 128
    rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: float = 0.2
    clip: float = 1.0
    loss: LossOptions = field(default_factory=LossOptions)
    augment: str = "none"
    ema: float = 0.99
    patience: int = 5
    held_out: float = 0.05
    seed: int = 0
    bf16: bool | None = None
    channels_last: bool | None = None
    batch_statistics: bool = True
    cache_bytes: int = 1 << 30


@dataclass(frozen=True)
class TrainingData:
    """`inputs(indices)` gives the model's inputs in order, samples along the first axis; `labels` are class indices.

    The last inputs are handed to the model by name: `keywords`.
    """

    count: int
    inputs: Callable[[Array], Sequence[Array]]
    labels: Array | None = None
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingResult:
    """What a training did. The student holds the weights of `best_epoch`; 0 is the student as it came.

    `score` is named by `metric`: "top1" where there are labels for class scores, else "agreement" with the teacher
    (fractions), "sqnr" (signal to noise against the teacher, dB) where outputs are no class scores. `seconds` and
    `images_per_s` count training alone, in this process.
    """

    epochs: tuple[Epoch, ...]
    best_epoch: int
    metric: str
    score_before: float
    score_after: float
    loss_before: float
    loss_after: float
    losses: tuple[str, ...]
    samples: int
    held_out: int
    seconds: float
    images_per_s: float | None
    resumed_after: int
    stopped_early: bool
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def train(
    student: Any,
    teacher: Teacher,
    data: TrainingData,
    options: TrainingOptions,
    checkpoints: Path | None,
    progress: Progress,
    features: Features | None = None,
) -> TrainingResult:
    """Train `student` (a torch.nn.Module on the CPU, inputs by position) in place to do what `teacher` does.

    `checkpoints` is a folder that outlives the process: after each epoch its state is written there, and a later call
    with the same arguments goes on from it. With `features` their loss is added, and their own teacher runs. Raises
    InputError where data, teacher and student do not fit each other, StageError where the training diverges.
    """
    import torch

    training, held_out = split(data.count, options.held_out, options.seed)
    notes: list[str] = []
    placed = _place(student, data, held_out[: options.batch], options)
    if features:
        features.place(student, placed)
        teacher = features.teacher
    evaluation = Evaluation(student, teacher, data, held_out, options, placed)
    objective = evaluation.objective
    cached = None if features else _teacher_outputs(teacher, data, training, options, progress)
    batch = min(options.batch, len(training))
    steps = len(training) // batch
    fixed = batch < FEWEST_FOR_STATISTICS or not options.batch_statistics
    if fixed and options.batch_statistics and _batch_norms(student):
        notes.append(f"batches of {batch}: batch norm keeps its statistics")

    optimizer = torch.optim.AdamW(parameter_groups(student, options.weight_decay), lr=options.rate, fused=True)
    loss_before, score_before = evaluation.of(student)
    state = State.start(student, loss_before)
    same = [sorted(asdict(options).items()), data.count, *([features.patterns, features.beta] if features else [])]
    checkpoint = Checkpoint(checkpoints, same) if checkpoints else None
    if checkpoint:
        state = checkpoint.read(student, optimizer, state)
    resumed_after = len(state.epochs)
    limit = DIVERGED * max(loss_before, evaluation.loss_of_zeros()) + (features.largest if features else 0)
    started = time.monotonic()

    while len(state.epochs) < options.epochs and not state.exhausted(options.patience):
        number = len(state.epochs) + 1
        # nothing random is carried over: what an epoch draws depends on its number alone
        torch.manual_seed(_seed(options.seed, number, 0))
        generator = torch.Generator().manual_seed(_seed(options.seed, number, 1))
        order = training[torch.randperm(len(training), generator=generator).numpy()]
        student.train()
        if fixed:
            for layer in _batch_norms(student):
                layer.eval()
        total = 0.0
        for step in range(steps):
            indices = order[step * batch : (step + 1) * batch]
            done = (number - 1) * steps + step
            for group in optimizer.param_groups:
                group["lr"] = options.rate * schedule(done, options.epochs * steps, options.warm_up)
            inputs = augment(options.augment, [_tensor(value) for value in data.inputs(indices)], generator)
            if cached is None:
                wanted = [_tensor(value) for value in teacher([value.numpy() for value in inputs])]
            else:
                wanted = [value[_tensor(indices)] for value in cached]
            labels = None if data.labels is None else _tensor(data.labels[indices]).long()
            loss = objective(placed.outputs(student, inputs), placed.moved(wanted), placed.label(labels))
            if features:
                loss = loss + features.loss()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if options.clip:
                torch.nn.utils.clip_grad_norm_(student.parameters(), options.clip)
            optimizer.step()
            state.average(student, options.ema)
            value = float(loss.detach())
            total += value
            if not math.isfinite(value):
                raise _diverged(number, value, options, checkpoint)
            told = len(state.epochs) - resumed_after + (step + 1) / steps
            left = (time.monotonic() - started) / told * (options.epochs - resumed_after - told)
            if step % 10 == 9 or step + 1 == steps:
                text = f"epoch {number}/{options.epochs}, loss {total / (step + 1):.4f}, {_left(left)}"
                progress((done + 1) / (options.epochs * steps), f"{text}{state.told(objective.metric)}")
        if total / steps > limit:
            raise _diverged(number, total / steps, options, checkpoint)
        with _holding(student, state.averaged):
            held_out_loss, score = evaluation.of(student)
        if not math.isfinite(held_out_loss) or held_out_loss > limit:
            raise _diverged(number, held_out_loss, options, checkpoint)
        state.add(Epoch(number, total / steps, held_out_loss, score))
        if checkpoint:
            checkpoint.write(student, optimizer, state)

    seconds = time.monotonic() - started
    student.load_state_dict(state.best)
    student.to(device="cpu", memory_format=torch.contiguous_format).eval()
    best = state.epochs[state.best_epoch - 1] if state.best_epoch else None
    trained = (len(state.epochs) - resumed_after) * steps * batch
    return TrainingResult(
        epochs=tuple(state.epochs),
        best_epoch=state.best_epoch,
        metric=objective.metric,
        score_before=score_before,
        score_after=best.score if best else score_before,
        loss_before=loss_before,
        loss_after=best.held_out_loss if best else loss_before,
        losses=tuple(objective.kinds),
        samples=len(training),
        held_out=len(held_out),
        seconds=seconds,
        images_per_s=trained / seconds if trained else None,
        resumed_after=resumed_after,
        stopped_early=len(state.epochs) < options.epochs,
        settings={**placed.to_json(), "teacher_outputs": "computed in every step" if cached is None else "cached"},
        notes=(*notes, *objective.notes),
    )


def takes_batches(module: Any, data: TrainingData) -> bool:
    """Whether a module gives two rows of outputs for two samples, the first as for the first sample alone."""
    import numpy as np
    import torch

    module.eval()
    with torch.no_grad():
        try:
            inputs = [_tensor(value) for value in data.inputs(np.arange(2))]
            found = Placement("cpu", keywords=data.keywords).outputs(module, inputs)
        except RuntimeError:
            return False
        alone = Placement("cpu", keywords=data.keywords).outputs(module, [value[:1] for value in inputs])
    return all(
        value.ndim > 0 and len(value) == 2 and torch.allclose(value[:1].float(), one.float(), rtol=1e-3, atol=1e-3)
        for value, one in zip(found, alone)
    )


def threads() -> int:
    """That torch computes with."""
    import torch

    return int(torch.get_num_threads())


def split(count: int, fraction: float, seed: int) -> tuple[Array, Array]:
    """Indices to train on and indices held out, both sorted; drawn by `seed`. Raises InputError below two samples."""
    import numpy as np

    if count < 2:
        raise InputError(f"training needs at least 2 samples, and there is {count}")
    held_out = min(max(1, round(count * fraction)), LARGEST_HELD_OUT, count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def schedule(step: int, steps: int, warm_up: float) -> float:
    """The learning rate at `step` of `steps` as a fraction of its peak: up from 0.04 in half a cosine, down to 0.

    One cycle, after Smith and Topin 2018 (https://arxiv.org/abs/1708.07120).
    """
    rising = warm_up * steps
    if step < rising:
        return START_OF_RATE + (1 - START_OF_RATE) * (1 - math.cos(math.pi * step / rising)) / 2
    return (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1))) / 2


@dataclass(frozen=True)
class Placement:
    """Where and in which form the student computes."""

    device: str
    bf16: bool = False
    channels_last: bool = False
    keywords: tuple[str, ...] = ()

    def outputs(self, student: Any, inputs: Sequence[Any], *, exact: bool = False) -> list[Any]:
        """Run the student; `exact` is in float32."""
        import torch

        kind = self.device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=self.bf16 and not exact):
            placed = self.moved(inputs)
            first = len(placed) - len(self.keywords)
            return flatten(student(*placed[:first], **dict(zip(self.keywords, placed[first:]))))[0]

    def moved(self, values: Sequence[Any]) -> list[Any]:
        import torch

        placed = [value.to(self.device) for value in values]
        if not self.channels_last:
            return placed
        return [v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for v in placed]

    def label(self, labels: Any | None) -> Any | None:
        return None if labels is None else labels.to(self.device)

    def to_json(self) -> dict[str, Any]:
        return {"device": self.device, "bf16": self.bf16, "channels_last": self.channels_last}


def _place(student: Any, data: TrainingData, indices: Array, options: TrainingOptions) -> Placement:
    """Move the student to where it trains, each speed-up tried first: code that reshapes may not take channels_last.

    Measured on the Fashion-MNIST sample (batches of 128, 2 cores with AMX, microseconds an image for a whole step):
    full width fp32 3178, channels_last 2755, bf16 1528, both 1108; half width channels_last 942, bf16 729, both 571.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = options.bf16 if options.bf16 is not None else _has_fast_bf16(device)
    four = any(parameter.ndim == 4 for parameter in student.parameters())
    last = options.channels_last if options.channels_last is not None else four
    plain = Placement(device, False, False, data.keywords)
    student.to(device).eval()
    inputs = [_tensor(value) for value in data.inputs(indices)]
    kinds = ((bf16, last), (bf16, False), (False, False))
    for wanted in dict.fromkeys(Placement(device, *kind, data.keywords) for kind in kinds):
        student.to(memory_format=torch.channels_last if wanted.channels_last else torch.contiguous_format)
        try:
            with torch.no_grad():
                wanted.outputs(student, inputs)
            return wanted
        except (RuntimeError, TypeError, ValueError) as error:
            if wanted == plain:
                raise StageError(f"the model does not run on its training data: {named_line(error)}") from error
    raise AssertionError("the last placement returns or raises")


def _has_fast_bf16(device: str) -> bool:
    import torch

    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported())
    with contextlib.suppress(OSError):
        words = set(Path("/proc/cpuinfo").read_text().split())
        return bool(words & {"amx_bf16", "avx512_bf16", "bf16"})
    return False


class Evaluation:
    """Loss and score on the held-out samples. The teacher runs on them once."""

    def __init__(
        self,
        student: Any,
        teacher: Teacher,
        data: TrainingData,
        indices: Array,
        options: TrainingOptions,
        placed: Placement,
    ) -> None:
        import torch

        self._data, self._indices, self._batch, self._placed = data, indices, options.batch, placed
        pieces = [[_tensor(v) for v in teacher(data.inputs(piece))] for piece in self._pieces()]
        self._wanted = [torch.cat(values) for values in zip(*pieces)]
        self._labels = None if data.labels is None else _tensor(data.labels[indices]).long()
        with torch.no_grad():
            student.eval()
            first = placed.outputs(student, [_tensor(v) for v in data.inputs(next(iter(self._pieces())))], exact=True)
        same_outputs(first, self._wanted)
        all_labels = None if data.labels is None else _tensor(data.labels)
        self.objective = Objective(self._wanted, all_labels, options.loss)

    def of(self, student: Any) -> tuple[float, float]:
        """(loss, score) of the student in evaluation mode, in float32."""
        import torch

        student.eval()
        with torch.no_grad():
            pieces = [
                self._placed.outputs(student, [_tensor(v) for v in self._data.inputs(piece)], exact=True)
                for piece in self._pieces()
            ]
            found = [torch.cat(values).cpu() for values in zip(*pieces)]
            loss = float(self.objective(found, self._wanted, self._labels))
            return loss, self.objective.score(found, self._wanted, self._labels)

    def loss_of_zeros(self) -> float:
        """The loss of a network whose outputs are all the same: what any training should stay below."""
        import torch

        same = [torch.full_like(value, 1 / value.shape[1] if value.ndim > 1 else 0.0) for value in self._wanted]
        return float(self.objective(same, self._wanted, self._labels))

    def _pieces(self) -> Iterator[Array]:
        for start in range(0, len(self._indices), self._batch):
            yield self._indices[start : start + self._batch]


def _teacher_outputs(
    teacher: Teacher,
    data: TrainingData,
    training: Array,
    options: TrainingOptions,
    progress: Progress,
) -> list[Any] | None:
    """The teacher's outputs for all samples, those held out left zero; None where every step computes its own.

    Computed in one fixed order, because a runtime's rounding may depend on a sample's place in the batch.
    """
    import numpy as np

    if options.augment != "none" or options.epochs < 2:
        return None
    kept: list[Array] = []
    for start in range(0, len(training), options.batch):
        indices = training[start : start + options.batch]
        outputs = teacher(data.inputs(indices))
        if not kept:
            kept = [np.zeros((data.count, *value.shape[1:]), value.dtype) for value in outputs]
            if sum(value.nbytes for value in kept) > options.cache_bytes:
                return None
        for whole, piece in zip(kept, outputs):
            whole[indices] = piece
        progress(None, f"the teacher's outputs, {start + len(indices)} of {len(training)}")
    return [_tensor(value) for value in kept]


def parameter_groups(student: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for weights alone: not for biases and the scales of norms, which are vectors."""
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if not trainable:
        raise StageError("the model has no parameters to train")
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _batch_norms(student: Any) -> list[Any]:
    import torch

    return [layer for layer in student.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]


def _diverged(epoch: int, loss: float, options: TrainingOptions, checkpoint: Checkpoint | None) -> StageError:
    if checkpoint:
        checkpoint.remove()
    return StageError(
        f"the training diverged in epoch {epoch}: loss {loss:.4g}",
        remedy=f"Set a lower learning rate than {options.rate:g}.",
    )


@contextlib.contextmanager
def _holding(student: Any, weights: Mapping[str, Any]) -> Iterator[None]:
    """For a while, the student has other weights."""
    own = copy_of(student.state_dict())
    student.load_state_dict(weights)
    try:
        yield
    finally:
        student.load_state_dict(own)


def _tensor(value: Any) -> Any:
    """An array, possibly of memory that cannot be written, as a tensor."""
    import numpy as np
    import torch

    return torch.from_numpy(np.require(value, requirements=["C", "W"]))


def _seed(seed: int, epoch: int, use: int) -> int:
    import numpy as np

    return int(np.random.SeedSequence([seed, epoch, use]).generate_state(1, np.uint64)[0] >> 1)


def _left(seconds: float) -> str:
    return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
