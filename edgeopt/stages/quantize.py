"""Static INT8 quantization by NNCF, on ONNX. What it yields is canonical Q/DQ: each compiler lowers it for its runtime.

Weights are int8, symmetric, one scale a channel. Activations are 8-bit with one scale a tensor, unsigned where nothing
was negative, else symmetric. Biases stay float and are corrected for the error of rounding the weights. The choice
"none" is never run; "qat" goes on from there to train the network with its quantizers in place
(`edgeopt.quantization.aware`), after a teacher, and writes new integers into the same graph.

Source: NNCF's post-training quantization, https://docs.openvino.ai/nncf; bias correction after Nagel et al. 2019,
https://arxiv.org/abs/1906.04721. It knows nothing of accuracy: the benchmark measures that on the target.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from edgeopt import isa, units
from edgeopt.errors import InputError, StageError
from edgeopt.quantization import aware, control, equalization, execution, outputs, posttraining, smoothing, weights
from edgeopt.samples import Samples
from edgeopt.stages import Options, Produced, StageJob
from edgeopt.target import Target
from edgeopt.text import first_line
from edgeopt.training import distillation, loop
from edgeopt.training.distillation import DistillationOptions

VERSION = 2

OLDEST_OPSET = 13  # the first whose QuantizeLinear has an axis
MODEL = "model.onnx"
PERCENTILE = 99.99  # where ranges are told by percentile, and nobody said which
SAMPLES_CHECKED = 32  # on which a trained model is compared with what was trained
_FUSED = ("QuantizeLinear", "DequantizeLinear", "Relu", "Clip", "Cast", "Identity")
_MOVING = ("Expand", "Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")
_NO_ARITHMETIC = frozenset({*_FUSED, *_MOVING, "Constant", "ConstantOfShape", "Shape"})


class Int8Options(Options):
    """Weights and activations in 8-bit integers, calibrated on samples."""

    ranges: posttraining.Ranges = Field(
        default="mse",
        description="Which values of an activation are represented; those beyond saturate. mse and entropy: what "
        "changes the values or their distribution least; percentile: all but a few; min-max: all; mean-min-max: the "
        "smallest and the largest of each sample, averaged; moving-average: the last samples weigh most.",
    )
    percentile: float | None = Field(
        default=None,
        gt=50,
        le=100,
        description=f"With `ranges: percentile`: how many % of the values are represented; else {PERCENTILE}.",
        examples=[99.9],
    )
    equalize: bool = Field(
        default=False, description="First give the channels between two layers weight ranges that are alike."
    )
    smooth: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="The alpha of SmoothQuant: outlier channels of a LayerNormalization go into the weights after it.",
        examples=[0.9],
    )
    bias_correction: Literal["full", "fast", "none"] = Field(
        default="full",
        description="full measures a layer's error with those before it corrected, fast each layer's alone.",
    )
    overflow_fix: Literal["auto", "enable", "disable"] = Field(default="auto", description=weights.OVERFLOW_FIX)
    ignore: tuple[str, ...] = Field(default=(), description=weights.IGNORE, examples=[["fc"]])
    max_drop: str | None = Field(
        default=None,
        description="As few layers stay in float as keep top-1 within it, judged on the tuning data: accuracy with "
        "labels, else agreement with the float model.",
        examples=["1 %"],
    )
    min_snr: str | None = Field(
        default=None,
        description="As few layers stay in float as give so much signal to noise at the worst output.",
        examples=["20 dB"],
    )

    @field_validator("max_drop", mode="before")
    @classmethod
    def _share(cls, value: Any) -> str | None:
        return None if value is None else f"{units.parse_fraction(value) * 100:.6g} %"

    @field_validator("min_snr", mode="before")
    @classmethod
    def _ratio(cls, value: Any) -> str | None:
        return None if value is None else f"{units.parse_decibels(value):.6g} dB"

    @field_validator("smooth", mode="before")
    @classmethod
    def _alpha(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("`smooth` is the alpha of SmoothQuant, from 0 to 1: write it like `smooth: 0.9`")
        return value

    @model_validator(mode="after")
    def _percentile_of_percentile(self) -> Int8Options:
        if self.percentile is not None and self.ranges != "percentile":
            raise ValueError("`percentile` needs `ranges: percentile`")
        return self

    @property
    def goal(self) -> control.Goal | None:
        """What the quantized model may lose, None where nobody said."""
        if self.max_drop is None and self.min_snr is None:
            return None
        return control.Goal(
            None if self.max_drop is None else units.parse_fraction(self.max_drop),
            None if self.min_snr is None else units.parse_decibels(self.min_snr),
        )

    def told(self) -> Mapping[str, str]:
        return {
            "ranges": self.ranges,
            "percentile": f"{self.percentile:g}" if self.percentile else "",
            "smooth": f"smooth{self.smooth:g}" if self.smooth is not None else "",
            "max_drop": f"drop{str(self.max_drop).removesuffix(' %')}",
            "min_snr": f"snr{str(self.min_snr).removesuffix(' dB')}",
        }


class QatOptions(Int8Options, DistillationOptions):
    """As int8, then trained with its quantizers in place: what rounding cost is learned away, after a teacher."""

    epochs: int = Field(default=2, ge=1, le=10_000, description=DistillationOptions.model_fields["epochs"].description)
    learning_rate: float = Field(
        default=3e-4, gt=0, description=DistillationOptions.model_fields["learning_rate"].description
    )

    def told(self) -> Mapping[str, str]:
        return {**Int8Options.told(self), **DistillationOptions.told(self)}


def choices() -> Mapping[str, type[Options]]:
    return {"none": Options, "int8": Int8Options, "qat": QatOptions, **weights.CHOICES}


def tools(choice: str, options: Any) -> Sequence[str]:
    if choice == "qat":
        return ("nncf", "onnx", "onnxruntime", "torch", "onnxslim", *distillation.tools())
    if choice in weights.CHOICES:
        return ("onnx",)
    return () if choice == "none" else ("nncf", "onnx", "onnxruntime")


def files(choice: str, options: Any) -> Sequence[str]:
    return distillation.files(options) if choice == "qat" else ()


def sample_roles(choice: str, options: Any, precision: str) -> Sequence[str]:
    if choice == "none" or choice in weights.CHOICES:
        return ()
    train = ("train",) if choice == "qat" else ()
    return ("calibration", *train) if options.goal is None else ("calibration", "tuning", *train)


def probe(choice: str, options: Any) -> tuple[str, Options]:
    """Neither training nor bias correction changes a shape, and which layers accuracy keeps in float is not known."""
    if choice == "none" or choice in weights.CHOICES:
        return choice, options
    kept = {"overflow_fix": options.overflow_fix, "ignore": options.ignore}
    return "int8", Int8Options(ranges="mean-min-max", bias_correction="none", **kept)


def objection(choice: str, options: Any, precision: str) -> str | None:
    if choice != "none" and precision.startswith("int"):
        return "the model is quantized already"
    return None


def precision(choice: str, options: Any, precision: str) -> str:
    if choice in weights.CHOICES:
        return weights.precision(choice, options)
    return precision if choice == "none" else "int8"


def run(job: StageJob) -> Produced:
    """Requires a float ONNX model in one file and calibration samples. Ensures a Q/DQ model of the same signature.

    The same model, samples and options give the same bytes.
    """
    if job.choice in weights.CHOICES:
        return weights.run(job, job.choice == "dynamic" and needs_overflow_fix(job.options, job.target))
    if job.choice == "qat":
        return _trained(job)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # no event leaves this machine
    import nncf
    import onnx

    options: Int8Options = job.options
    samples = Samples(job.samples["calibration"])
    if len(samples) == 0:
        raise InputError("quantization needs calibration samples, and there are none")
    source = job.parent_folder / job.parent.main
    overflow_fix = needs_overflow_fix(options, job.target)

    original, told = _rescaled(_prepared(onnx.load(str(source))), samples, options, job.progress)

    def quantize(bias_correction: Literal["full", "fast", "none"]) -> Any:
        model = onnx.ModelProto()
        model.CopyFrom(original)
        return _quantize(model, samples, options, bias_correction, overflow_fix, job.progress)

    applied, fell_back = options.bias_correction, None
    with _sessions_without_fusion():
        try:
            model = quantize(applied)
        except nncf.ValidationError as error:
            raise InputError(f"quantize int8: {first_line(error)}") from error
        except _failures() as error:
            if applied != "full":
                raise StageError(f"NNCF cannot quantize this model: {first_line(error)}") from error
            applied, fell_back = "fast", first_line(error)  # the full correction cuts graphs up, which some forbid
            try:
                model = quantize(applied)
            except _failures() as second:
                raise StageError(f"NNCF cannot quantize this model: {first_line(second)}") from second

    model, mixed = outputs.separated(model, original, execution.batches(original, samples))
    controlled = None
    if options.goal is not None:
        tuning = Samples(job.samples["tuning"])
        controlled = control.keep_inside(model, original, tuning, options.goal, job.threads, job.progress)
        model = controlled.model
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
        **told,
    }
    if mixed:
        details["mixed_outputs"] = [found.to_json() for found in mixed]
    if controlled:
        details["control"] = controlled.details()
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


def _trained(job: StageJob) -> Produced:
    """Quantization-aware training: requires training samples too. Ensures that the model written is the one trained.

    The same bytes also when the worker was killed on the way and the step is done again.
    """
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "int8"
        folder.mkdir()
        produced = run(replace(job, choice="int8", out=folder))
        distillation.share_the_cores(job.threads)
        job.progress(None, "making the torch module")
        model, source = onnx.load(str(folder / MODEL)), _prepared(onnx.load(str(job.parent_folder / job.parent.main)))
        source, _ = _rescaled(source, Samples(job.samples["calibration"]), job.options, job.progress)
        student = aware.trainable(model, folder / MODEL, source)
        data, notes = distillation.training_data(job, student.module, "quantize qat")
        guide = distillation.load_teacher(job, Path(scratch))
        chosen = replace(distillation.training_options(job, student.module, data), batch_statistics=False)
        result = loop.train(student.module, guide, data, chosen, job.scratch, job.progress)
    job.progress(None, "checking the trained model")
    aware.write(student, model)
    onnx.checker.check_model(model)
    feeds = execution.batches(model, Samples(job.samples["train"]), SAMPLES_CHECKED)
    ratio = aware.check(model, student.module, replace(feeds, size=min(feeds.size, chosen.batch)))
    onnx.save(model, str(job.out / MODEL))
    told = distillation.details(result, chosen)
    notes += told.pop("notes")
    told |= {
        "teacher": {"model": Path(job.options.teacher).name, "backend": guide.backend},
        "check_sqnr_db": ratio,
        "weights_from_float": student.from_float,
        **({"training_notes": notes} if notes else {}),
    }
    return replace(produced, details={**produced.details, **told})


def needs_overflow_fix(options: Int8Options | weights.DynamicOptions, target: Target) -> bool:
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
                f"the model has opset {opset} and cannot be brought to {OLDEST_OPSET}: {first_line(error)}",
                remedy=f"Export it again with opset {OLDEST_OPSET} or newer.",
            ) from error
    used: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in used:
            node.name = f"{node.op_type}_{index}"
        used.add(node.name)
    return model


def _rescaled(
    model: Any, samples: Samples, options: Int8Options, progress: Callable[[float | None, str], None]
) -> tuple[Any, dict[str, Any]]:
    """The same function with weights and activations that quantize better, and what is to be told of it."""
    told: dict[str, Any] = {"ranges": options.ranges}
    if options.equalize:
        progress(None, "equalizing channels")
        equalized = equalization.equalize(model)
        if not equalized.pairs:
            parted = ", ".join(f"{count} {op_type}" for op_type, count in equalized.parted.items())
            raise StageError(
                f"no two layers have channels that could be equalized{f': {parted} between them' if parted else ''}",
                remedy="Leave `equalize` out.",
            )
        told["equalized_pairs"] = [list(pair) for pair in equalized.pairs]
        told["equalization_parted_by"] = equalized.parted
    if options.smooth is not None:
        with _sessions_without_fusion():
            try:
                feeds = _Feeds(samples, progress)
                model, smoothed = smoothing.smooth(model, feeds, len(samples), options.smooth)
            except _failures() as error:
                raise StageError(f"NNCF cannot smooth this model: {first_line(error)}") from error
        if not smoothed.folded:
            raise StageError(
                "there is no LayerNormalization to smooth that linear layers alone read", remedy="Leave `smooth` out."
            )
        told["smoothed_normalizations"] = smoothed.folded
        told["smoothing_multiplications"] = smoothed.multiplied
    return model, told


def _quantize(
    model: Any,
    samples: Samples,
    options: Int8Options,
    bias_correction: Literal["full", "fast", "none"],
    overflow_fix: bool,
    progress: Callable[[float | None, str], None],
) -> Any:
    settings = posttraining.Settings(
        ranges=options.ranges,
        percentile=options.percentile or PERCENTILE,
        bias_correction=bias_correction,
        overflow_fix=overflow_fix,
        ignore=options.ignore,
    )
    return posttraining.quantize(model, _Feeds(samples, progress), len(samples), settings)


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
