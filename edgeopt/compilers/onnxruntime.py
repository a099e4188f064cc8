"""The ONNX file that onnxruntime runs fastest on the CPU: float as it is, quantized ones lowered, or all of it in fp16.

The work on Q/DQ graphs is that of `edgeopt.lowering`. It knows nothing of other execution providers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from edgeopt import lowering
from edgeopt.backends import onnxruntime as backend
from edgeopt.stages import Options, Produced, StageJob

VERSION = 1
MODEL = "model.onnx"


class CompileOptions(Options):
    """`precision`: "auto" keeps the parent's; "fp16" halves the file, inputs and outputs stay float32."""

    precision: Literal["auto", "fp16"] = "auto"


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
    precision, runtime = job.parent.precision, {}
    if job.options.precision == "fp16":
        onnx.save(lowering.to_fp16(onnx.load(str(source))), str(made))
        precision = "fp16"
    elif precision == "int8":
        onnx.save(lowering.for_onnxruntime(onnx.load(str(source))), str(made))
    elif precision != "fp32":
        dynamic = precision.endswith("-dynamic")
        onnx.save(lowering.weights_for_onnxruntime(onnx.load(str(source)), dynamic=dynamic), str(made))
        runtime = {"fold_weights": True}
    else:
        shutil.copyfile(source, made)
    job.progress(None, "loading the model in onnxruntime")
    session = backend.load(made, runtime, threads=1)
    return Produced(
        format=backend.FORMAT,
        main=MODEL,
        inputs=session.inputs,
        outputs=session.outputs,
        precision=precision,
        runtime=runtime,
        details={"operators": optimized_operators(made, runtime)},
    )


def optimized_operators(model: Path, runtime: Mapping[str, Any]) -> dict[str, int]:
    """The operators that onnxruntime really runs on this machine, after its own fusions, by type."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / MODEL
        options = onnxruntime.SessionOptions()
        options.log_severity_level = backend.ERRORS_ONLY
        if runtime.get("fold_weights"):
            options.add_session_config_entry(*backend.FOLD_WEIGHTS)
        options.optimized_model_filepath = str(optimized)
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(str(optimized)).graph.node
    return dict(sorted(Counter(node.op_type for node in nodes).items()))
