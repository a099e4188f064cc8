"""What a network's layers see changes when channels leave before them: here it is measured again, without training.

Batch norms forget their running mean and variance and take those of some batches. A network without any (an ONNX file
has them folded into its convolutions) is mended likewise: every channel's output gets back the mean and variance that
it had in the whole network, by scaling the weights that make it.

Source: Jordan et al. 2022, REPAIR, https://arxiv.org/abs/2211.08403, for the second; the first is its special case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Batches = Callable[[], Iterable[Callable[[Any], Any]]]  # each of them calls a module with a batch
EPSILON = 1e-6


def has_batch_norm(module: Any) -> bool:
    """Whether there are running statistics to measure again."""
    return bool(_batch_norms(module))


def batch_norms(module: Any, batches: Batches) -> int:
    """Measure the running statistics of every batch norm again; the plain mean over the batches. Returns how many."""
    import torch

    found = _batch_norms(module)
    momenta = [layer.momentum for layer in found]
    module.eval()
    for layer in found:
        layer.reset_running_stats()
        layer.momentum = None  # the cumulative mean
        layer.train()
    with torch.no_grad():
        for call in batches():
            call(module)
    for layer, momentum in zip(found, momenta):
        layer.momentum = momentum
        layer.eval()
    return len(found)


def moments(module: Any, names: Iterable[str], batches: Batches) -> dict[str, tuple[Any, Any]]:
    """The mean and variance of each output channel of the layers named, over the batches: {name: (mean, variance)}."""

    totals: dict[str, list[Any]] = {}

    def add(name: str) -> Any:
        def hook(layer: Any, _: Any, output: Any) -> None:
            mean, variance = _of_channels(layer, output)
            total = totals.setdefault(name, [0, 0.0, 0.0])
            total[0] += 1
            total[1] = total[1] + mean.double()
            total[2] = total[2] + variance.double()

        return hook

    _run_hooked(module, {name: add(name) for name in names}, batches)
    return {name: (mean / count, variance / count) for name, (count, mean, variance) in totals.items()}


def _run_hooked(module: Any, hooks: Mapping[str, Any], batches: Batches) -> None:
    """All batches through the module, with a forward hook on each layer named, and none of them left after."""
    import torch

    layers = dict(module.named_modules())
    handles = [layers[name].register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        with torch.no_grad():
            for call in batches():
                call(module)
    finally:
        for handle in handles:
            handle.remove()


def restore(
    module: Any, wanted: Mapping[str, tuple[Any, Any]], kept: Mapping[str, Sequence[int]], batches: Batches
) -> int:
    """Scale and shift the layers' weights so that their outputs have the moments `wanted` of the channels `kept`.

    In a forward pass every layer already sees mended inputs: outputs are normalized on the way, batch by batch, and
    what that took, its mean over the batches, goes into weights and biases at the end. Returns how many were mended.
    """
    import torch

    layers = dict(module.named_modules())
    targets: dict[str, tuple[Any, Any]] = {}
    for name, (mean, variance) in wanted.items():
        if name in layers:
            index = torch.tensor(kept.get(name) or range(len(mean)))
            targets[name] = (mean[index], variance[index])
    totals: dict[str, list[Any]] = {}

    def mend(name: str) -> Any:
        def hook(layer: Any, _: Any, output: Any) -> Any:
            mean, variance = _of_channels(layer, output)
            scale, shift = _affine(layer, targets[name], mean.double(), variance.double())
            total = totals.setdefault(name, [0, 0.0, 0.0])
            total[0] += 1
            total[1] = total[1] + mean.double()
            total[2] = total[2] + variance.double()
            shape = _along_channels(layer, output)
            return output * scale.to(output.dtype).view(shape) + shift.to(output.dtype).view(shape)

        return hook

    _run_hooked(module, {name: mend(name) for name in targets}, batches)
    with torch.no_grad():
        for name, (count, mean, variance) in totals.items():
            layer = layers[name]
            scale, shift = _affine(layer, targets[name], mean / count, variance / count)
            weight = layer.weight
            if getattr(layer, "transposed", False):
                per_group = scale.view(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1)
                factor = per_group.reshape(weight.shape[0], -1, *[1] * (weight.dim() - 2))
            else:
                factor = scale.view(-1, *[1] * (weight.dim() - 1))
            weight.copy_(weight.double() * factor)
            if layer.bias is not None:
                layer.bias.copy_(layer.bias.double() * scale + shift)
    return len(totals)


def _affine(layer: Any, wanted: tuple[Any, Any], mean: Any, variance: Any) -> tuple[Any, Any]:
    """The scale and shift that bring the moments found to those wanted. A constant channel is shifted alone, and a
    layer without a bias is scaled alone."""
    import torch

    scale = torch.where(variance > EPSILON, (wanted[1] / variance.clamp(min=EPSILON)).sqrt(), 1.0)
    shift = wanted[0] - mean * scale
    return scale, shift if layer.bias is not None else torch.zeros_like(shift)


def _of_channels(layer: Any, output: Any) -> tuple[Any, Any]:
    axis = _axis(layer, output)
    others = [dimension for dimension in range(output.dim()) if dimension != axis]
    return output.mean(others), output.var(others, unbiased=False)


def _along_channels(layer: Any, output: Any) -> list[int]:
    axis = _axis(layer, output)
    return [-1 if dimension == axis else 1 for dimension in range(output.dim())]


def _axis(layer: Any, output: Any) -> int:
    import torch

    return int(output.dim()) - 1 if isinstance(layer, torch.nn.Linear) else 1


def _batch_norms(module: Any) -> list[Any]:
    import torch

    kinds = (torch.nn.modules.batchnorm._BatchNorm,)
    return [layer for layer in module.modules() if isinstance(layer, kinds) and layer.track_running_stats]
