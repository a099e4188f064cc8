"""torch itself: the program of torch.export run eagerly, or compiled ahead of time by AOTInductor.

The source is the program that stands beside the canonical ONNX, where the model came from torch; else the ONNX is
brought into torch, with a batch of 1. Either way the result is compared with the ONNX in onnxruntime. What AOTInductor
makes belongs to the processor and the torch that made it, and its bytes differ from one build to the next: it names the
folders that it was made in.

It knows nothing of quantization: torch has no fast kernels for Q/DQ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgeopt.artifact import TensorSpec, sha256_of_file
from edgeopt.backends import torch as backend
from edgeopt.compilers import checking
from edgeopt.environment import environment
from edgeopt.errors import MissingDependency, StageError
from edgeopt.formats import exporting
from edgeopt.stages import Options, Produced, StageJob
from edgeopt.text import named_line

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

VERSION = 1
PROGRAM = "model.pt2"
PACKAGE = "package.pt2"
SAMPLES = 2


class CompileOptions(Options):
    """A program of torch."""

    mode: Literal["eager", "aot"] = Field(
        default="eager",
        description="eager runs operator by operator; aot compiles the program by AOTInductor, with a C++ compiler.",
    )
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="cuda computes on the GPU, which must be there.")


def tools(options: CompileOptions) -> Sequence[str]:
    return ("torch", "onnx", "onnxruntime", "onnxslim")


def sample_roles(options: CompileOptions, precision: str) -> Sequence[str]:
    return ()


def objection(options: CompileOptions, precision: str) -> str | None:
    if precision != "fp32":
        return f"torch runs the fp32 model, and this one computes in {precision}"
    return None


def compile(job: StageJob) -> Produced:
    """Requires an ONNX model in fp32. Ensures a file that the backend loads, with the outputs of the ONNX."""
    import torch

    options: CompileOptions = job.options
    backend.check_device(torch, options.device)
    torch.set_num_threads(job.threads or 1)
    program, inputs = _program(job)
    if options.device == "cuda":
        program = torch.export.passes.move_to_device_pass(program, "cuda")
    main = job.out / (PACKAGE if options.mode == "aot" else PROGRAM)
    if options.mode == "aot":
        job.progress(0.2, "compiling with AOTInductor")
        _compile_ahead(program, main)
    else:
        with exporting.quiet():
            torch.export.save(program, str(main))
    runtime = {
        "mode": options.mode,
        "device": options.device,
        "sha256": sha256_of_file(main),
        "inputs": [spec.to_json() for spec in inputs],
        "outputs": [spec.to_json() for spec in job.parent.outputs],
    }
    job.progress(0.9, "comparing with the ONNX model")
    free = bool(inputs) and bool(inputs[0].shape) and not isinstance(inputs[0].shape[0], int)
    source, session = job.parent_folder / job.parent.main, backend.load(main, runtime, job.threads or 1)
    difference = checking.difference(source, session, "torch", inputs, SAMPLES if free else 1)
    return Produced(
        format=backend.FORMAT,
        main=main.name,
        inputs=inputs,
        outputs=job.parent.outputs,
        precision=job.parent.precision,
        runtime=runtime,
        details={"difference": difference},
        for_this_target=options.mode == "aot" or options.device == "cuda",
    )


def _program(job: StageJob) -> tuple[Any, tuple[TensorSpec, ...]]:
    """The program, and the inputs that it takes, in its order."""
    import torch

    from edgeopt.formats import pt2
    from edgeopt.formats.onnx_to_torch import import_onnx

    archive = job.parent_folder / exporting.PROGRAM
    if archive.is_file():
        program = pt2.read(archive)
        if len(program.graph_signature.user_inputs) == len(job.parent.inputs):
            return program, job.parent.inputs
    inputs = tuple(_with_batch_of_one(spec) for spec in job.parent.inputs)
    module = import_onnx(job.parent_folder / job.parent.main, batch=1)
    args = tuple(torch.from_numpy(value) for value in checking.examples(inputs, 1).values())
    try:
        with exporting.quiet():
            program = torch.export.export(module, args)
    except Exception as error:  # a tracer runs every operator of the model: it may raise anything
        raise StageError(f"torch.export cannot trace the imported model: {named_line(error)}") from error
    exporting.strip(program)
    return program, inputs


def _compile_ahead(program: Any, main: Path) -> None:
    """AOTInductor's package. Raises MissingDependency without a C++ compiler, StageError with the compiler's words."""
    import torch
    from torch._inductor import config, cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError) as error:
        raise MissingDependency(
            "AOTInductor needs a C++ compiler, and none is on the search path",
            remedy="Install one (Debian: apt install g++), or name it in the variable CXX.",
        ) from error
    with tempfile.TemporaryDirectory(prefix="edgeopt-aot-") as folder, environment(TORCHINDUCTOR_CACHE_DIR=folder):
        try:
            with exporting.quiet(), config.patch(compile_threads=1):
                torch._inductor.aoti_compile_and_package(program, package_path=str(main))
        except Exception as error:  # a compiler of any model: it may raise anything
            raise StageError(f"AOTInductor cannot compile the model: {named_line(error)}") from error


def _with_batch_of_one(spec: TensorSpec) -> TensorSpec:
    if not spec.shape or isinstance(spec.shape[0], int):
        return spec
    return replace(spec, shape=(1, *spec.shape[1:]))
