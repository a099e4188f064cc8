"""LiteRT (TensorFlow Lite): a float model to a .tflite file, in float32, with smaller weights, or in 8-bit integers.

Q/DQ ONNX has no lossless way into LiteRT, so it is taken apart (`edgeopt.lowering.tflite`): the float graph with its
weights on their grid and its biases corrected is converted, and quantized again over the ranges of the canonical model,
whose tensors are recognized by their values. Only what the canonical model leaves in float, such as the outputs, is
calibrated here, on the same samples. Images are given channels last (`TensorSpec.layout` is "NHWC"), outputs stay as
the source model has them. The batch is static: 1 where it was free. With integer inputs and outputs, whoever feeds the
file quantizes and dequantizes by their own scale and zero point (`TensorSpec.scale`), as `edgeopt.samples` does.

It does not know how fast the result is, nor which of its operators XNNPACK takes.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgeopt.artifact import TensorSpec
from edgeopt.backends import tflite as runtime
from edgeopt.environment import environment
from edgeopt.errors import StageError, UnsupportedOperator
from edgeopt.lowering.tflite import Ranges, recognized, to_float
from edgeopt.quantization import litert
from edgeopt.samples import Samples, adapt, restore
from edgeopt.stages import Options, Produced, StageJob

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    Array = np.ndarray[Any, Any]

VERSION = 2
MAIN = "model.tflite"
ONNX = "model.onnx"
QUANTIZED = ("int8", "int8-weights", "int8-dynamic", "int4-dynamic")
LARGEST_DIFFERENCE = 1e-3  # of the largest output, between the float32 file and the source model
BOUNDARY = ("QUANTIZE", "DEQUANTIZE")  # what stands between float32 inputs and outputs and the integer model


class CompileOptions(Options):
    """A .tflite file for LiteRT, images channels last."""

    precision: Literal["auto", "fp32", "fp16"] = Field(
        default="auto",
        description="auto keeps that of the model; fp16 stores weights as float16 and computes in float32: half the "
        "size, the same speed.",
    )
    io: Literal["float32", "int8", "uint8"] = Field(
        default="float32",
        description="The type of an int8 model's inputs and outputs: integers for devices without float arithmetic.",
    )
    xnnpack: bool = Field(default=True, description="Run it with XNNPACK, else with LiteRT's own kernels.")


def tools(options: CompileOptions) -> Sequence[str]:
    made = ("litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer", "torch", "onnx", "onnxslim")
    return (*made, "onnxruntime")  # which the result is checked against


def sample_roles(options: CompileOptions, precision: str) -> Sequence[str]:
    return ("calibration",) if precision == "int8" else ()


def objection(options: CompileOptions, precision: str) -> str | None:
    if precision != "fp32" and options.precision != "auto":
        return f"the model is already quantized to {precision}: {options.precision} would undo it"
    if options.io != "float32" and precision != "int8":
        return f"{options.io} inputs and outputs are those of an int8 model, and this one computes in {precision}"
    if precision == "int4-weights":
        return "LiteRT is slower with 4-bit weights than without, unless activations are quantized too: dynamic"
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that are always given and that nobody can act on. Errors are as they were."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # litert_torch's use of torch's pytrees
        warnings.filterwarnings("ignore", ".*preserve_all_tensors.*", UserWarning)  # ai-edge-quantizer's own choice
        yield


def compile(job: StageJob) -> Produced:
    """The file `model.tflite`: see `build`."""
    made = build(job, job.options.precision, litert.Integers(job.options.io))
    return made if job.options.xnnpack else replace(made, runtime={"xnnpack": False})


@_quiet()
def build(job: StageJob, precision: str, integers: litert.Integers) -> Produced:
    """The file `model.tflite`, an int8 one in the form that `integers` says.

    `details` has "snr_db" (signal to noise of what int8 or fp16 changed in the float source, over the checked samples),
    "calibrated_tensors" (of an int8 file, those whose range is not the canonical model's), "float_operators" (of an
    int8 file, those that still compute in float, with their number) and "float_outputs" (where some stay in float
    although integers were asked for, because one scale would ruin them).

    Raises UnsupportedOperator for operators that ONNX import or LiteRT lack, StageError for free dimensions other than
    the batch and where the float32 file does not compute what the source model does.
    """
    if precision == "auto":
        precision = job.parent.precision if job.parent.precision in QUANTIZED else "fp32"
    inputs, last = _static(job.parent.inputs), job.out / MAIN
    job.progress(0.0, "reading the model")
    source = _float_folder(job.lineage)
    with tempfile.TemporaryDirectory() as scratch:
        module, plain, ranges = _torch_module(job, source, Path(scratch), inputs)
        job.progress(0.2, "converting to LiteRT")
        last.write_bytes(_convert(module, inputs, job.parent.outputs))
        session = runtime.load(last, {}, 1)
        specs = _with_layout(session.inputs, inputs)
        job.progress(0.5, "checking the float32 file")
        feeds = _examples(job, inputs)
        _check(_run(session, feeds, specs), _run_onnx(plain, feeds))
        details: dict[str, Any] = {}
        if precision == "int8":
            known = _recognized(last, plain, ranges, feeds[0], specs) if ranges else {}
            made, details["calibrated_tensors"] = _to_int8(job, last, specs, known, integers)
            last.write_bytes(made)
            if kept := job.parent.details.get("control", {}).get("float_layers"):
                details["float_layers_quantized"] = len(kept)  # of the canonical model: here every layer is quantized
        elif precision == "fp16":
            last.write_bytes(litert.to_fp16(last))
        elif precision == "int8-weights":
            last.write_bytes(litert.weights_to_int8(last))
        elif precision != "fp32":
            last.write_bytes(litert.to_dynamic(last, 0 if ranges is None else ranges.group_size))
    if precision != "fp32":
        job.progress(0.95, f"checking the {precision} file")
        session = runtime.load(last, {}, 1)
        specs = _with_layout(session.inputs, inputs)
        reference = _run_onnx(source / ONNX, feeds)
        details["snr_db"] = _signal_to_noise(reference, _run(session, feeds, specs))
    if precision == "int8":
        details["float_operators"] = _float_operators(last)
        if integers.io != "float32":
            details["float_outputs"] = [s.name for s in session.outputs if s.dtype == "float32"]
    return Produced("tflite", MAIN, specs, session.outputs, precision, details=details)


def _float_folder(lineage: Mapping[str, Path]) -> Path:
    folders = [folder for stage, folder in lineage.items() if stage != "quantize"]
    if not folders or not (folders[-1] / ONNX).is_file():
        raise StageError("the float model that this one was made of is missing")
    return folders[-1]


def _static(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The inputs with the batch of 1 where it is free."""
    static = []
    for spec in specs:
        shape = [1 if axis == 0 and isinstance(size, str) else size for axis, size in enumerate(spec.shape)]
        free = [size for size in shape if isinstance(size, str)]
        if free:
            raise StageError(
                f"LiteRT needs static shapes, and {spec} leaves {', '.join(map(str, free))} free",
                remedy="Export the model with fixed dimensions; only the batch may be free.",
            )
        static.append(TensorSpec(spec.name, tuple(shape), spec.dtype))
    return tuple(static)


