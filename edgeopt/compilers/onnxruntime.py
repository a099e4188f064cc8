"""The ONNX file that onnxruntime runs fastest: float as it is, quantized ones lowered, or all of it in fp16.

The work on Q/DQ graphs is that of `edgeopt.lowering`: the form for onnxruntime's own kernels, or TensorRT's for the
providers that are TensorRT. Whether the provider is there is seen where the model is loaded: the target's machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from edgeopt import lowering
from edgeopt.backends import onnxruntime as backend
from edgeopt.compilers import listed
from edgeopt.formats import counting
from edgeopt.stages import Options, Produced, StageJob

VERSION = 1
MODEL = "model.onnx"
TENSORRT = ("tensorrt", "tensorrt-rtx")
Provider = Literal[  # those of `backend.PROVIDERS`
    "cpu", "cuda", "tensorrt", "tensorrt-rtx", "openvino", "qnn", "coreml", "xnnpack", "nnapi", "directml", "migraphx"
]


class CompileOptions(Options):
    """An ONNX file in the form that onnxruntime runs fastest on a CPU."""

    precision: Literal["auto", "fp16"] = Field(
        default="auto",
        description="auto keeps that of the model; fp16 halves the file, inputs and outputs stay float32.",
    )
    provider: Provider = Field(
        default="cpu", description="The execution provider; what it does not take runs on the CPU."
    )
    provider_options: str = Field(
        default="",
        description="The provider's own options, as onnxruntime documents them.",
        examples=["device_id=0, trt_max_workspace_size=268435456"],
    )
    spinning: bool = Field(
        default=True, description="Let threads without work spin for a moment: faster, and the processor stays busy."
    )

    @field_validator("provider_options")
    @classmethod
    def _pairs(cls, value: str) -> str:
        read_pairs(value)
        return value


def read_pairs(text: str) -> dict[str, str]:
    """ "device_id=0, trt_fp16_enable=1" as {"device_id": "0", "trt_fp16_enable": "1"}. Raises ValueError."""
    pairs = [part.partition("=") for part in listed(text)]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise ValueError(f"{name + equals + value!r} is no option: write it like device_id=0")
    return {name: value for name, _, value in pairs}


def tools(options: CompileOptions) -> Sequence[str]:
    return ("onnx", "onnxruntime")


def sample_roles(options: CompileOptions, precision: str) -> Sequence[str]:
    return ()


def objection(options: CompileOptions, precision: str) -> str | None:
    if options.precision == "fp16" and precision != "fp32":
        return f"fp16 is made from an fp32 model, and this one computes in {precision}"
    return None


def compile(job: StageJob) -> Produced:
    """Requires an ONNX model: float, Q/DQ, or with quantized weights. Ensures that onnxruntime loads what it wrote."""
    import onnx

    source, made = job.parent_folder / job.parent.main, job.out / MODEL
    precision, options = job.parent.precision, job.options
    runtime: dict[str, Any] = {}
    if options.precision == "fp16":
        onnx.save(lowering.to_fp16(onnx.load(str(source))), str(made))
        precision = "fp16"
    elif precision == "int8":
        lower = lowering.for_tensorrt if options.provider in TENSORRT else lowering.for_onnxruntime
        onnx.save(lower(onnx.load(str(source))), str(made))
    elif precision != "fp32":
        dynamic = precision.endswith("-dynamic")
        onnx.save(lowering.weights_for_onnxruntime(onnx.load(str(source)), dynamic=dynamic), str(made))
        runtime = {"fold_weights": True}
    else:
        shutil.copyfile(source, made)
        for beside in counting.external_files(onnx.load(str(source), load_external_data=False)):
            shutil.copyfile(job.parent_folder / beside, job.out / beside)
    job.progress(None, "loading the model in onnxruntime")
    session = backend.load(made, runtime, threads=1)
    if options.provider != "cpu":
        runtime |= {"provider": options.provider, "provider_options": read_pairs(options.provider_options)}
    if not options.spinning:
        runtime["spinning"] = False
    return Produced(
        format=backend.FORMAT,
        main=MODEL,
        inputs=session.inputs,
        outputs=session.outputs,
        precision=precision,
        runtime=runtime,
    )
