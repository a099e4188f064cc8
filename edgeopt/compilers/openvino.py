"""OpenVINO's Intermediate Representation from ONNX, float or Q/DQ, which OpenVINO takes as it is.

Weights that alone are quantized stay so in the file and in memory. OpenVINO would quantize activations with them at run
time: it is told whether to, by a setting of the artifact.

It knows nothing of the target: whether its CPU has bf16 or f16 arithmetic is seen where the model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from edgeopt import units
from edgeopt.backends import openvino as backend
from edgeopt.errors import StageError
from edgeopt.stages import Options, Produced, StageJob

VERSION = 1
MODEL = "model.xml"
GROUP = 32  # activations that share a scale found at run time: OpenVINO's own default
_COUNTED = re.compile(r"[A-Za-z]\w*_\d+")


class CompileOptions(Options):
    """`precision`: "auto" keeps the parent's, "bf16" computes in it, "fp16" stores weights in it.

    "fp16" computes in it too where the target has it among its precisions, else in fp32. `sparse_weights`: the share of
    zeros from which int8 weights of a matrix product stay packed in memory, for masked models on x86 with AMX.
    """

    precision: Literal["auto", "fp16", "bf16"] = "auto"
    sparse_weights: str | None = None

    @field_validator("sparse_weights", mode="before")
    @classmethod
    def _share(cls, value: Any) -> str | None:
        return None if value is None else f"{units.parse_fraction(value) * 100:.6g} %"

    def told(self) -> Mapping[str, str]:
        return {"sparse_weights": f"sparse{str(self.sparse_weights).removesuffix(' %')}"}


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
    """Requires an ONNX model, float or Q/DQ. Ensures an IR that OpenVINO loads on a CPU.

    The same model and options give the same bytes.
    """
    asked = job.options.precision
    hint = "bf16" if asked == "bf16" else "f16" if asked == "fp16" and "fp16" in job.target.precisions else "f32"
    main = job.out / MODEL
    write_ir(job.parent_folder / job.parent.main, main, fp16_weights=asked == "fp16")
    job.progress(None, "loading the model in OpenVINO")
    runtime: dict[str, Any] = {"precision": hint}
    if job.parent.precision.endswith(("-weights", "-dynamic")):
        runtime[backend.DYNAMIC] = GROUP if job.parent.precision.endswith("-dynamic") else 0
    if job.options.sparse_weights:
        runtime[backend.SPARSE] = units.parse_fraction(job.options.sparse_weights)
    session = backend.load(main, {**runtime, "precision": "f32"}, threads=1)
    computes_in = {"bf16": "bf16", "f16": "fp16", "f32": job.parent.precision}[hint]
    return Produced(
        format=backend.FORMAT,
        main=MODEL,
        inputs=session.inputs,
        outputs=session.outputs,
        precision=computes_in,
        runtime=runtime,
        details={"weights": "fp16"} if asked == "fp16" else {},
    )


def write_ir(source: Path, main: Path, *, fp16_weights: bool) -> None:
    """The ONNX model `source` as IR: the file `main` (.xml) and its .bin. Raises UnsupportedOperator or StageError."""
    openvino = backend.runtime_module()
    try:
        model = openvino.convert_model(str(source))
    except (RuntimeError, openvino.frontend.OpConversionFailure, openvino.frontend.GeneralFailure) as error:
        failure = StageError(f"OpenVINO cannot convert the model: {backend.reason(error)}")
        raise backend.refusal(source.name, error) or failure from error
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
