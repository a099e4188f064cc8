"""What ONNX's layers become in torch: convolutions, pools, normalization, matrix products.

As `onnx_operators`, of whose table these are a part: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.formats.onnx_node import Node

    Translate = Callable[[Node], Any]


def _explicit_pads(n: Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Begins, then ends, of each spatial axis, as the attribute `pads` has them."""
    mode, axes = n.attribute("auto_pad", "NOTSET"), len(kernel)
    if mode == "VALID":
        return [0] * 2 * axes
    if mode == "NOTSET":
        return list(n.attribute("pads", [0] * 2 * axes))
    begins, ends = [], []
    for size, k, stride, dilation in zip(n.shape(0)[2:], kernel, strides, dilations):
        total = max(0, (math.ceil(size / stride) - 1) * stride + dilation * (k - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends


def _window(n: Node, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads."""
    strides = list(n.attribute("strides", [1] * len(kernel)))
    dilations = list(n.attribute("dilations", [1] * len(kernel)))
    return strides, dilations, _explicit_pads(n, kernel, strides, dilations)


def padded(n: Node, x: Any, pads: Sequence[int], value: float = 0.0, mode: str = "constant") -> Any:
    """ONNX's order (all begins, then all ends, of the last axes) to torch's (pairs, last axis first)."""
    half = len(pads) // 2
    pairs = [pad for axis in reversed(range(half)) for pad in (pads[axis], pads[half + axis])]
    while len(pairs) > 2 and not any(pairs[-2:]):
        pairs = pairs[:-2]
    if not any(pairs):
        return x
    return n.call("pad", x, pairs, mode, value) if mode == "constant" else n.call("pad", x, pairs, mode)


def convolution(n: Node) -> Any:
    weight, bias, group = n.value(1), n.value(2), n.attribute("group", 1)
    kernel = n.shape(1)[2:]
    strides, dilations, pads = _window(n, kernel)
    x, half = n.tensor(0), len(kernel)
    if pads[:half] != pads[half:]:
        x, pads = padded(n, x, pads), [0] * 2 * half
    if not n.is_constant(1) or (bias is not None and not n.is_constant(2)):
        return n.call(f"conv{half}d", x, n.tensor(1), n.parameter(2), strides, pads[:half], dilations, group)
    return n.layer(
        f"Conv{half}d",
        x,
        weight.shape[1] * group,
        weight.shape[0],
        kernel,
        stride=strides,
        padding=pads[:half],
        dilation=dilations,
        groups=group,
        bias=bias is not None,
        tensors={"weight": weight, **({} if bias is None else {"bias": bias})},
    )


def transposed_convolution(n: Node) -> Any:
    weight, bias, group = n.value(1), n.value(2), n.attribute("group", 1)
    kernel, half = n.shape(1)[2:], len(n.shape(1)) - 2
    strides, dilations = n.attribute("strides", [1] * half), n.attribute("dilations", [1] * half)
    extra, mode = list(n.attribute("output_padding", [0] * half)), n.attribute("auto_pad", "NOTSET")
    full = [
        (size - 1) * s + d * (k - 1) + 1 + e
        for size, s, d, k, e in zip(n.shape(0)[2:], strides, dilations, kernel, extra)
    ]
    pads = list(n.attribute("pads", [0] * 2 * half))
    if mode in ("SAME_UPPER", "SAME_LOWER") or n.attribute("output_shape"):
        total = [f - out for f, out in zip(full, n.output_shape()[2:])]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if mode == "SAME_UPPER" else large + small
    symmetric = pads[:half] == pads[half:] and min(pads) >= 0
    if not n.is_constant(1) or (bias is not None and not n.is_constant(2)):
        inner = pads[:half] if symmetric else [0] * half
        options = (strides, inner, extra, group, dilations)
        y = n.call(f"conv_transpose{half}d", n.tensor(0), n.tensor(1), n.parameter(2), *options)
        return y if symmetric else padded(n, y, [-p for p in pads])
    y = n.layer(
        f"ConvTranspose{half}d",
        n.tensor(0),
        weight.shape[0],
        weight.shape[1] * group,
        kernel,
        stride=strides,
        padding=pads[:half] if symmetric else [0] * half,
        output_padding=extra,
        groups=group,
        bias=bias is not None,
        dilation=dilations,
        tensors={"weight": weight, **({} if bias is None else {"bias": bias})},
    )
    return y if symmetric else padded(n, y, [-p for p in pads])


def max_pool(n: Node) -> Any:
    if len(n.proto.output) > 1:
        raise n.unsupported("its indices are asked for")
    kernel = n.attribute("kernel_shape")
    strides, dilations, pads = _window(n, kernel)
    x, half = n.tensor(0), len(kernel)
    if pads[:half] != pads[half:] or any(2 * p > k for p, k in zip(pads, kernel)):
        x, pads = padded(n, x, pads, -math.inf), [0] * 2 * half
    options: dict[str, Any] = {"stride": strides, "padding": pads[:half], "dilation": dilations}
    return n.layer(f"MaxPool{half}d", x, kernel, ceil_mode=bool(n.attribute("ceil_mode", 0)), **options)


def average_pool(n: Node) -> Any:
    kernel = n.attribute("kernel_shape")
    strides, dilations, pads = _window(n, kernel)
    if any(d != 1 for d in dilations):
        raise n.unsupported("dilation")
    half, counted, ceil = len(kernel), bool(n.attribute("count_include_pad", 0)), bool(n.attribute("ceil_mode", 0))
    options: dict[str, Any] = {"stride": strides, "ceil_mode": ceil}
    if pads[:half] == pads[half:] and all(2 * p <= k for p, k in zip(pads, kernel)):
        return n.layer(
            f"AvgPool{half}d", n.tensor(0), kernel, padding=pads[:half], count_include_pad=counted, **options
        )
    y = n.layer(f"AvgPool{half}d", padded(n, n.tensor(0), pads), kernel, **options)
    return y if counted else n.call("mul", y, n.buffer(_pool_correction(n, kernel, strides, pads, ceil)))


def _pool_correction(n: Node, kernel: Any, strides: Any, pads: Sequence[int], ceil: bool) -> Any:
    """Window size over the number of its elements that are not padding, at each output position."""
    import numpy as np
    import torch

    half = len(kernel)
    ones = torch.ones(1, 1, *n.shape(0)[2:])
    pairs = [pad for axis in reversed(range(half)) for pad in (pads[axis], pads[half + axis])]
    pool = getattr(torch.nn, f"AvgPool{half}d")(kernel, strides, ceil_mode=ceil)
    return (1 / pool(torch.nn.functional.pad(ones, pairs))).numpy().astype(np.float32)


def global_pool(kind: str) -> Translate:
    return lambda n: n.layer(f"Adaptive{kind}Pool{len(n.shape(0)) - 2}d", n.tensor(0), 1)


def batch_norm(n: Node) -> Any:
    if not all(n.is_constant(i) for i in range(1, 5)):
        raise n.unsupported("its statistics are computed at run time")
    import numpy as np

    scale, bias, mean, variance = (n.value(i) for i in range(1, 5))
    return n.layer(
        f"BatchNorm{max(1, len(n.shape(0)) - 2)}d",
        n.tensor(0),
        scale.size,
        eps=n.attribute("epsilon", 1e-5),
        momentum=1 - n.attribute("momentum", 0.9),
        tensors={
            "weight": scale,
            "bias": bias,
            "running_mean": mean,
            "running_var": variance,
            "num_batches_tracked": np.array(0, np.int64),
        },
    )


def layer_norm(n: Node) -> Any:
    if len(n.proto.output) > 1:
        raise n.unsupported("its mean is asked for")
    shape = n.shape(0)
    axis, epsilon = n.attribute("axis", -1) % len(shape), n.attribute("epsilon", 1e-5)
    bias_given = n.value(2) is not None
    if n.is_constant(1) and n.shape(1) == shape[axis:] and (not bias_given or n.is_constant(2)):
        tensors = {"weight": n.value(1), **({"bias": n.value(2)} if bias_given else {})}
        return n.layer("LayerNorm", n.tensor(0), shape[axis:], eps=epsilon, bias=bias_given, tensors=tensors)
    y = n.call("mul", n.call("layer_norm", n.tensor(0), shape[axis:], None, None, epsilon), n.tensor(1))
    return n.call("add", y, n.tensor(2)) if bias_given else y


def instance_norm(n: Node) -> Any:
    if not (n.is_constant(1) and n.is_constant(2)):
        raise n.unsupported("its weights are computed at run time")
    options = {"eps": n.attribute("epsilon", 1e-5), "affine": True}
    tensors = {"weight": n.value(1), "bias": n.value(2)}
    return n.layer(f"InstanceNorm{len(n.shape(0)) - 2}d", n.tensor(0), n.shape(0)[1], tensors=tensors, **options)


def group_norm(n: Node) -> Any:
    groups, channels, epsilon = n.attribute("num_groups"), n.shape(0)[1], n.attribute("epsilon", 1e-5)
    if not (n.is_constant(1) and n.is_constant(2)):
        raise n.unsupported("its weights are computed at run time")
    weight, bias = n.value(1), n.value(2)
    if weight.size == groups != channels:  # until opset 21 there is one for each group
        weight, bias = weight.repeat(channels // groups), bias.repeat(channels // groups)
    return n.layer("GroupNorm", n.tensor(0), groups, channels, eps=epsilon, tensors={"weight": weight, "bias": bias})


def local_response_norm(n: Node) -> Any:
    options = {"alpha": n.attribute("alpha", 1e-4), "beta": n.attribute("beta", 0.75), "k": n.attribute("bias", 1.0)}
    return n.layer("LocalResponseNorm", n.tensor(0), n.attribute("size"), **options)


def gemm(n: Node) -> Any:
    alpha, beta, bias = n.attribute("alpha", 1.0), n.attribute("beta", 1.0), n.value(2)
    a = n.call("transpose", n.tensor(0), 0, 1) if n.attribute("transA", 0) else n.tensor(0)
    if n.is_constant(1) and (bias is None or (n.is_constant(2) and bias.size == n.output_shape()[1])):
        weight = n.value(1) if n.attribute("transB", 0) else n.value(1).T
        tensors = {"weight": weight if alpha == 1 else weight * weight.dtype.type(alpha)}
        if bias is not None:
            tensors["bias"] = (bias if beta == 1 else bias * bias.dtype.type(beta)).reshape(-1)
        return n.layer("Linear", a, weight.shape[1], weight.shape[0], bias=bias is not None, tensors=tensors)
    if alpha == beta == 1 and n.attribute("transB", 0) and n.is_constant(2) and bias.size == n.output_shape()[1]:
        return n.call("linear", a, n.tensor(1), n.parameter(2, bias.reshape(-1)))
    b = n.call("transpose", n.tensor(1), 0, 1) if n.attribute("transB", 0) else n.tensor(1)
    y = n.call("matmul", a, b)
    y = y if alpha == 1 else n.call("mul", y, alpha)
    return y if bias is None else n.call("add", y, n.tensor(2), alpha=beta)


def matmul(n: Node) -> Any:
    weight = n.value(1)
    if n.is_constant(1) and weight.ndim == 2:
        tensors = {"weight": weight.T}
        return n.layer("Linear", n.tensor(0), weight.shape[0], weight.shape[1], bias=False, tensors=tensors)
    return n.call("matmul", n.tensor(0), n.tensor(1))


def einsum(n: Node) -> Any:
    return n.call("einsum", n.attribute("equation"), *(n.tensor(i) for i in range(len(n))))