def _with_layout(found: Sequence[TensorSpec], source: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(
        replace(spec, layout="NHWC" if _is_image(wanted) else None) for spec, wanted in zip(found, source, strict=True)
    )


def _is_image(spec: TensorSpec) -> bool:
    return len(spec.shape) == 4 and spec.dtype.startswith("float")


def _torch_module(
    job: StageJob, source: Path, scratch: Path, inputs: Sequence[TensorSpec]
) -> tuple[nn.Module, Path, Ranges | None]:
    """The model to convert, the float ONNX that computes the same, and the ranges that it was calibrated to, if any.

    From ONNX, whose batch norms are folded: converting it takes half the time that model.pt2 does. That is for what
    ONNX import lacks; a quantized model is then converted as it was before, and its int8 calibrated here.
    """
    from edgeopt.formats.onnx_to_torch import import_onnx

    archive, batch = source / "model.pt2", int(inputs[0].shape[0]) if inputs and inputs[0].shape else 1
    try:
        if job.parent.precision not in QUANTIZED:
            return import_onnx(source / ONNX, batch=batch), source / ONNX, None
        import onnx

        model, ranges = to_float(onnx.load(str(job.parent_folder / job.parent.main)))
        onnx.save(model, str(scratch / ONNX))
        return import_onnx(scratch / ONNX, batch=batch), scratch / ONNX, ranges
    except UnsupportedOperator:
        if not archive.is_file():
            raise
    import torch

    with environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):
        module: nn.Module = torch.export.load(archive).module(check_guards=False)
    return module, source / ONNX, None


