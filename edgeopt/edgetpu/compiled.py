"""What is in a .tflite file that the Edge TPU compiler wrote: what runs on the chip, and what stays on the CPU.

Everything on the chip is one custom operator for each partition; what it holds is for the chip's runtime alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.placement import CPU, Placed

CUSTOM = "edgetpu-custom-op"
CHIP = "Edge TPU"


@dataclass(frozen=True)
class Compiled:
    """`partitions` are the operators of the chip, `cpu_operators` the others by type, `program_bytes` what the chip
    loads: instructions and weights."""

    partitions: int
    cpu_operators: Mapping[str, int]
    program_bytes: int

    @property
    def on_cpu(self) -> int:
        return sum(self.cpu_operators.values())

    def placed(self) -> tuple[Placed, ...]:
        """Where operators run. What is in one of the chip's cannot be told."""
        on_cpu = (Placed(name, CPU, count=count) for name, count in self.cpu_operators.items())
        return (Placed(CUSTOM, CHIP, "int8", count=self.partitions), *on_cpu)

    def to_json(self) -> dict[str, Any]:
        return {
            "basis": "compiled",
            "partitions": self.partitions,
            "on_cpu": self.on_cpu,
            "cpu_operators": dict(self.cpu_operators),
            "program_bytes": self.program_bytes,
        }


def read(path: Path) -> Compiled | None:
    """None where the file is not compiled for the Edge TPU. Raises InputError where it is no TFLite file."""
    from edgeopt.formats import tflite

    model = tflite.read(path)
    operators = [(tflite.operator_name(model, o), o) for graph in model.subgraphs for o in graph.operators]
    chips = [operator for name, operator in operators if name == CUSTOM]
    if not chips:
        return None
    return Compiled(
        partitions=len(chips),
        cpu_operators=dict(sorted(Counter(name for name, _ in operators if name != CUSTOM).items())),
        program_bytes=sum(0 if o.customOptions is None else len(o.customOptions) for o in chips),
    )
