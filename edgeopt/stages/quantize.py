"""Static INT8 quantization by NNCF, on ONNX. What it yields is canonical Q/DQ: each compiler lowers it for its runtime.

Weights are int8, symmetric, one scale a channel. Activations are 8-bit with one scale a tensor, asymmetric where the
calibrated ranges are. Biases stay float and are corrected for the error of the rest. The choice "none" is never run.

Source: NNCF's post-training quantization, https://docs.openvino.ai/nncf; bias correction after Nagel et al. 2019,
https://arxiv.org/abs/1906.04721. It knows nothing of accuracy: the benchmark measures that on the target.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from edgeopt import isa
from edgeopt.errors import InputError, StageError
from edgeopt.samples import Samples
from edgeopt.stages import Options, Produced, StageJob
from edgeopt.target import Target

VERSION = 1

OLDEST_OPSET = 13  # the first whose QuantizeLinear has an axis
MODEL = "model.onnx"
_FUSED = ("QuantizeLinear", "DequantizeLinear", "Relu", "Clip", "Cast", "Identity")
_MOVING = ("Expand", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")
_NO_ARITHMETIC = frozenset({*_FUSED, *_MOVING, "Constant", "ConstantOfShape", "Shape"})


class Int8Options(Options):
    """How to quantize.

    `bias_correction`: "full" measures a layer's error after those before it are corrected, "fast" each layer's alone.
    `overflow_fix`: 7-bit weights, for x86 without VNNI; "auto" decides by the target's instruction sets.
    `ignore`: regular expressions; nodes whose whole name matches one stay in float.
    """

    bias_correction: Literal["full", "fast", "none"] = "full"
    overflow_fix: Literal["auto", "enable", "disable"] = "auto"
    ignore: tuple[str, ...] = ()


def choices() -> Mapping[str, type[Options]]:
    return {"none": Options, "int8": Int8Options}


def tools(choice: str, options: Any) -> Sequence[str]:
    return () if choice == "none" else ("nncf", "onnx", "onnxruntime")


def sample_roles(choice: str, options: Any, precision: str) -> Sequence[str]:
    return () if choice == "none" else ("calibration",)


def objection(choice: str, options: Any, precision: str) -> str | None:
    if choice == "int8" and precision == "int8":
        return "the model is quantized already"
    return None


def precision(choice: str, options: Any, precision: str) -> str:
    return "int8" if choice == "int8" else precision


def run(job: StageJob) -> Produced:
    """Requires a float ONNX model in one file and calibration samples. Ensures a Q/DQ model of the same signature.

    The same model, samples and options give the same bytes.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # no event leaves this machine
    import nncf
    import onnx

    options: Int8Options = job.options
    samples = Samples(job.samples["calibration"])
    if len(samples) == 0:
        raise InputError("quantization needs calibration samples, and there are none")
    source = job.parent_folder / job.parent.main
    overflow_fix = needs_overflow_fix(options, job.target)

    def quantize(bias_correction: str) -> Any:
        model = _prepared(onnx.load(str(source)))
        return _quantize(model, samples, options, bias_correction, overflow_fix, job.progress)

    applied, fell_back = options.bias_correction, None
    with _sessions_without_fusion():
        try:
            model = quantize(applied)
        except nncf.ValidationError as error:
            raise InputError(f"quantize int8: {_first_line(error)}") from error
        except _failures() as error:
            if applied != "full":
                raise StageError(f"NNCF cannot quantize this model: {_first_line(error)}") from error
            applied, fell_back = "fast", _first_line(error)  # the full correction cuts graphs up, which some forbid
            try:
                model = quantize(applied)
            except _failures() as second:
                raise StageError(f"NNCF cannot quantize this model: {_first_line(second)}") from second

    job.progress(None, "checking the quantized model")
    _clean(model)
    onnx.checker.check_model(model)
    quantized, left = count_operators(model)
    if not quantized:
        raise StageError("NNCF found nothing to quantize in this model")
    onnx.save(model, str(job.out / MODEL))
    details = {
        "quantizer": f"nncf {importlib.metadata.version('nncf')}",
        "bias_correction": applied,
        "overflow_fix": overflow_fix,
        "quantized_operators": quantized,
        "float_operators": left,
        "calibration_samples": len(samples),
    }
    if fell_back:
        details["bias_correction_fell_back"] = fell_back
    return Produced(
        format="onnx",
        main=MODEL,
        inputs=job.parent.inputs,
        outputs=job.parent.outputs,
        precision="int8",
        details=details,
    )


