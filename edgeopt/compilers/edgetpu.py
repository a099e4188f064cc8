"""The Coral Edge TPU: an integer .tflite file all through, compiled by Google's compiler where that is installed.

The compiler wants integers as inputs and outputs too, static shapes with a batch of 1, one scale for the weights of a
FULLY_CONNECTED, and weights inside the flatbuffer. It alone decides what runs on the chip: without it there is no
artifact. What it would probably decide is told by `edgeopt inspect` (`edgeopt.edgetpu.partition`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgeopt.backends import edgetpu as backend
from edgeopt.compilers import tflite
from edgeopt.edgetpu import compiled, program
from edgeopt.errors import StageError
from edgeopt.formats import ModelRef
from edgeopt.formats import tflite as reader
from edgeopt.placement import CPU, Placed
from edgeopt.quantization import litert
from edgeopt.stages import Options, Produced, StageJob

VERSION = 2
MAIN = "model_edgetpu.tflite"
PROGRAMS = (program.PROGRAM,)


class CompileOptions(Options):
    """A .tflite file whose integers run on a Coral Edge TPU."""

    io: Literal["int8", "uint8"] = Field(default="int8", description="The type of inputs and outputs.")
    device: Literal["usb", "pci"] = Field(default="usb", description="How the chip is attached.")
    least_runtime: int | None = Field(
        default=None,
        ge=10,
        description="The oldest version of the Edge TPU runtime to work with; the compiler's choice where left out.",
        examples=[13],
    )
    time_limit: int = Field(default=600, ge=1, description="Seconds after which edgetpu_compiler is stopped.")


def tools(options: CompileOptions) -> Sequence[str]:
    return tflite.tools(tflite.CompileOptions())


def sample_roles(options: CompileOptions, precision: str) -> Sequence[str]:
    return tflite.sample_roles(tflite.CompileOptions(), precision)


def objection(options: CompileOptions, precision: str) -> str | None:
    if precision != "int8":
        return f"the Edge TPU computes in 8-bit integers alone, and this model computes in {precision}: quantize: int8"
    return None


def compile(job: StageJob) -> Produced:
    """The file `model_edgetpu.tflite`.

    `details` are those of `edgeopt.compilers.tflite.build`, and "placement" (which operators are on the chip) and
    "edgetpu" (what the compiler told). Raises MissingDependency without the compiler, StageError with its words where
    it fails.
    """
    program.find()  # before the work, not after
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        form = litert.Integers(job.options.io, products_per_tensor=True, inline=True)
        made = tflite.build(replace(job, out=folder), "int8", form)
        if int(made.inputs[0].shape[0]) != 1:
            raise StageError(f"the Edge TPU takes one sample at a time, and {made.inputs[0]} is made for more")
        job.progress(0.97, "compiling for the Edge TPU")
        limits = {"least_runtime": job.options.least_runtime, "seconds": job.options.time_limit}
        last, log = program.compile(folder / made.main, folder, **limits)
        last.replace(job.out / MAIN)
    found = compiled.read(job.out / MAIN)
    if found is None:
        raise StageError("the compiler mapped no operator to the Edge TPU: the whole model would run on the CPU")
    summary = reader.inspect(ModelRef(str(job.out / MAIN)), None)
    inputs = tuple(replace(spec, layout=was.layout) for spec, was in zip(summary.inputs, made.inputs, strict=True))
    return Produced(
        format=backend.FORMAT,
        main=MAIN,
        inputs=inputs,
        outputs=summary.outputs,
        precision="int8",
        runtime={"device": job.options.device},
        details={
            **made.details,
            "placement": [placed.to_json() for placed in _placement(found, log)],
            "edgetpu": log.to_json(),
        },
    )


def _placement(found: compiled.Compiled, log: program.Log) -> Iterator[Placed]:
    """What the compiler tells of the chip, and what the compiled file holds besides, with the compiler's reasons."""
    chip, *on_cpu = found.placed()
    yield from [placed for placed in log.placed if placed.where != CPU] or [chip]
    reasons = {placed.operator: placed.reason for placed in log.placed}
    for placed in on_cpu:
        yield replace(placed, reason=reasons.get(placed.operator))