def _convert(module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """The float32 .tflite file, its signature named as the source model's where Python can say those names."""
    import torch

    with environment(LITERT_TORCH_SHOW_PROGRESS="n"):
        import litert_torch
    from torch.utils import _pytree as pytree

    keys = {_identifier(spec.name, position): spec for position, spec in enumerate(inputs)}

    class Signature(torch.nn.Module):  # type: ignore[misc]
        """Keyword inputs, channels last, and a dict of outputs: LiteRT takes its names from both."""

        def __init__(self) -> None:
            super().__init__()
            self.model = module
            self.training = False  # not eval(): what torch.export loads is in evaluation already and refuses the call

        def forward(self, **feeds: torch.Tensor) -> dict[str, torch.Tensor]:
            first = [feeds[key].permute(0, 3, 1, 2) if _is_image(spec) else feeds[key] for key, spec in keys.items()]
            leaves = pytree.tree_leaves(self.model(*first))
            return {spec.name: leaf for spec, leaf in zip(outputs, leaves, strict=True)}

    feeds = {key: torch.zeros(_channels_last(spec), dtype=getattr(torch, spec.dtype)) for key, spec in keys.items()}
    try:
        with environment(LITERT_TORCH_SHOW_PROGRESS="n"), torch.no_grad():
            model: bytes = litert_torch.convert(Signature(), sample_kwargs=feeds).model_content()
    except RuntimeError as error:
        missing = re.search(r"Lowering not found: (\S+)", str(error))
        if missing:
            raise UnsupportedOperator(f"LiteRT cannot convert the operator {missing.group(1)}") from error
        raise
    return model


def _identifier(name: str, position: int) -> str:
    return name if name.isidentifier() and name not in ("self", "feeds") else f"input_{position}"


def _channels_last(spec: TensorSpec) -> list[int]:
    shape = [int(size) for size in spec.shape]
    return [shape[0], *shape[2:], shape[1]] if _is_image(spec) else shape


def _recognized(
    converted: Path, plain: Path, ranges: Ranges, feed: Mapping[str, Array], specs: Sequence[TensorSpec]
) -> dict[str, dict[str, Array]]:
    """The ranges of the canonical model for the tensors of the converted file that have the same values on a sample."""
    import numpy as np
    import onnx

    model = onnx.load(str(plain))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in ranges.weights}
    outputs = {entry.name for entry in model.graph.output}
    shown = [name for name in ranges.activations if name not in feed]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in shown if name not in outputs)
    shown_values = _session(model.SerializeToString()).run(shown, dict(feed))
    values = {**{name: feed[name] for name in ranges.activations if name in feed}, **dict(zip(shown, shown_values))}
    activations, constants = litert.tensors(converted, adapt(feed, specs))
    found: dict[str, dict[str, Array]] = {}
    for name, same in recognized(activations, values).items():
        low, high = zip(*(ranges.activations[other] for other, _ in same), strict=True)
        found[name] = {"min": np.array([min(low)], np.float32), "max": np.array([max(high)], np.float32)}
    for name, same in recognized(constants, weights).items():
        other, axes = same[0]
        if axes:
            largest = ranges.weights[other].transpose(axes)
            found[name] = {"min": -largest, "max": largest}
    return found


