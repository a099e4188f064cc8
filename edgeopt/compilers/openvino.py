"""OpenVINO's Intermediate Representation from ONNX, float or Q/DQ, which OpenVINO takes as it is.

Weights that alone are quantized stay so in the file and in memory. OpenVINO would quantize activations with them at run
time: it is told whether to, by a setting of the artifact.

It knows nothing of the target: whether its CPU has bf16 or f16 arithmetic is seen where the model is loaded.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from edgeopt import units
from edgeopt.artifact import Artifact
from edgeopt.backends import openvino as backend
from edgeopt.compilers import read_shapes
from edgeopt.errors import InputError, StageError
from edgeopt.stages import Options, Produced, StageJob
from edgeopt.target import Target

VERSION = 1
MODEL = "model.xml"
GROUP = 32  # activations that share a scale found at run time: OpenVINO's own default
_COUNTED = re.compile(r"[A-Za-z]\w*_\d+")


class CompileOptions(Options):
    """OpenVINO's Intermediate Representation."""

    precision: Literal["auto", "fp16", "bf16"] = Field(
        default="auto",
        description="auto keeps that of the model; bf16 computes in it; fp16 stores weights in it, and computes in it "
        "where the target has it among its precisions, else in fp32.",
    )
    sparse_weights: str | None = Field(
        default=None,
        description="The share of zeros from which int8 weights of a matrix product stay packed in memory, for masked "
        "models on x86 with AMX.",
        examples=["50 %"],
    )
    hint: Literal["latency", "throughput"] = Field(
        default="latency", description="What OpenVINO tunes itself for: one inference at a time, or many side by side."
    )
    streams: int | None = Field(
        default=None,
        ge=1,
        description="How many inferences may run side by side, sharing the target's threads; one where it is left out, "
        "with the hint throughput OpenVINO's own choice.",
        examples=[2],
    )
    static: bool = Field(default=False, description="Fix a free batch at 1.")
    shapes: str = Field(default="", description="Fix the shapes of inputs.", examples=["tokens:1x128,mask:1x128"])
    compiled: bool = Field(
        default=False,
        description="Store what OpenVINO makes of the model on this machine, a free batch fixed at 1: it loads faster, "
        "on such processors and with this version of OpenVINO alone.",
    )

    @field_validator("shapes")
    @classmethod
    def _readable(cls, value: str) -> str:
        read_shapes(value)
        return value

    @field_validator("sparse_weights", mode="before")
    @classmethod
    def _share(cls, value: Any) -> str | None:
        return None if value is None else f"{units.parse_fraction(value) * 100:.6g} %"

    def told(self) -> Mapping[str, str]:
        return {
            "sparse_weights": f"sparse{str(self.sparse_weights).removesuffix(' %')}",
            "streams": f"streams{self.streams}",
        }


def tools(options: CompileOptions) -> Sequence[str]:
    return ("openvino",)


def sample_roles(options: CompileOptions, precision: str) -> Sequence[str]:
    return ()


def objection(options: CompileOptions, precision: str) -> str | None:
    if options.precision != "auto" and precision != "fp32":
        return f"{options.precision} is made from an fp32 model, and this one computes in {precision}"
    if options.sparse_weights and precision != "int8":
        return f"OpenVINO packs int8 weights alone, and this model computes in {precision}"
    return None


