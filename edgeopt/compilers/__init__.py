"""What turns a model into the artifact of one runtime, on the host: one file a runtime.

They are apart from `backends` because a device that only runs artifacts has no need of them, and because they may use
everything the host half has. A compiler is a module with the names of the protocol `Compiler`, called by the stage
`compile`. To add one from another package, publish it as an entry point in the group `edgeopt.compilers`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any, Protocol, cast

from edgeopt.errors import InputError
from edgeopt.stages import Options, Produced, StageJob

COMPILERS: dict[str, str] = {
    "onnxruntime": "edgeopt.compilers.onnxruntime",
    "openvino": "edgeopt.compilers.openvino",
    "tflite": "edgeopt.compilers.tflite",
    "edgetpu": "edgeopt.compilers.edgetpu",
    "tensorrt": "edgeopt.compilers.tensorrt",
    "torch": "edgeopt.compilers.torch",
}

GROUP = "edgeopt.compilers"


class Compiler(Protocol):
    """The module of a compiler. The vendor libraries are imported inside `compile`.

    One name is optional: `PROGRAMS`, the programs that it calls and that have to be on the search path.
    """

    VERSION: int
    CompileOptions: type[Options]

    def tools(self, options: Any) -> Sequence[str]:
        """The distributions whose versions change the result; also what has to be installed."""
        ...

    def sample_roles(self, options: Any, precision: str) -> Sequence[str]:
        """The data it reads when its parent computes in `precision`."""
        ...

    def objection(self, options: Any, precision: str) -> str | None:
        """Why these options make no sense for a parent that computes in `precision`."""
        ...

    def compile(self, job: StageJob) -> Produced:
        """Do it. Raises UnsupportedOperator naming the operator, or StageError."""
        ...


def names() -> tuple[str, ...]:
    """Every compiler, ours first, then those of other packages."""
    published = importlib.metadata.entry_points(group=GROUP)
    return (*COMPILERS, *(entry.name for entry in published if entry.name not in COMPILERS))


def find(name: str) -> Compiler:
    """The module of a compiler, ours or another package's."""
    module = COMPILERS.get(name)
    if module is None:
        for entry in importlib.metadata.entry_points(group=GROUP):
            if entry.name == name:
                return cast(Compiler, entry.load())
        raise InputError(f"there is no compiler {name!r}", remedy=f"Compilers: {', '.join(names())}.")
    return cast(Compiler, importlib.import_module(module))
