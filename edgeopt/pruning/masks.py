"""Masks: single weights become zero by magnitude, and the network keeps its shape.

Two kinds. Unstructured: so large a share of the weights, in each layer or over all of them together. N of M: of every M
weights along the input channels at least M - N are zero, at each place of a kernel; 2 of 4 is what the sparse tensor
cores of NVIDIA's GPUs take. A mask is not kept anywhere: it is where the weights are zero, of the layers named.

Sources: Mishra et al. 2021, https://arxiv.org/abs/2104.08378, for N of M and its training with the mask held; the
axis is that of TensorRT's developer guide, "Structured Sparsity". This module knows nothing of recipes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgeopt.errors import StageError

LEAST_KEPT = 0.01  # of a layer's weights under a global ranking, which would empty some layers otherwise


def layers(module: Any, ignore: Sequence[str]) -> dict[str, Any]:
    """The convolutions and linear layers by name, less those (and those inside them) that a pattern matches whole.

    Raises StageError where there are none, and where a pattern matches nothing.
    """
    every = [name for name, _ in module.named_modules() if name]
    ignored: set[str] = set()
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds())}
    if not found:
        raise StageError("nothing to prune: the model has no convolutions and no linear layers")
    for pattern in ignore:
        try:
            matching = [name for name in every if re.fullmatch(pattern, name)]
        except re.error as error:
            raise StageError(f"ignore: {pattern!r} is not a regular expression: {error}") from error
        if not matching:
            shown = ", ".join(list(found)[:5]) + (" ..." if len(found) > 5 else "")
            raise StageError(f"ignore: no layer is named like {pattern!r}", remedy=f"Its layers: {shown}")
        ignored.update(name for name in found if any(name == m or name.startswith(f"{m}.") for m in matching))
    return {name: layer for name, layer in found.items() if name not in ignored}


def kinds() -> tuple[Any, ...]:
    """The classes of layers whose weights can be masked."""
    from torch import nn

    return (nn.modules.conv._ConvNd, nn.Linear)


def unstructured(chosen: Mapping[str, Any], fraction: float, scope: str) -> None:
    """Set the `fraction` of weights that are smallest to zero: of each layer ("local"), or of all ("global").

    Of equal weights those that come first. Under "global" a layer keeps a hundredth of its weights.
    """
    import torch

    magnitudes = {name: layer.weight.detach().abs().flatten() for name, layer in chosen.items()}
    counts = {name: round(fraction * len(values)) for name, values in magnitudes.items()}
    if scope == "global":
        together = torch.cat(list(magnitudes.values()))
        count = round(fraction * len(together))
        threshold = float(together.sort().values[count - 1]) if count else -1.0
        counts = {
            name: min(int((values <= threshold).sum()), len(values) - math.ceil(LEAST_KEPT * len(values)))
            for name, values in magnitudes.items()
        }
    with torch.no_grad():
        for name, layer in chosen.items():
            smallest = torch.argsort(magnitudes[name], stable=True)[: counts[name]]
            gone = torch.zeros_like(magnitudes[name], dtype=torch.bool)
            gone[smallest] = True
            layer.weight.masked_fill_(gone.view_as(layer.weight), 0)


def n_of_m(chosen: Mapping[str, Any], n: int, m: int) -> dict[str, str]:
    """Keep the `n` largest of every `m` weights along the input channels. Returns the layers left alone, with why."""
    import torch

    left: dict[str, str] = {}
    with torch.no_grad():
        for name, layer in chosen.items():
            weight, axis = _along_inputs(layer)
            size = weight.shape[axis]
            if size % m:
                left[name] = f"its {size} input channels{_of_a_group(layer)} are not a multiple of {m}"
                continue
            grouped = weight.movedim(axis, -1).unflatten(-1, (-1, m))
            order = torch.argsort(grouped.abs(), dim=-1, stable=True)
            gone = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, order[..., : m - n], True)
            weight.masked_fill_(gone.flatten(-2).movedim(-1, axis), 0)
    return left


def sparsity(chosen: Mapping[str, Any]) -> dict[str, float]:
    """The fraction of weights that are zero, by layer."""
    return {name: float((layer.weight == 0).double().mean()) for name, layer in chosen.items()}


def of_history(history: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The layers that a step before has masked, by the module's history."""
    return tuple(dict.fromkeys(name for entry in history for name in entry.get("masked", ())))


@dataclass(frozen=True)
class Masks:
    """Where the weights of some layers may be other than zero: {layer: bool tensor of the weight's shape}."""

    where: Mapping[str, Any]

    @staticmethod
    def of(module: Any, names: Sequence[str]) -> Masks:
        """The masks of these layers as they are."""
        every = dict(module.named_modules())
        return Masks({name: every[name].weight.detach().ne(0).cpu() for name in names})

    def apply(self, module: Any) -> None:
        """Set to zero again what was zero, in this module or in another of the same structure."""
        import torch

        every = dict(module.named_modules())
        with torch.no_grad():
            for name, mask in self.where.items():
                weight = every[name].weight
                weight.masked_fill_(~mask.to(weight.device), 0)

    @contextmanager
    def held(self, module: Any) -> Iterator[None]:
        """Whatever trains the module inside, weights that were zero are zero after.

        Their gradients are zero: then no optimizer moves a weight that is zero, and weight decay does not either. What
        does otherwise (noise added to weights) is undone at the end.
        """

        def masked(mask: Any) -> Any:
            return lambda gradient: gradient * mask.to(gradient.device)

        every = dict(module.named_modules())
        weights = [(every[name].weight, mask) for name, mask in self.where.items()]
        hooks = [weight.register_hook(masked(mask)) for weight, mask in weights if weight.requires_grad]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.apply(module)


def _along_inputs(layer: Any) -> tuple[Any, int]:
    """The weights, and the axis that is summed over: 1, and 0 of a transposed convolution, whose groups lie there."""
    if not getattr(layer, "transposed", False):
        return layer.weight, 1
    return layer.weight.unflatten(0, (layer.groups, -1)), 1


def _of_a_group(layer: Any) -> str:
    return "" if getattr(layer, "groups", 1) == 1 else " in a group"
