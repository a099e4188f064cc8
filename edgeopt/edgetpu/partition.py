"""Which operators of a .tflite file the Edge TPU compiler would map to the chip: predicted, never compiled.

The compiler makes one partition: an operator that it does not take stays on the CPU, and so does everything that needs
what that operator computes out of the chip's results. Operators that come before anything is mapped, such as the
quantization of a float input, do not end the partition. The rules are data, in rules.yaml, each with its source; they
leave out limits that nobody has written down, above all on sizes.

How far to trust it: written from the documentation and 27 models of google-coral, the rules then told the partition of
28 of 40 further models as the compiler had made it, and corrected for those, of 60 of the next 65. As they are now,
corrected again, they tell all but 2 of these 132, which says nothing about the next model.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import yaml
from edgeopt.edgetpu.operators import Graph, Operator, Tensor

RULES = Path(__file__).with_name("rules.yaml")
AFTER = "after one that stays on the CPU: there is only one partition"


@dataclass(frozen=True)
class Prediction:
    """`reasons[i]` is why operator i would stay on the CPU, None where it would be mapped."""

    names: tuple[str, ...]
    reasons: tuple[str | None, ...]

    @property
    def mapped(self) -> int:
        return sum(reason is None for reason in self.reasons)

    @property
    def on_cpu(self) -> int:
        return len(self.reasons) - self.mapped

    def to_json(self) -> dict[str, Any]:
        kept = Counter((name, reason) for name, reason in zip(self.names, self.reasons, strict=True) if reason)
        return {
            "basis": "predicted",
            "operators": len(self.names),
            "mapped": self.mapped,
            "on_cpu": self.on_cpu,
            "kept_on_cpu": [{"operator": n, "count": count, "reason": r} for (n, r), count in kept.items()],
        }


def predict(graph: Graph) -> Prediction:
    """The partition of a model that is not compiled yet."""
    reasons: list[str | None] = []
    from_chip: set[int] = set()  # tensors that the chip, or something after it, computes
    ended: set[int] = set()  # of those, what the CPU computes
    for operator in graph.operators:
        reason = objection(operator, graph.tensors)
        if reason is None and ended.intersection(operator.inputs):
            reason = AFTER
        if reason is None:
            from_chip.update(operator.outputs)
        elif from_chip.intersection(operator.inputs):
            from_chip.update(operator.outputs)
            ended.update(operator.outputs)
        reasons.append(reason)
    return Prediction(tuple(operator.name for operator in graph.operators), tuple(reasons))


def objection(operator: Operator, tensors: Mapping[int, Tensor]) -> str | None:
    """Why the chip does not take an operator by itself, None where no rule is against it."""
    rules = _rules()
    own = rules["operators"].get(operator.name)
    if own is None:
        return "not among the supported operators"
    inputs = [tensors[index] for index in operator.inputs]
    outputs = [tensors[index] for index in operator.outputs]
    for name, wanted in {**rules["all"], **own}.items():
        if name != "basis" and (reason := CONDITIONS[name](wanted, operator, inputs, outputs)):
            return reason
    return None


@functools.cache
def _rules() -> Any:
    return yaml.load(RULES).value


def _dtypes(wanted: list[str], _operator: Operator, inputs: list[Tensor], outputs: list[Tensor]) -> str | None:
    found = [t.dtype for t in (*inputs, *outputs) if not t.constant and t.dtype not in wanted]
    return f"works on {found[0]}, and not on 8-bit integers" if found else None


def _innermost(wanted: int, _operator: Operator, inputs: list[Tensor], outputs: list[Tensor]) -> str | None:
    for tensor in (*inputs, *outputs):
        if tensor.constant:
            continue
        if any(size < 0 for size in tensor.shape):
            return "a size that is not known before it runs"
        if any(size > 1 for size in tensor.shape[:-wanted]):
            return f"more than {wanted} dimensions above 1: {list(tensor.shape)}"
    return None


def _activation(_wanted: str, operator: Operator, _inputs: list[Tensor], _outputs: list[Tensor]) -> str | None:
    return "a fused activation function" if operator.options.get("fusedActivationFunction") else None


def _dilation(_wanted: str, operator: Operator, inputs: list[Tensor], _outputs: list[Tensor]) -> str | None:
    unlike = operator.options.get("dilationHFactor", 1) != operator.options.get("dilationWFactor", 1)
    matters = all(size > 1 for size in inputs[1].shape[1:3])  # (channels, height, width, channels)
    return "unlike dilation in height and width" if unlike and matters else None


def _weights_format(wanted: int, operator: Operator, _inputs: list[Tensor], _outputs: list[Tensor]) -> str | None:
    return None if operator.options.get("weightsFormat", 0) == wanted else "weights in a format other than the default"


def _output(_wanted: str, _operator: Operator, _inputs: list[Tensor], outputs: list[Tensor]) -> str | None:
    shape = outputs[0].shape
    return f"an output of more than one dimension: {list(shape)}" if any(size > 1 for size in shape[:-1]) else None


def _elements(wanted: int, _operator: Operator, _inputs: list[Tensor], outputs: list[Tensor]) -> str | None:
    return f"an output of more than {wanted} elements" if outputs[0].elements > wanted else None


def _batch(_wanted: str, operator: Operator, inputs: list[Tensor], _outputs: list[Tensor]) -> str | None:
    if operator.name == "PACK":
        touched = operator.options.get("axis", 0) == 0 and bool(inputs[0].shape)
    elif operator.name == "PAD":
        padded = inputs[1].value
        touched = len(inputs[0].shape) == 4 and padded is not None and any(padded[:2])
    else:
        axes, rank = inputs[1].value, len(inputs[0].shape)  # of a reduction
        touched = axes is not None and any(axis % max(1, rank) == 0 for axis in axes)
    return "works along the batch" if touched else None


def _constants(wanted: int, _operator: Operator, inputs: list[Tensor], _outputs: list[Tensor]) -> str | None:
    return "a constant input" if sum(tensor.constant for tensor in inputs) > wanted else None


def _enlarges(wanted: float, _operator: Operator, inputs: list[Tensor], outputs: list[Tensor]) -> str | None:
    times = [large / small for small, large in zip(inputs[0].shape[1:3], outputs[0].shape[1:3], strict=False)]
    return f"enlarges {max(times):.3g} times" if max(times, default=0) > wanted else None


CONDITIONS: Mapping[str, Callable[[Any, Operator, list[Tensor], list[Tensor]], str | None]] = {
    "dtypes": _dtypes,
    "innermost": _innermost,
    "activation": _activation,
    "dilation": _dilation,
    "weights_format": _weights_format,
    "output": _output,
    "elements": _elements,
    "batch": _batch,
    "constants": _constants,
    "enlarges": _enlarges,
}
