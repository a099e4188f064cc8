"""A training loop of the user's own in place of ours: called with model, teacher and data, and judged the same way.

    def train(model, teacher, data):
        for image, label in torch.utils.data.DataLoader(data, batch_size=128, shuffle=True):
            scores = teacher(image)
            ...
        return model

`model` is a torch.nn.Module on the CPU, `teacher` takes and gives tensors as it does, `data` is a dataset: `data[i]` is
the tuple of the model's inputs for one sample, with its label last where there are labels. What is held out to judge
the result is not among them.

A function with a fourth argument is given a folder (pathlib.Path) for checkpoints: what it leaves there is there again
when the process was killed on the way and the same step is done again. It is gone once the step is done.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import InputError
from edgeopt.source import load_function
from edgeopt.training import loop
from edgeopt.training.loop import Evaluation, Progress, TrainingData, TrainingOptions

if TYPE_CHECKING:
    import numpy as np

    from edgeopt.training.loop import Teacher

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Dataset:
    """The samples of `indices`, one by one or many at once, as torch.utils.data.DataLoader asks for them."""

    data: TrainingData
    indices: Array

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        return self.__getitems__([range(len(self))[position]])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[tuple[Any, ...]]:
        import torch

        chosen = self.indices[list(positions)]
        columns: list[Any] = [torch.from_numpy(value) for value in self.data.inputs(chosen)]
        if self.data.labels is not None:
            columns.append([int(label) for label in self.data.labels[chosen]])
        return list(zip(*columns))


def run(
    location: str,
    student: Any,
    teacher: Teacher,
    data: TrainingData,
    options: TrainingOptions,
    progress: Progress,
    checkpoints: Path | None = None,
    settle: Callable[[Any], None] | None = None,
) -> tuple[Any, dict[str, Any], tuple[Path, ...]]:
    """Call the function at `location`: the trained module, what to tell of it, and the files the code was loaded from.

    `checkpoints` is the folder for a fourth argument, made where it is missing. `settle(module)` is called on what the
    function returns, before that is judged. Raises InputError with the place in the user's code where it raises, and
    where it returns something else than the model that it got.
    """
    import torch

    chosen, held_out = loop.split(data.count, options.held_out, options.seed)
    shapes = {name: tuple(value.shape) for name, value in student.state_dict().items()}
    evaluation = Evaluation(student, teacher, data, held_out, options, loop.Placement("cpu", keywords=data.keywords))
    loss_before, score_before = evaluation.of(student)
    torch.manual_seed(options.seed)
    progress(None, f"training with {location.rpartition('/')[2]}")
    started = time.monotonic()
    function = load_function(location, what="training function")

    def ask(*inputs: Any) -> Any:
        found = [torch.from_numpy(value) for value in teacher([value.detach().cpu().numpy() for value in inputs])]
        return found[0] if len(found) == 1 else tuple(found)

    arguments: list[Any] = [student.train(), ask, Dataset(data, chosen)]
    if checkpoints and _takes(function.function, len(arguments) + 1):
        checkpoints.mkdir(parents=True, exist_ok=True)
        arguments.append(checkpoints)
    returned, sources = function.call(*arguments)
    seconds = time.monotonic() - started
    _check_same(location, type(student), shapes, returned)
    trained = returned.to("cpu").eval()
    if settle:
        settle(trained)
    loss, score = evaluation.of(trained)
    details = {
        "finetune": location.rpartition("/")[2],
        "held_out": {
            "metric": evaluation.objective.metric,
            "samples": len(held_out),
            "before": score_before,
            "after": score,
            "loss_before": loss_before,
            "loss_after": loss,
        },
        "training_samples": len(chosen),
        "training_seconds": round(seconds, 1),
        "notes": tuple(evaluation.objective.notes),
    }
    own = location.rpartition(":")[0]
    return trained, details, (*([Path(own).resolve()] if own.endswith(".py") else []), *sources)


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments by position; no where it cannot be known."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _check_same(location: str, kind: type, shapes: dict[str, tuple[int, ...]], returned: Any) -> None:
    import torch

    remedy = "Return the model that the function got, trained."
    # by name: each torch.fx.GraphModule is of a class of its own
    if not isinstance(returned, torch.nn.Module) or type(returned).__name__ != kind.__name__:
        raise InputError(f"{location} returns {type(returned).__name__}, not the {kind.__name__} it got", remedy=remedy)
    found = {name: tuple(value.shape) for name, value in returned.state_dict().items()}
    if found != shapes:
        name = next(name for name in (*shapes, *found) if found.get(name) != shapes.get(name))
        told = [list(side[name]) if name in side else "absent" for side in (found, shapes)]
        raise InputError(f"{location} returns another model: {name} is {told[0]}, and was {told[1]}", remedy=remedy)
