"""Depth pruning: residual blocks leave a torch module, so that there are fewer layers to run one after the other.

A residual block computes g(x + f(x)), with convolutions or linear layers in f and none on the way of x; without it x
goes on as it is. Small networks are bound by how many layers there are: removing a block can be worth more latency
than removing the same multiply-accumulates by channels.

A block is a submodule, or, in a graph brought in from ONNX, the branch that a sum adds. Blocks are ranked by what the
outputs lose without each. Source: residual networks behave like ensembles of paths, of which single ones can be left
out: Veit et al. 2016, https://arxiv.org/abs/1605.06431. This module knows nothing of channels or of recipes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

Batches = Callable[[], Iterable[Callable[[Any], Any]]]  # as in `recalibration`: some samples, each a call of the module

_MIXING = (
    "Convolution",
    "Addmm",
    "MmBackward",
    "BmmBackward",
    "Linear",
    "Attention",
    "Embedding",
    "Mul",
    "Cat",
    "Slice",
)


def find(module: Any, call: Callable[[Any], Any]) -> list[str]:
    """The residual blocks that `call(module)` runs, by name, in the order of running. Inner ones, where they nest."""
    import torch

    if isinstance(module, torch.fx.GraphModule):
        return list(_branches(module, call))
    return _submodules(module, call)


def remove(module: Any, name: str) -> None:
    """Take one block of those that `find` named out of the module, in place."""
    import torch

    if isinstance(module, torch.fx.GraphModule):
        _bypass(module, name)
    else:
        module.set_submodule(name, _skipped())


def _skipped() -> Any:
    """What stands where a block was: it gives back the first thing that it gets."""
    import torch

    class Skipped(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any, *_: Any, **__: Any) -> Any:
            return x

    return Skipped()


def weakest(
    module: Any, names: Iterable[str], batches: Batches, mend: Callable[[Any], object]
) -> tuple[str, dict[str, float]]:
    """The block without which the outputs change least, and for each: error power over signal power at the outputs.

    `mend(module)` recalibrates what stands behind the gap. The module itself is left as it is.
    """
    wanted = _outputs(module, batches)
    power = sum(float((value.double() ** 2).sum()) for value in wanted)
    costs = {}
    for name in names:
        trial = copy.deepcopy(module)
        remove(trial, name)
        mend(trial)
        error = sum(
            float(((found.double() - value.double()) ** 2).sum())
            for found, value in zip(_outputs(trial, batches), wanted, strict=True)
        )
        costs[name] = error / power if power else error
    return min(costs, key=lambda name: costs[name]), costs


def _outputs(module: Any, batches: Batches) -> list[Any]:
    import torch

    with torch.no_grad():
        return [leaf for call in batches() for leaf in torch.utils._pytree.tree_leaves(call(module))]


def _submodules(module: Any, call: Callable[[Any], Any]) -> list[str]:
    """The innermost submodules that give back what they got plus something that layers made of it."""
    import torch

    names = {layer: name for name, layer in module.named_modules() if name and any(layer.children())}
    entered: dict[Any, Any] = {}
    calls: dict[str, int] = {}
    found: dict[str, None] = {}

    def enter(layer: Any, args: tuple[Any, ...]) -> None:
        calls[names[layer]] = calls.get(names[layer], 0) + 1
        given = args[0] if args and isinstance(args[0], torch.Tensor) else None
        entered[layer] = (None, None) if given is None else (given.grad_fn, given.shape)

    def leave(layer: Any, _: Any, output: Any) -> None:
        start, shape = entered[layer]
        if start is None or not isinstance(output, torch.Tensor) or output.shape != shape:
            return
        if _holds_layers(layer) and _skips(output.grad_fn, start):
            found[names[layer]] = None

    hooks = [layer.register_forward_pre_hook(enter) for layer in names]
    hooks += [layer.register_forward_hook(leave) for layer in names]
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        with torch.enable_grad():
            call(module)
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
    order = {name: position for position, name in enumerate(names.values())}
    blocks = [name for name in found if calls[name] == 1 and not any(o.startswith(f"{name}.") for o in found)]
    return sorted(blocks, key=order.__getitem__)


def _holds_layers(layer: Any) -> bool:
    import torch

    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear, torch.nn.MultiheadAttention)
    return any(isinstance(inner, kinds) for inner in layer.modules())


def _skips(end: Any, start: Any) -> bool:
    """Whether autograd's graph has a way from `end` back to `start` on which sums stand, and nothing that mixes."""
    stack, seen, sums = [(end, False)], set(), False
    while stack:
        step, summed = stack.pop()
        if step is start:
            sums = sums or summed
            continue
        if step is None or (step, summed) in seen or any(kind in step.name() for kind in _MIXING):
            continue
        seen.add((step, summed))
        summed = summed or step.name().startswith("AddBackward")
        stack.extend((following, summed) for following, _ in step.next_functions)
    return sums


def _branches(module: Any, call: Callable[[Any], Any]) -> dict[str, tuple[Any, Any]]:
    """{name of a sum: (the sum, what it adds a branch to)} of a torch.fx graph, in the order of running."""
    import operator

    import torch

    shapes = _shapes(module, call)
    place = {node: position for position, node in enumerate(module.graph.nodes)}
    found: dict[str, tuple[Any, Any]] = {}
    for node in module.graph.nodes:
        if node.target not in (operator.add, torch.add) or len(node.all_input_nodes) != 2:
            continue
        for source, branch in (node.all_input_nodes, node.all_input_nodes[::-1]):
            inside = _between(source, branch, place)
            if not inside or shapes.get(source) is None or shapes[source] != shapes.get(node):
                continue
            leaves = all(set(inner.users) <= {*inside, node} for inner in inside)
            if leaves and any(_is_layer(module, inner) for inner in inside):
                found[node.name] = (node, source)
    return found


def _between(source: Any, end: Any, place: dict[Any, int]) -> set[Any]:
    """The nodes that `end` is made of, itself included, up to `source`; empty where it is made of other things too."""
    inside: set[Any] = set()
    stack, met = [end], False
    while stack:
        node = stack.pop()
        if node is source:
            met = True
        elif node not in inside and node.op != "get_attr":
            if place[node] < place[source]:
                return set()
            inside.add(node)
            stack.extend(node.all_input_nodes)
    return inside if met else set()


def _is_layer(module: Any, node: Any) -> bool:
    return node.op == "call_module" and _holds_layers(module.get_submodule(str(node.target)))


def _shapes(module: Any, call: Callable[[Any], Any]) -> dict[Any, Any]:
    import torch

    shapes: dict[Any, Any] = {}

    class Shapes(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, node: Any) -> Any:
            value = super().run_node(node)
            if isinstance(value, torch.Tensor):
                shapes[node] = tuple(value.shape)
            return value

    with torch.no_grad():
        call(Shapes(module).run)
    return shapes


def _bypass(module: Any, name: str) -> None:
    """What the sum was added to goes on in place of the sum."""
    node = next(node for node in module.graph.nodes if node.name == name)
    source = min(node.all_input_nodes, key=list(module.graph.nodes).index)  # the branch is made of it, and comes after
    node.replace_all_uses_with(source)
    module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    module.delete_all_unused_submodules()
