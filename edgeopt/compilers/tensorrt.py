"""A TensorRT engine from ONNX: float as it is or in fp16, quantized ones by the Q/DQ that TensorRT takes.

An engine belongs to the GPU that it is built on. Where the target is another machine the model is built here as a
check, if it can be, and the artifact is the ONNX itself, of which the device builds its engine when it first loads it.

It knows nothing of running engines: that needs a GPU, building one with TensorRT-RTX does not.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from edgeopt import lowering, units
from edgeopt.backends import tensorrt as backend
from edgeopt.compilers import listed, read_shapes
from edgeopt.errors import NoAccelerator
from edgeopt.placement import grouped
from edgeopt.stages import Options, Produced, StageJob
from edgeopt.target import Target

VERSION = 2
SOURCE = "model.onnx"
ENGINE = "model.plan"


class CompileOptions(Options):
    """An engine for NVIDIA's GPUs.

    Inputs with free dimensions beside the batch need min_shapes, opt_shapes and max_shapes, written as trtexec takes
    them.
    """

    precision: Literal["auto", "fp16"] = Field(
        "auto", description="auto keeps that of the model; fp16 computes in it, inputs and outputs stay float32."
    )
    tf32: bool = Field(False, description="Let fp32 layers use TF32.")
    opt_batch: int = Field(1, ge=1, description="The size that a free batch is fastest at.")
    max_batch: int = Field(16, ge=1, description="The largest size of a free batch; the smallest is 1.")
    min_shapes: str = Field("", description="The smallest shapes.", examples=["tokens:1x16,mask:1x16"])
    opt_shapes: str = Field("", description="The shapes to be fastest at.", examples=["tokens:1x128,mask:1x128"])
    max_shapes: str = Field("", description="The largest shapes.", examples=["tokens:1x512,mask:1x512"])
    workspace: str | None = Field(None, description="The most scratch memory of a layer.", examples=["256 MiB"])
    optimization_level: int | None = Field(
        None, ge=0, le=5, description="How hard to search, TensorRT's own choice where left out.", examples=[5]
    )
    version_compatible: bool = Field(False, description="The engine runs with later versions of TensorRT too.")
    hardware_compatible: Literal["no", "ampere+", "same"] = Field(
        "no", description="It runs on other GPUs too: from Ampere on, or of the same compute capability."
    )
    capabilities: str = Field(
        "", description="The GPUs that TensorRT-RTX builds for, all where left out.", examples=["sm86, sm89"]
    )

    @field_validator("min_shapes", "opt_shapes", "max_shapes")
    @classmethod
    def _readable(cls, value: str) -> str:
        read_shapes(value)
        return value

    @field_validator("workspace")
    @classmethod
    def _a_size(cls, value: str | None) -> str | None:
        if value is not None:
            units.parse_size(value)
        return value

    @field_validator("capabilities")
    @classmethod
    def _named(cls, value: str) -> str:
        for name in listed(value):
            if not re.fullmatch(r"sm\d{2,3}", name):
                raise ValueError(f"{name!r} is no compute capability: write it like sm86")
        return value

    @model_validator(mode="after")
    def _fitting(self) -> CompileOptions:
        if self.opt_batch > self.max_batch:
            raise ValueError(f"opt_batch {self.opt_batch} is above max_batch {self.max_batch}")
        three = [set(read_shapes(text)) for text in (self.min_shapes, self.opt_shapes, self.max_shapes)]
        if not three[0] == three[1] == three[2]:
            raise ValueError("min_shapes, opt_shapes and max_shapes must name the same inputs")
        return self

    def settings(self) -> backend.BuildSettings:
        """The options as the backend builds with them."""
        least, best, most = (read_shapes(text) for text in (self.min_shapes, self.opt_shapes, self.max_shapes))
        return backend.BuildSettings(
            batch=(1, self.opt_batch, self.max_batch),
            shapes=tuple((name, (least[name], best[name], most[name])) for name in least),
            workspace_bytes=None if self.workspace is None else units.parse_size(self.workspace),
            tf32=self.tf32,
            level=self.optimization_level,
            version_compatible=self.version_compatible,
            hardware=None if self.hardware_compatible == "no" else self.hardware_compatible,
            capabilities=tuple(listed(self.capabilities)),
        )


def tools(options: CompileOptions) -> Sequence[str]:
    library = backend.LIBRARIES.get(backend.DISTRIBUTION)
    found = ("onnx", backend.DISTRIBUTION, *([library] if library else []), backend.CUDA)
    return (*found, "onnxruntime") if options.precision == "fp16" else found


def sample_roles(options: CompileOptions, precision: str) -> Sequence[str]:
    return ()


def objection(options: CompileOptions, precision: str) -> str | None:
    if options.precision == "fp16" and precision != "fp32":
        return f"fp16 is made from an fp32 model, and this one computes in {precision}"
    if precision not in ("fp32", "int8"):
        return f"TensorRT takes quantized models as Q/DQ of weights and activations, and this one is {precision}"
    if options.tf32 and precision != "fp32":
        return f"tf32 is of fp32 layers, and this model computes in {precision}"
    return None


def compile(job: StageJob) -> Produced:
    """Requires an ONNX model, float or Q/DQ. Ensures an engine of it, or that one can be built of the ONNX it wrote."""
    import onnx

    options: CompileOptions = job.options
    source, typed = job.parent_folder / job.parent.main, job.out / SOURCE
    precision = job.parent.precision
    if precision == "int8":
        onnx.save(lowering.for_tensorrt(onnx.load(str(source))), str(typed))
    elif options.precision == "fp16":
        onnx.save(lowering.to_fp16(onnx.load(str(source))), str(typed))
        precision = "fp16"
    else:
        shutil.copyfile(source, typed)
    settings = options.settings()
    job.progress(None, "building the TensorRT engine")
    here, runtime = runs_here(job.target), dict[str, Any]()
    engine: backend.Engine | None = None
    try:
        engine = backend.build(typed, settings, _timing_cache())
    except NoAccelerator:  # TensorRT other than RTX builds on a GPU alone
        if here:
            raise
    if here and engine is not None:
        typed.unlink()
        (job.out / ENGINE).write_bytes(engine.plan)
    else:
        runtime[backend.BUILD] = settings.to_json()
    return Produced(
        format=backend.FORMAT,
        main=SOURCE if runtime else ENGINE,
        inputs=job.parent.inputs,
        outputs=job.parent.outputs,
        precision=precision,
        runtime=runtime,
        details=_details(engine) if engine else {},
        for_this_target=not runtime,
    )


def runs_here(target: Target) -> bool:
    """Whether the target is this machine, for which an engine can be built ahead."""
    return target.is_local and target.arch in (None, platform.machine())


def _timing_cache() -> Path | None:
    """The file with the timings of kernels, in the cache folder; None for TensorRT-RTX, which takes none."""
    trt = backend.runtime_module()
    return None if backend.is_rtx(trt) else backend.cache_folder() / f"timing-{trt.__version__}.cache"


def _details(engine: backend.Engine) -> Mapping[str, Any]:
    return {
        "placement": [layer.to_json() for layer in grouped(engine.layers)],
        **({"notes": list(engine.notes)} if engine.notes else {}),
    }