def _to_int8(
    job: StageJob,
    model: Path,
    specs: Sequence[TensorSpec],
    known: Mapping[str, dict[str, Array]],
    integers: litert.Integers,
) -> tuple[bytes, int]:
    """The integer file, and how many of its tensors had to be calibrated because no range of theirs is known."""
    samples, batch = Samples(job.samples["calibration"]), int(specs[0].shape[0])

    def feeds() -> Iterator[dict[str, Array]]:
        for start in range(0, len(samples) - batch + 1, batch):
            if start % (20 * batch) == 0:
                job.progress(0.5 + 0.4 * start / len(samples), f"calibrating: sample {start} of {len(samples)}")
            yield adapt(samples.batch(start, start + batch), specs)

    ranges: dict[str, Any] = dict(litert.passed_on(model, known))
    unknown = litert.activations(model) - ranges.keys()
    if unknown:
        ranges.update({name: found for name, found in litert.calibrated(model, feeds()).items() if name in unknown})
    job.progress(0.9, "quantizing")
    mixed = job.parent.details.get("mixed_outputs", ())  # parts of unlike ranges, which one scale would ruin
    heads = any(found["concat"] is None for found in mixed)
    in_float = litert.before_outputs(model, heads=heads) if mixed else {}
    return litert.to_int8(model, ranges, in_float, integers), len(unknown)


def _examples(job: StageJob, inputs: Sequence[TensorSpec]) -> list[dict[str, Array]]:
    """Two batches of real samples where there are any, else of noise (integers: of zeros), for the source model."""
    import numpy as np

    batch = int(inputs[0].shape[0])
    for folder in job.samples.values():
        samples = Samples(folder)
        count = min(2, len(samples) // batch)
        if count:
            return [adapt(samples.batch(at * batch, at * batch + batch), inputs) for at in range(count)]
    noise = np.random.default_rng(0)
    made = []
    for _ in range(2):
        arrays = {spec.name: noise.standard_normal([int(size) for size in spec.shape]) for spec in inputs}
        made.append({s.name: (arrays[s.name] * s.dtype.startswith("float")).astype(s.dtype) for s in inputs})
    return made


def _run(session: Any, feeds: Sequence[Mapping[str, Array]], specs: Sequence[TensorSpec]) -> list[list[Array]]:
    return [restore(session.run(adapt(feed, specs)), session.outputs) for feed in feeds]


def _run_onnx(path: Path, feeds: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
    session = _session(str(path))
    return [session.run(None, dict(feed)) for feed in feeds]


def _session(model: str | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors alone
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _check(found: Sequence[Sequence[Array]], wanted: Sequence[Sequence[Array]]) -> None:
    import numpy as np

    for outputs, expected in zip(found, wanted, strict=True):
        for position, (value, right) in enumerate(zip(outputs, expected, strict=True)):
            if value.shape != right.shape:
                raise StageError(f"LiteRT's output {position} has shape {value.shape}, the source's {right.shape}")
            scale = max(float(np.max(np.abs(right), initial=0)), 1e-6)
            difference = float(np.max(np.abs(value.astype(np.float64) - right), initial=0)) / scale
            if not difference <= LARGEST_DIFFERENCE:
                raise StageError(
                    f"LiteRT's output {position} differs from the source model's by {difference:.2g} of its largest "
                    f"value, more than {LARGEST_DIFFERENCE:g}"
                )


def _signal_to_noise(reference: Sequence[Sequence[Array]], found: Sequence[Sequence[Array]]) -> list[float | None]:
    """For each output, 10 log10(signal power / error power) over the samples; None where nothing differs."""
    import numpy as np

    ratios: list[float | None] = []
    for position in range(len(reference[0])):
        signal = np.stack([outputs[position] for outputs in reference]).astype(np.float64)
        error = signal - np.stack([outputs[position] for outputs in found])
        power, noise = float(np.square(signal).sum()), float(np.square(error).sum())
        ratios.append(round(10 * float(np.log10(power / noise)), 2) if power and noise else None)
    return ratios


def _float_operators(path: Path) -> dict[str, int]:
    """Operators of an integer model that read or write float32, other than conversions at float inputs and outputs."""
    from edgeopt.formats import tflite

    model = tflite.read(path)
    counts: Counter[str] = Counter()
    for graph in model.subgraphs:
        boundary = {*graph.inputs, *graph.outputs}
        for operator in graph.operators:
            used = {index for index in (*operator.inputs, *operator.outputs) if index >= 0}
            floats = {index for index in used if tflite.dtype_name(graph.tensors[index]) == "float32"}
            name = tflite.operator_name(model, operator)
            if floats and not (name in BOUNDARY and floats <= boundary):
                counts[name] += 1
    return dict(sorted(counts.items()))
