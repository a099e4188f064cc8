"""What turns a model into the artifact of one runtime, on the host: one file a runtime.

They are apart from `backends` because a device that only runs artifacts has no need of them, and because they may use
everything the host half has. A compiler is a module with the names of the protocol `Compiler`, called by the stage
`compile`. To add one from another package, publish it as an entry point in the group `edgeopt.compilers`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Sequence
from typing import Any, Protocol, cast

from pydantic import ValidationError

from edgeopt.errors import InputError
from edgeopt.stages import Options, Produced, StageJob
from edgeopt.target import Target

COMPILERS: dict[str, str] = {
    "onnxruntime": "edgeopt.compilers.onnxruntime",
    "openvino": "edgeopt.compilers.openvino",
    "tflite": "edgeopt.compilers.tflite",
    "edgetpu": "edgeopt.compilers.edgetpu",
    "tensorrt": "edgeopt.compilers.tensorrt",
    "torch": "edgeopt.compilers.torch",
    "ncnn": "edgeopt.compilers.ncnn",
}

GROUP = "edgeopt.compilers"
_SHAPE = re.compile(r"(?P<name>[^,\s]+):(?P<sizes>\d+(x\d+)*)")


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


def options_on(target: Target, choice: str, options: Options) -> Options:
    """Options of a compile step, where they leave something open as the target says it in `runtimes`.

    Raises InputError where the two do not go together.
    """
    told = target.runtimes.get(choice)
    try:
        return type(options).model_validate({**told, **options.model_dump(exclude_unset=True)}) if told else options
    except ValidationError as error:
        why = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"{choice} on {target.name}: {why}") from None


def listed(text: str) -> list[str]:
    """ "sm86, sm89" as ["sm86", "sm89"]."""
    return [part for part in re.split(r"[,\s]+", text) if part]


def read_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """ "tokens:1x16,mask:1x16" as {"tokens": (1, 16), "mask": (1, 16)}. Raises ValueError."""
    found = {}
    for part in listed(text):
        match = _SHAPE.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no shape: write it like tokens:1x16")
        found[match["name"]] = tuple(int(size) for size in match["sizes"].split("x"))
    return found
