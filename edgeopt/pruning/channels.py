"""Structured pruning: whole channels leave a torch module, so that the dense network itself is smaller.

Which layers have to lose the same channels (a residual sum ties them, a batch norm follows) is found by Torch-Pruning's
dependency graph, and its importance measures rank the channels. How many leave, and from where, is decided here: counts
are rounded to the nearest multiple of `round_to`, and every group is tried alone first, so that one that the model does
not stand (a reshape with fixed sizes) is left alone with the reason.

Source: Fang et al. 2023, DepGraph, https://arxiv.org/abs/2301.12900, and https://github.com/VainF/Torch-Pruning.
This module knows nothing of recipes or of how accuracy is regained.
"""

from __future__ import annotations

import copy
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any

from edgeopt.errors import StageError
from edgeopt.text import first_line

LEAST_KEPT = 0.1  # of a group's channels under a global ranking, which would empty some layers otherwise
MOST_INDICES = 1 << 17  # of a layer in a group: a VGG's first linear layer has 25,088
SEARCH_STEPS = 12  # halvings of the fraction: to 1/4096


@dataclass(frozen=True)
class Call:
    """What the module is called with: tensors by position and by name, a few samples along the first dimension."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def __call__(self, module: Any) -> Any:
        return module(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Ranking:
    """How channels are chosen. `importance` is "l2", "bn", "taylor" or "random"; `scope` is "local" or "global".

    `gradients(module)` leaves the gradients of a loss in the parameters: Taylor's importance needs them.
    """

    importance: str
    scope: str
    round_to: int
    seed: int
    gradients: Callable[[Any], None]


@dataclass
class Pruned:
    """What was done: `removed` lists (root layer, channels) in the order of doing; `kept` maps a layer to those of its
    first output channels that are left."""

    removed: list[tuple[str, list[int]]] = field(default_factory=list)
    kept: dict[str, list[int]] = field(default_factory=dict)


class Prunable:
    """A module and its groups of channels that can leave together.

    `not_pruned` maps each layer whose outputs stay whole to the reason. `original` says how many output channels the
    layers had at the beginning, which fractions are of, where the module has lost some already. Raises StageError where
    a module cannot be traced, or where nothing in it can be pruned.
    """

    def __init__(
        self,
        module: Any,
        call: Call,
        ignore: Sequence[str],
        round_to: int,
        original: Mapping[str, int] | None = None,
    ) -> None:
        self.module = module
        self.call = call
        self.not_pruned: dict[str, str] = {}
        self._names = {layer: name for name, layer in module.named_modules()}
        self._layers = [layer for layer in self._names if isinstance(layer, _root_types())]
        if not self._layers:
            raise StageError("nothing to prune: the model has no convolutions and no linear layers")
        with _differentiable(module):
            self._leave_alone(_output_layers(module, call, self._layers), ignore)
            self._graph = self._traced()
        self._try_each(round_to)
        at_first = original or {}
        self._channels = {(root := self._root(g)): at_first.get(root, _width(g)) for g in self._groups()}
        if not self._channels:
            raise StageError(f"nothing to prune: {_told(self.not_pruned)}")

    def widths(self) -> dict[str, int]:
        """The output channels of every convolution and linear layer, by name."""
        return {self._names[layer]: _out_channels(layer) for layer in self._layers}

    def prune(self, fraction: float, ranking: Ranking, done: Pruned | None = None) -> Pruned:
        """Remove channels until `fraction` of those at the beginning is gone. `done` is what was removed before."""
        pruned = done or Pruned()
        with _differentiable(self.module):
            if ranking.importance == "taylor":
                ranking.gradients(self.module)
            groups = [(group, self._importance(ranking, group, i)) for i, group in enumerate(self._groups())]
            scored = [(group, scores, self._channels[self._root(group)]) for group, scores in groups]
            for group, indices in _chosen(scored, fraction, ranking):
                self._remove(group, indices, pruned)
        for parameter in self.module.parameters():
            parameter.grad = None
        return pruned

    def fraction_for(self, speedup: float, ranking: Ranking, before: int | None = None) -> float:
        """The smallest fraction whose multiply-accumulates are those of `before` (by default of now) divided by
        `speedup`, found by halving.

        Raises StageError with what can be reached where it cannot.
        """
        before = before or macs(self.module, self.call)

        def reached(fraction: float) -> float:
            with self._undone():
                self.prune(fraction, ranking)
                return before / max(macs(self.module, self.call), 1)

        low, high = 0.0, 0.999
        if (most := reached(high)) < speedup:
            raise StageError(
                f"a speed-up of {speedup:g}x cannot be reached by pruning: all that can be removed gives {most:.1f}x",
                remedy="Ask for less, or for a smaller round_to.",
            )
        for _ in range(SEARCH_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if reached(middle) >= speedup else (middle, high)
        return high

    def explain(self, before: Mapping[str, int]) -> dict[str, str]:
        """Every layer that has as many channels as `before`, with the reason."""
        return {
            name: self.not_pruned.get(name, "its channels rank above those removed, or are fewer than round_to")
            for name, width in self.widths().items()
            if width == before[name]
        }

    def _leave_alone(self, outputs: Sequence[Any], ignore: Sequence[str]) -> None:
        for layer in outputs:
            self.not_pruned[self._names[layer]] = "it makes the model's output"
        for pattern in ignore:
            try:
                matching = [name for name in self._names.values() if name and re.fullmatch(pattern, name)]
            except re.error as error:
                raise StageError(f"ignore: {pattern!r} is not a regular expression: {error}") from error
            if not matching:
                known = [self._names[layer] for layer in self._layers]
                shown = ", ".join(known[:5]) + (" ..." if len(known) > 5 else "")
                raise StageError(f"ignore: no layer is named like {pattern!r}", remedy=f"Its layers: {shown}")
            for layer in self._layers:
                name = self._names[layer]
                if any(name == found or name.startswith(f"{found}.") for found in matching):
                    self.not_pruned.setdefault(name, f"left out by ignore: {pattern}")

    def _traced(self) -> Any:
        import torch_pruning

        try:
            with _quiet():
                return torch_pruning.DependencyGraph().build_dependency(
                    self.module, example_inputs=self.call, forward_fn=lambda module, call: call(module), verbose=False
                )
        except Exception as error:  # tracing runs the user's code: it may raise anything
            raise StageError(f"Torch-Pruning cannot trace the model: {first_line(error)}") from error

    def _groups(self, free: bool = True) -> Iterator[Any]:
        """The groups with all of their channels, each once; where `free`, those alone that may lose channels."""
        visited: set[str] = set()
        for layer in self._layers:
            name = self._names[layer]
            if name in visited or layer not in self._graph.module2node or (free and name in self.not_pruned):
                continue
            handler = self._graph.get_pruner_of_module(layer).prune_out_channels
            try:
                with _bounded():
                    group = self._graph.get_pruning_group(layer, handler, list(range(_out_channels(layer))))
            except _TooManyIndices:
                self.not_pruned.setdefault(name, "what depends on its channels cannot be followed through reshapes")
                continue
            visited.update(members := self._members(group))
            if not (free and any(member in self.not_pruned for member in members)):
                yield group

    def _root(self, group: Any) -> str:
        return str(self._names[group[0].dep.target.module])

    def _members(self, group: Any) -> list[str]:
        """The convolutions and linear layers whose outputs a group is made of."""
        return [
            self._names[dep.target.module]
            for dep, _ in group
            if isinstance(dep.target.module, _root_types()) and self._graph.is_out_channel_pruning_fn(dep.handler)
        ]

    def _try_each(self, round_to: int) -> None:
        """Leave alone what is not reached, what is tied to a layer left alone, and what the model does not stand."""
        reached = {self._names[layer] for layer in self._graph.module2node if layer in self._names}
        for layer in self._layers:
            if self._names[layer] not in reached:
                self.not_pruned.setdefault(self._names[layer], "no output depends on it")
        free = set()
        for group in self._groups(free=False):
            members = self._members(group)
            fixed = next((name for name in members if name in self.not_pruned), None)
            reason = None
            if fixed:
                reason = f"tied to {fixed}: {self.not_pruned[fixed]}"
            elif _width(group) <= (unit := math.lcm(round_to, self._repeats(group))):
                reason = f"its {_width(group)} channels are too few for round_to {round_to}"
            else:
                reason = self._objection(group, list(range(_width(group) - unit, _width(group))))
            for name in members:
                if reason and name not in free:
                    self.not_pruned.setdefault(name, reason)
                elif not reason:
                    free.add(name)
        for layer in self._layers:
            if (name := self._names[layer]) not in free and name in reached:
                self.not_pruned.setdefault(name, "its output channels follow those of its input")

    def _objection(self, group: Any, indices: list[int]) -> str | None:
        """Why the model does not run, or gives other shapes, without these channels. It is left as it was."""
        import torch

        with torch.no_grad():
            before = _shapes(self.call(self.module))
        with self._undone(), torch.no_grad():
            try:
                with redirect_stderr(io.StringIO()):  # torch.fx prints what it raises
                    if not self._remove(group, indices, Pruned()):
                        return "a layer tied to it would be left without channels"
                    after = _shapes(self.call(self.module))
            except Exception as error:  # the user's code, with shapes that it may not have thought of
                return f"the model does not run with fewer channels: {first_line(error)}"
        return None if after == before else "the model's outputs would have other shapes"

    def _remove(self, group: Any, indices: list[int], pruned: Pruned) -> bool:
        """Take channels out of every layer of a group; False where one of them would be left with none."""
        root = group[0].dep
        with _bounded():
            smaller = self._graph.get_pruning_group(root.target.module, root.handler, indices)
        if not self._graph.check_pruning_group(smaller):
            return False
        for dep, gone in smaller:
            layer = dep.target.module
            if layer in self._names and self._graph.is_out_channel_pruning_fn(dep.handler):
                name = self._names[layer]
                left = pruned.kept.get(name) or list(range(_out_channels(layer)))
                dropped = set(gone)
                pruned.kept[name] = [channel for at, channel in enumerate(left) if at not in dropped]
        pruned.removed.append((self._names[root.target.module], indices))
        with _quiet():
            smaller.prune(record_history=False)
        return True

    def _repeats(self, group: Any) -> int:
        """In how many equal parts the channels of a group fall, of which each has to lose the same ones: grouped
        convolutions and group norms."""
        import torch

        found = 1
        for dep, _ in group:
            layer = dep.target.module
            if isinstance(layer, torch.nn.modules.conv._ConvNd) and layer.groups == layer.out_channels:
                continue
            pruner = self._graph.get_pruner_of_module(layer)
            outwards = self._graph.is_out_channel_pruning_fn(dep.handler)
            count = pruner.get_out_channel_groups(layer) if outwards else pruner.get_in_channel_groups(layer)
            found = max(found, int(count or 1))
        return found

    def _importance(self, ranking: Ranking, group: Any, number: int) -> Any:
        """A float tensor: one value for each channel, the mean over its parts where there are several."""
        import torch
        import torch_pruning

        if ranking.importance == "random":
            scores = torch.rand(
                _width(group), generator=torch.Generator().manual_seed(ranking.seed * 1_000_003 + number)
            )
        else:
            measures = {
                "l2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
                "bn": torch_pruning.importance.BNScaleImportance,
                "taylor": torch_pruning.importance.GroupTaylorImportance,
            }
            with _quiet():
                scores = measures[ranking.importance]()(group)
            if scores is None:
                raise StageError(
                    f"importance {ranking.importance}: {self._root(group)} and what is tied to it have no batch norm",
                    remedy="Take importance: l2. An ONNX file has its batch norms folded into the convolutions mostly.",
                )
        parts = self._repeats(group)
        return scores.detach().float().view(parts, -1).mean(0)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Whatever is removed inside comes back: layers keep their sizes and tensors in plain dictionaries, and
        recurrent ones their weights in a list too."""
        saved = [
            (
                layer,
                {key: list(value) if type(value) is list else value for key, value in vars(layer).items()},
                dict(layer._parameters),
                dict(layer._buffers),
            )
            for layer in self.module.modules()
        ]
        nodes, names = dict(self._graph.module2node), dict(self._graph._param_to_name)
        others = [key for key in nodes if key not in self._names and hasattr(key, "__dict__")]
        sizes = [(key, copy.deepcopy(_plain(key))) for key in others]  # of concatenations, splits and reshapes
        try:
            yield
        finally:
            for layer, attributes, parameters, buffers in saved:
                layer.__dict__.clear()
                layer.__dict__.update(attributes)
                for own, kept in ((layer._parameters, parameters), (layer._buffers, buffers)):
                    own.clear()
                    own.update(kept)
            self._graph.module2node, self._graph._param_to_name = nodes, names
            for key, node in nodes.items():
                node.module = key
            for key, plain in sizes:
                key.__dict__.update(plain)


