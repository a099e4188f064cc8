"""QuantizeLinear and DequantizeLinear in torch: fake quantization, through which gradients pass straight.

Integers are carried as floats, and computed in float32 whatever the caller's autocast: what comes out is bit for bit
what ONNX's operators give, round half to even, saturation and zero points included. Backwards an element counts as
untouched where it was inside the integer type's range and as constant where it saturated: the straight-through
estimator, Bengio et al. 2013, https://arxiv.org/abs/1308.3432.

`QUANTIZERS` is a table as `onnx_operators.OPERATORS` is, for models whose weights are to be trained: a constant that a
DequantizeLinear reads becomes a parameter with a quantizer before it, where int32 constants (biases) stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgeopt.formats.onnx_node import as_tensor

if TYPE_CHECKING:
    from edgeopt.formats.onnx_node import Node

    Translate = Callable[[Node], Any]

TRAINABLE_TYPES = ("int8", "uint8")
TYPES = ("int8", "uint8", "int16", "uint16")
WIDEST = 127
CONSTANTS = "quantizer"  # in the meta of a graph's node: its scale and zero point as arrays


def quantize(x: Any, scale: Any, zero_point: Any, low: int, high: int) -> Any:
    """saturate(round_half_even(x / scale) + zero_point), the integers as float32. All that is given broadcasts to x."""
    return _straight_through()(x, scale, zero_point, low, high, False)


def dequantize(integers: Any, scale: Any, zero_point: Any) -> Any:
    """(integers - zero_point) scale, in float32."""
    return (integers - zero_point) * scale


def fake_quantize(x: Any, scale: Any, zero_point: Any, low: int, high: int) -> Any:
    """`dequantize` of `quantize` in one."""
    return _straight_through()(x, scale, zero_point, low, high, True)


@functools.cache
def _straight_through() -> Any:
    import torch

    class Quantize(torch.autograd.Function):  # type: ignore[misc]  # torch's types are not read
        @staticmethod
        def forward(ctx: Any, x: Any, scale: Any, zero_point: Any, low: int, high: int, back: bool) -> Any:
            real = x.float()
            steps = (real / scale if real is x else real.div_(scale)).round_()
            # saturating before the zero point is added saves adding and taking it off again, and is as exact
            kept = steps.clamp(low - zero_point, high - zero_point)
            if ctx.needs_input_grad[0]:
                ctx.save_for_backward(steps == kept, scale)
                ctx.back, ctx.dtype = back, x.dtype
            return kept.mul_(scale) if back else kept.add_(zero_point)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            inside, scale = ctx.saved_tensors
            passed = gradient * inside
            return ((passed if ctx.back else passed / scale).to(ctx.dtype), None, None, None, None, None)

    return Quantize.apply


def quantize_linear(n: Node) -> Any:
    scale, zero_point = _constants(n)
    made = n.graph.call_function(quantize, (n.tensor(0), scale, zero_point, *_range(n)))
    made.meta[CONSTANTS] = (n.value(1), n.value(2))
    return made


def dequantize_linear(n: Node) -> Any:
    if n.is_constant(0):
        integers = n.value(0)
        if str(integers.dtype) not in TRAINABLE_TYPES:
            return n.folded()[0]
        weight = n.parameter(0, n.folded()[0])
        return n.graph.call_function(fake_quantize, (weight, *_constants(n), *_range_of_weight(n)))
    integers = n.value(0)
    if _same(integers.meta.get(CONSTANTS), (n.value(1), n.value(2))):
        return n.graph.call_function(fake_quantize, integers.args)
    return n.graph.call_function(dequantize, (integers, *_constants(n)))


def _constants(n: Node) -> tuple[Any, Any]:
    """Scale and zero point, which broadcast to the first input: a buffer, and a number where that is enough."""
    import numpy as np

    if not n.is_constant(1) or not (n.value(2) is None or n.is_constant(2)):
        raise n.unsupported("its scale or zero point is computed at run time")
    shape = n.shape(0)
    axis = n.attribute("axis", 1)
    scale, zero_point = n.value(1), n.value(2)
    if scale.size == 1:
        wide: tuple[int, ...] = ()
    elif scale.ndim == 1 and scale.size == shape[axis % len(shape)]:
        wide = tuple(scale.size if position == axis % len(shape) else 1 for position in range(len(shape)))
    else:
        raise n.unsupported(f"a scale of the shape {list(scale.shape)} for an input of {list(shape)}")
    if scale.dtype != np.float32:
        raise n.unsupported(f"its scale is {scale.dtype}")
    offset: Any = 0.0
    if zero_point is not None and zero_point.any():
        offset = zero_point.astype(np.float32).reshape(wide)
        offset = float(offset) if offset.ndim == 0 else _buffer(n, "zero_point", offset)
    return _buffer(n, "scale", scale.reshape(wide)), offset


def _buffer(n: Node, name: str, array: Any) -> Any:
    return as_tensor(array, f"{name}_{n.position}", n.root, n.graph)


def _range(n: Node) -> tuple[int, int]:
    import numpy as np

    kind = "uint8" if n.value(2) is None else str(n.value(2).dtype)
    if kind not in TYPES:
        raise n.unsupported(f"its integers are {kind}")
    ends = np.iinfo(kind)
    return int(ends.min), int(ends.max)


def _range_of_weight(n: Node) -> tuple[int, int]:
    """Of symmetric weights, those that the quantizer used: to -127, or to 7 bits alone."""
    integers, zero_point = n.value(0), n.value(2)
    if str(integers.dtype) != "int8" or (zero_point is not None and zero_point.any()):
        return _range(n)
    most = int(abs(integers.astype(int)).max()) or WIDEST
    return -most, most


def _same(left: Any, right: Any) -> bool:
    import numpy as np

    return left is not None and all(
        (a is None and b is None) or (a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b))
        for a, b in zip(left, right)
    )


QUANTIZERS: Mapping[str, Translate] = {"QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear}
