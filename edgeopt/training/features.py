"""Features inside a student made like those inside its teacher, by attention maps.

Of each matched layer's output the map is the sum of squares over its channels, one value for each place, brought to
length 1 for each sample. The loss is the squared distance of student's and teacher's maps, the mean over samples and
layers, times beta: between 0 and 4 beta. Maps know nothing of how many channels there are, so that a pruned network is
compared as it is, with nothing learned in between.

Source: Zagoruyko and Komodakis 2017, https://arxiv.org/abs/1612.03928, their "activation-based" transfer with p = 2.
The teacher has to be a torch module, run in every step: no faster runtime gives what is inside, and nothing is cached.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SMALLEST_NORM = 1e-12


class Features:
    """Matched layers of a teacher and of students with the same layer names.

    `patterns` are regular expressions: a layer whose whole name matches one is matched. `rough` lets the teacher
    compute as the student does, in bfloat16 too. Raises InputError where a pattern matches no layer.
    """

    def __init__(self, teacher: Any, patterns: Sequence[str], beta: float, *, rough: bool) -> None:
        self.patterns, self.beta, self._rough = tuple(patterns), beta, rough
        self._teacher = teacher.eval()
        self.names = _matching([name for name, _ in teacher.named_modules() if name], patterns)
        self._maps: dict[str, dict[str, Any]] = {"student": {}, "teacher": {}}
        self._placed: Any = None
        self._watch(self._teacher, "teacher")

    @property
    def largest(self) -> float:
        """What `loss` can be at most."""
        return 4 * self.beta

    def place(self, student: Any, placed: Any) -> None:
        """Watch the student, and compute where it does; `placed` has `device`, and `outputs(module, inputs)`."""
        import torch

        missing = [name for name in self.names if name not in dict(student.named_modules())]
        if missing:
            raise InputError(f"features: the model has no layer {missing[0]}, and its teacher has")
        form = torch.channels_last if placed.channels_last else torch.contiguous_format
        self._teacher.to(placed.device, memory_format=form)
        self._placed = placed
        self._watch(student, "student")

    def teacher(self, inputs: Sequence[Array]) -> list[Array]:
        """The teacher's outputs; what its layers give is kept for `loss`."""
        import torch

        with torch.no_grad():
            values = [torch.from_numpy(value) for value in inputs]
            found = self._placed.outputs(self._teacher, values, exact=not self._rough)
        return [(v.float() if v.is_floating_point() else v).cpu().numpy() for v in found]

    def loss(self) -> Any:
        """A scalar tensor, of the last call of the teacher and the last of the student, with the same samples."""
        total: Any = 0.0
        for name in self.names:
            student, teacher = (self._maps[side].get(name) for side in ("student", "teacher"))
            if student is None or teacher is None:
                raise InputError(
                    f"features: the layer {name} is not called, or gives no tensor with channels and places"
                )
            if student.shape != teacher.shape:
                told = " and ".join(str(list(value.shape[1:])) for value in (student, teacher))
                raise InputError(f"features: the layer {name} gives other places than its teacher's: {told}")
            total = total + (student - teacher).square().sum(1).mean()
        return self.beta * total / len(self.names)

    def _watch(self, module: Any, side: str) -> None:
        layers = dict(module.named_modules())
        for name in self.names:
            layers[name].register_forward_hook(self._keeper(side, name))

    def _keeper(self, side: str, name: str) -> Any:
        def keep(layer: Any, _: Any, output: Any) -> None:
            self._maps[side][name] = attention_map(layer, output)

        return keep


def attention_map(layer: Any, output: Any) -> Any | None:
    """(samples, places) in float32, each row of length 1; None where an output has no channels and places.

    Channels are along axis 1, and last of three axes (tokens) but for convolutions and batch norms.
    """
    import torch

    if not isinstance(output, torch.Tensor) or output.ndim < 3 or not output.is_floating_point():
        return None
    first = (torch.nn.modules.conv._ConvNd, torch.nn.modules.batchnorm._BatchNorm)
    axis = 1 if output.ndim > 3 or isinstance(layer, first) else 2
    energy = output.float().square().sum(axis).flatten(1)
    return torch.nn.functional.normalize(energy, dim=1, eps=SMALLEST_NORM)


def _matching(names: Sequence[str], patterns: Sequence[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for pattern in patterns:
        try:
            matching = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise InputError(f"features: {pattern!r} is not a regular expression: {error}") from error
        if not matching:
            shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
            raise InputError(f"features: no layer is named like {pattern!r}", remedy=f"Its layers: {shown}")
        found.update(dict.fromkeys(matching))
    return tuple(found)