class _TooManyIndices(Exception):
    """A group has more indices than any real one."""


@contextmanager
def _bounded() -> Iterator[None]:
    """Torch-Pruning stops, instead of filling the memory, where reshapes in a circle multiply a group's indices."""
    from torch_pruning.dependency.group import Group

    ordinary = Group.add_dep

    def bounded(group: Any, dep: Any, idxs: Any) -> None:
        if len(idxs) > MOST_INDICES:
            raise _TooManyIndices
        ordinary(group, dep, idxs)

    Group.add_dep = bounded
    try:
        yield
    finally:
        Group.add_dep = ordinary


def widths(module: Any) -> dict[str, int]:
    """The output channels of every convolution and linear layer of a module, by name."""
    return {name: _out_channels(layer) for name, layer in module.named_modules() if isinstance(layer, _root_types())}


def macs(module: Any, call: Call) -> int:
    """Multiply-accumulates of convolutions and matrix products in one call."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(module)
    return int(counter.get_total_flops()) // 2


def _chosen(
    groups: Sequence[tuple[Any, Any, int]], fraction: float, ranking: Ranking
) -> Iterator[tuple[Any, list[int]]]:
    """For each (group, importance of its channels, channels at the beginning) the channels to remove, if any."""
    import torch

    threshold = None
    if ranking.scope == "global":
        everything = torch.cat([scores for _, scores, _ in groups]).sort().values
        at_first = sum(channels * len(scores) / _width(group) for group, scores, channels in groups)
        gone = round(fraction * at_first) - round(at_first - len(everything))
        threshold = float(everything[min(gone, len(everything) - 1)]) if gone > 0 else -math.inf
    for group, scores, channels in groups:
        width = _width(group)
        parts = width // len(scores)
        unit = math.lcm(ranking.round_to, parts)
        if threshold is None:
            wanted = channels * (1 - fraction)
        else:
            wanted = max(float((scores >= threshold).sum()) * parts, LEAST_KEPT * channels)
        keep = max(unit, math.floor(wanted / unit + 0.5) * unit)
        if keep >= width:
            continue
        weakest = torch.argsort(scores, stable=True)[: (width - keep) // parts].tolist()
        yield group, sorted(index + part * len(scores) for part in range(parts) for index in weakest)


def _output_layers(module: Any, call: Call, layers: Sequence[Any]) -> list[Any]:
    """The layers whose output channels are seen in the model's outputs, found by walking autograd's graph back from
    these to the first layers that mix channels."""
    import torch

    makers: dict[Any, Any] = {}

    def remember(layer: Any, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.grad_fn is not None:
            makers[output.grad_fn] = layer

    hooks = [layer.register_forward_hook(remember) for layer in layers]
    try:
        outputs = [leaf for leaf in torch.utils._pytree.tree_leaves(call(module)) if isinstance(leaf, torch.Tensor)]
    finally:
        for hook in hooks:
            hook.remove()
    blind = [str(index) for index, leaf in enumerate(outputs) if leaf.grad_fn is None]
    if blind:
        raise StageError(
            f"output {', '.join(blind)} has no gradient, so that what it depends on cannot be traced",
            remedy="Give a model that ends before such operations as argmax.",
        )
    found: dict[Any, None] = {}
    stack, seen = [leaf.grad_fn for leaf in outputs], set()
    while stack:
        step = stack.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        layer = makers.get(step)
        if layer is not None:
            found[layer] = None
            if getattr(layer, "groups", 1) == 1:
                continue  # behind a grouped convolution the channels are still those of the output
        stack.extend(following for following, _ in step.next_functions)
    return list(found)


@contextmanager
def constants_traced(module: Any) -> Iterator[None]:
    """Per-channel constants of the module's own (a buffer that outputs are multiplied with) are parameters inside, and
    so are seen by the tracing and lose their channels with the others."""
    import torch

    found = []
    for layer in module.modules():
        if type(layer).__module__.startswith("torch.nn."):
            continue
        for name, buffer in layer._buffers.items():
            if buffer is not None and buffer.is_floating_point() and sum(size > 1 for size in buffer.shape) == 1:
                found.append((layer, name, name not in layer._non_persistent_buffers_set))
    for layer, name, _ in found:
        value = layer._buffers.pop(name)
        layer.register_parameter(name, torch.nn.Parameter(value))
    try:
        yield
    finally:
        for layer, name, persistent in found:
            value = layer._parameters.pop(name)
            layer.register_buffer(name, value.detach(), persistent=persistent)


@contextmanager
def _differentiable(module: Any) -> Iterator[None]:
    """Every parameter takes gradients inside: tracing follows autograd's graph."""
    import torch

    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        now = dict(module.named_parameters())
        for name in frozen:
            now[name].requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch-Pruning's warnings about its own defaults are not the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _plain(value: Any) -> dict[str, Any]:
    return {key: item for key, item in vars(value).items() if isinstance(item, (int, list, tuple))}


def _root_types() -> tuple[Any, ...]:
    from torch import nn

    return (nn.modules.conv._ConvNd, nn.Linear)


def _width(group: Any) -> int:
    return len(group[0].idxs)


def _out_channels(layer: Any) -> int:
    for name in ("out_channels", "out_features", "num_features", "num_channels"):
        if isinstance(found := getattr(layer, name, None), int):
            return found
    weight = getattr(layer, "weight", None)
    return int(weight.shape[-1]) if weight is not None else 0


def _shapes(outputs: Any) -> list[tuple[int, ...]]:
    import torch

    return [tuple(leaf.shape) for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def _told(reasons: Mapping[str, str]) -> str:
    told = [f"{name}: {reason}" for name, reason in reasons.items()]
    return "; ".join(told[:6]) + (f"; and {len(told) - 6} more layers" if len(told) > 6 else "")