def compile(job: StageJob) -> Produced:
    """Requires an ONNX model, float or Q/DQ. Ensures an IR, or a compiled model, that OpenVINO loads on a CPU.

    The same model and options give the same IR, byte for byte. Raises InputError for shapes that do not fit the model,
    StageError where a model is to be compiled for a target that is not this machine.
    """
    options: CompileOptions = job.options
    asked = options.precision
    hint = "bf16" if asked == "bf16" else "f16" if asked == "fp16" and "fp16" in job.target.precisions else "f32"
    main = job.out / MODEL
    write_ir(job.parent_folder / job.parent.main, main, fp16_weights=asked == "fp16", fixed=_fixed(options, job.parent))
    job.progress(None, "loading the model in OpenVINO")
    runtime: dict[str, Any] = {"precision": hint}
    if job.parent.precision.endswith(("-weights", "-dynamic")):
        runtime[backend.DYNAMIC] = GROUP if job.parent.precision.endswith("-dynamic") else 0
    if options.sparse_weights:
        runtime[backend.SPARSE] = units.parse_fraction(options.sparse_weights)
    if options.hint != "latency":
        runtime["hint"] = options.hint
    if options.streams:
        runtime["streams"] = options.streams
    if options.compiled:
        main = _compiled(main, runtime, job.target)
    session = backend.load(main, runtime if options.compiled else {**runtime, "precision": "f32"}, threads=1)
    computes_in = {"bf16": "bf16", "f16": "fp16", "f32": job.parent.precision}[hint]
    return Produced(
        format=backend.FORMAT,
        main=main.name,
        inputs=session.inputs,
        outputs=session.outputs,
        precision=computes_in,
        runtime=runtime,
        details={"weights": "fp16"} if asked == "fp16" else {},
        for_this_target=options.compiled,
    )


def _fixed(options: CompileOptions, model: Artifact) -> Mapping[str, tuple[int, ...]]:
    """The shapes that inputs are fixed at."""
    known = {spec.name: spec for spec in model.inputs}
    fixed = read_shapes(options.shapes)
    for name, shape in fixed.items():
        if name not in known:
            raise InputError(f"shapes are given for {name}, which is no input of the model: {', '.join(known)}")
        wanted = known[name].shape
        if len(shape) != len(wanted) or any(isinstance(w, int) and w != size for w, size in zip(wanted, shape)):
            raise InputError(f"the model's input {known[name]} does not take {'x'.join(map(str, shape))}")
    if options.static or options.compiled:
        for spec in model.inputs:
            sizes = [1 if isinstance(size, str) and axis == 0 else size for axis, size in enumerate(spec.shape)]
            if spec.name not in fixed and any(isinstance(size, str) for size in sizes):
                raise InputError(f"the model's input {spec} has free dimensions: give `shapes`")
            fixed.setdefault(spec.name, tuple(int(size) for size in sizes))
    return fixed


def _compiled(ir: Path, runtime: Mapping[str, Any], target: Target) -> Path:
    """The compiled model beside an IR, which goes. Raises StageError for another machine's."""
    if not target.is_local or target.arch not in (None, platform.machine()):
        raise StageError(
            f"OpenVINO compiles for the machine it runs on, and {target.name} is another",
            remedy="Leave out `compiled: true` for this target.",
        )
    blob = ir.with_suffix(backend.COMPILED)
    blob.write_bytes(backend.exported(ir, runtime))
    ir.unlink()
    ir.with_suffix(".bin").unlink()
    return blob


def write_ir(
    source: Path, main: Path, *, fp16_weights: bool, fixed: Mapping[str, tuple[int, ...]] | None = None
) -> None:
    """The ONNX model `source` as IR: the file `main` (.xml) and its .bin, the inputs in `fixed` with those shapes.

    Raises UnsupportedOperator or StageError.
    """
    openvino = backend.runtime_module()
    try:
        model = openvino.convert_model(str(source))
    except (RuntimeError, openvino.frontend.OpConversionFailure, openvino.frontend.GeneralFailure) as error:
        failure = StageError(f"OpenVINO cannot convert the model: {backend.reason(error)}")
        raise backend.refusal(source.name, error) or failure from error
    if fixed:
        model.reshape({name: list(shape) for name, shape in fixed.items()})
    _forget_origin(model)
    _name_anew(model)
    openvino.save_model(model, str(main), compress_to_fp16=fp16_weights)


def _name_anew(model: Any) -> None:
    """Names the nodes that the converter named by a counter of the whole process ("Reshape_3127") by their place."""
    for index, node in enumerate(model.get_ordered_ops()):
        kind = node.get_type_name()
        if kind not in ("Parameter", "Result") and _COUNTED.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{kind}_{index}")


def _forget_origin(model: Any) -> None:
    """Drops what the converter notes of its call, the path of the source among it."""
    notes = model.get_rt_info()
    for key in list(notes):
        del notes[key]
