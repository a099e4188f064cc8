"""ncnn's .param and .bin, made of the ONNX model by pnnx, the converter of ncnn's own project.

Its INT8 needs the programs ncnn2table and ncnn2int8, which no package brings: float models alone are made.
https://github.com/pnnx/pnnx
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgeopt.artifact import TensorSpec
from edgeopt.backends import ncnn as backend
from edgeopt.compilers import checking
from edgeopt.errors import MissingDependency, StageError, UnsupportedOperator
from edgeopt.stages import Options, Produced, StageJob
from edgeopt.text import first_line

VERSION = 1
MAIN, WEIGHTS = "model.param", "model.bin"
SECONDS = 600
HALF_TOLERANCE = 2e-2
_UNREGISTERED = re.compile(r"([\w.]*:?\w+)\(-?\d+\) is not a registered function/op")
_KINDS = {"float32": "f32", "int32": "i32", "int64": "i64"}  # of inputs, as pnnx names them


class CompileOptions(Options):
    """A network of ncnn."""

    precision: Literal["auto", "fp16"] = Field(
        default="auto",
        description="fp16 halves the file, and computes in fp16 where the CPU can; auto is the parent's, fp32.",
    )


def tools(options: CompileOptions) -> Sequence[str]:
    return ("ncnn", "pnnx", "onnxruntime")


def sample_roles(options: CompileOptions, precision: str) -> Sequence[str]:
    return ()


def objection(options: CompileOptions, precision: str) -> str | None:
    if precision != "fp32":
        return f"ncnn is given the fp32 model, as no package brings its quantizer, and this one computes in {precision}"
    return None


def compile(job: StageJob) -> Produced:
    """Requires an ONNX model in fp32. Ensures a file that the backend loads, with the outputs of the ONNX."""
    import ncnn

    precision = "fp16" if job.options.precision == "fp16" else "fp32"
    inputs = [_of_one_sample(spec, tuple(_KINDS)) for spec in job.parent.inputs]
    outputs = [_of_one_sample(spec, ("float32",)) for spec in job.parent.outputs]
    if deep := next((spec for spec in inputs if not 2 <= len(spec.shape) <= 5), None):
        raise StageError(f"ncnn takes samples of 1 to 4 dimensions, and this is {deep}")
    source = job.parent_folder / job.parent.main
    job.progress(None, "converting with pnnx")
    with tempfile.TemporaryDirectory() as folder:
        said = _convert(source, inputs, Path(folder), half=precision == "fp16")
        for suffix, name in ((".param", MAIN), (".bin", WEIGHTS)):
            made = Path(folder) / f"model.ncnn{suffix}"
            if not made.is_file():
                raise StageError(f"pnnx made no ncnn model: {said}")
            shutil.copyfile(made, job.out / name)
    if missing := backend.unknown_layers(ncnn, job.out / MAIN):
        raise UnsupportedOperator(f"ncnn has no operator {', '.join(sorted(missing))}")
    runtime = {
        "precision": precision,
        "inputs": [spec.to_json() for spec in inputs],
        "outputs": [spec.to_json() for spec in outputs],
    }
    job.progress(0.9, "comparing with the ONNX model")
    session = backend.load(job.out / MAIN, runtime, job.threads or 1)
    tolerance = HALF_TOLERANCE if precision == "fp16" else checking.TOLERANCE
    return Produced(
        format=backend.FORMAT,
        main=MAIN,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        precision=precision,
        runtime=runtime,
        details={"difference": checking.difference(source, session, "ncnn", inputs, 1, tolerance)},
    )


def _of_one_sample(spec: TensorSpec, dtypes: Sequence[str]) -> TensorSpec:
    """With a batch of 1. Raises StageError where another size is free, the batch is another, or the dtype."""
    if spec.dtype not in dtypes:
        raise StageError(f"ncnn takes {', '.join(_KINDS)} and gives float32 alone, and this is {spec}")
    shape = [1 if axis == 0 and isinstance(size, str) else size for axis, size in enumerate(spec.shape)]
    if any(isinstance(size, str) for size in shape) or shape[:1] != [1]:
        raise StageError(
            f"ncnn takes one sample of fixed dimensions at a time, and this is {spec}",
            remedy="Export the model with fixed dimensions; only the batch may be free.",
        )
    return replace(spec, shape=tuple(shape))


def _convert(source: Path, inputs: Sequence[TensorSpec], folder: Path, *, half: bool) -> str:
    """Run pnnx on a copy of the model in `folder`, and return the last line of what it says. It writes beside it."""
    found = importlib.util.find_spec("pnnx")
    if found is None or found.origin is None:
        raise MissingDependency("the compiler ncnn needs pnnx, which is not installed", remedy="pip install pnnx")
    shutil.copyfile(source, folder / "model.onnx")
    kinds = {
        "float32": "f32",
        "float16": "f16",
        "int32": "i32",
        "int64": "i64",
        "int8": "i8",
        "uint8": "u8",
        "bool": "b8",
    }
    shapes = ",".join(f"[{','.join(map(str, spec.shape))}]{kinds.get(spec.dtype, 'f32')}" for spec in inputs)
    program = str(Path(found.origin).parent / "pnnx")
    command = [program, "model.onnx", f"inputshape={shapes}", f"fp16={int(half)}"]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired as error:
        raise StageError(f"pnnx ran past its limit of {SECONDS} s") from error
    except OSError as error:
        raise StageError(f"pnnx cannot be started: {error.strerror}") from error
    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
    said = first_line(lines[-1]) if lines else "it said nothing"
    if unknown := _UNREGISTERED.search(ended.stderr):
        raise UnsupportedOperator(f"pnnx has no operator {unknown.group(1)}")
    if ended.returncode != 0:
        raise StageError(f"pnnx ended with exit code {ended.returncode}: {said}")
    return said