def needs_overflow_fix(options: Int8Options, target: Target) -> bool:
    """Whether weights keep to 7 bits: on x86 without VNNI or AMX, and where the instruction sets are not known.

    Measured on EfficientNet-Lite0: without it accuracy collapses there; with it, elsewhere, some is given away.
    """
    if options.overflow_fix != "auto":
        return options.overflow_fix == "enable"
    return not (isa.is_arm(target) or isa.has_vnni(isa.of_target(target)))


def count_operators(model: Any) -> tuple[int, dict[str, int]]:
    """How many nodes of a Q/DQ model compute on quantized inputs, and how many of each type compute on float ones."""
    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    quantized, left = 0, Counter[str]()
    for node in model.graph.node:
        if node.op_type in _NO_ARITHMETIC:
            continue
        if dequantized.intersection(node.input):
            quantized += 1
        else:
            left[node.op_type] += 1
    return quantized, dict(sorted(left.items()))


def _prepared(model: Any) -> Any:
    """The model with a name for every node, since NNCF finds nodes by name, and an opset that knows channels."""
    from onnx import version_converter

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        try:
            model = version_converter.convert_version(model, OLDEST_OPSET)
        except RuntimeError as error:
            raise StageError(
                f"the model has opset {opset} and cannot be brought to {OLDEST_OPSET}: {_first_line(error)}",
                remedy=f"Export it again with opset {OLDEST_OPSET} or newer.",
            ) from error
    used: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in used:
            node.name = f"{node.op_type}_{index}"
        used.add(node.name)
    return model


def _quantize(
    model: Any,
    samples: Samples,
    options: Int8Options,
    bias_correction: str,
    overflow_fix: bool,
    progress: Callable[[float | None, str], None],
) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )

    advanced = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if overflow_fix else OverflowFix.DISABLE,
        activations_quantization_params=QuantizationParameters(per_channel=False),
        disable_bias_correction=bias_correction == "none",
    )
    return nncf.quantize(
        model,
        nncf.Dataset(_Feeds(samples, progress)),
        subset_size=len(samples),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        fast_bias_correction=bias_correction != "full",
        ignored_scope=nncf.IgnoredScope(patterns=list(options.ignore)) if options.ignore else None,
        advanced_parameters=advanced,
    )


class _Feeds:
    """Calibration samples one by one, telling how far they have been read."""

    def __init__(self, samples: Samples, progress: Callable[[float | None, str], None]) -> None:
        self._samples = samples
        self._progress = progress

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count = len(self)
        for index in range(count):
            self._progress(index / count, f"calibrating: sample {index + 1} of {count}")
            batch = self._samples.batch(index, index + 1)
            if index + 1 == count:  # NNCF asks for no more after the last, and tells nothing of what follows
                self._progress(None, "calibrating: last sample, then biases and weights")
            yield batch


@contextmanager
def _sessions_without_fusion() -> Iterator[None]:
    """NNCF's onnxruntime sessions with basic optimizations alone.

    Full bias correction runs pieces of the graph that give inner tensors out, and onnxruntime 1.31 loses such outputs
    where it fuses Conv, Add and Relu and both sides of the Add are convolutions ("Failed to find node output").
    """
    import onnxruntime

    ordinary = onnxruntime.SessionOptions

    def basic() -> Any:
        options = ordinary()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 3
        return options

    onnxruntime.SessionOptions = basic
    try:
        yield
    finally:
        onnxruntime.SessionOptions = ordinary


def _clean(model: Any) -> None:
    """Drop what is stale or tells of the machine: inferred shapes, metadata, documentation."""
    del model.graph.value_info[:]
    for described in (model, model.graph, *model.graph.node):
        described.ClearField("metadata_props")
        described.ClearField("doc_string")
    model.producer_name, model.producer_version = "edgeopt", ""


def _failures() -> tuple[type[Exception], ...]:
    """What NNCF and the onnxruntime below it raise on graphs that they cannot handle. They have no common base."""
    import nncf
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    of_nncf = (nncf.InternalError, nncf.UnsupportedModelError)
    of_onnxruntime = (ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.NotImplemented, ort.RuntimeException)
    return (RuntimeError, ValueError, KeyError, IndexError, *of_nncf, *of_onnxruntime)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
