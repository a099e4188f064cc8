"""NNCF's post-training quantization of an ONNX model, with ranges of our own and memory that samples do not grow.

It is what `nncf.quantize` does for ONNX, taken apart: where a range is not one of NNCF's, each activation is observed
by an `Observer` instead of NNCF's collector. NNCF 3.4 has no percentile of all samples, no moving average and no
entropy; its histogram, which looks for the least squared error, is about as close as ours.

Bias correction comes last. NNCF measures it without the quantizers of activations: it makes good what rounding the
weights shifts, whatever the ranges. Measured with them it was better on one network and worse on another. For a fifth
of the samples it keeps whole activations: here it takes no more than `BIAS_SAMPLES`, or as many as fit into
`BIAS_BYTES`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from edgeopt.quantization import ranges

Ranges = Literal["mean-min-max", "min-max", "moving-average", "percentile", "entropy", "mse"]

BIAS_SHARE = 0.2  # of the samples, NNCF's own
BIAS_SAMPLES = 20
BIAS_BYTES = 1 << 26  # of the largest activation, for all samples of bias correction together


@dataclass(frozen=True)
class Settings:
    """How to quantize. `percentile` is in percent and read with the range "percentile" alone; `ignore` are regular
    expressions of whole node names."""

    ranges: Ranges
    percentile: float
    bias_correction: Literal["full", "fast", "none"]
    overflow_fix: bool
    ignore: tuple[str, ...]


def quantize(model: Any, feeds: Iterable[Any], count: int, settings: Settings) -> Any:
    """A Q/DQ model from a float one whose nodes have names; `feeds` gives `count` samples, each as {input: array}.

    Raises what NNCF and onnxruntime raise.
    """
    import nncf
    from nncf.common.factory import build_graph
    from nncf.onnx.graph.passes import apply_preprocess_passes, compress_quantize_weights_transformation
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )
    from nncf.quantization.algorithms.pipeline import collect_statistics
    from nncf.quantization.algorithms.post_training.pipeline import create_ptq_pipeline
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    model = apply_preprocess_passes(model)
    pipeline = create_ptq_pipeline(
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=count,
        fast_bias_correction=settings.bias_correction != "full",
        ignored_scope=nncf.IgnoredScope(patterns=list(settings.ignore)) if settings.ignore else None,
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.ENABLE if settings.overflow_fix else OverflowFix.DISABLE,
            activations_quantization_params=QuantizationParameters(per_channel=False),
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
            if settings.ranges == "min-max"
            else None,
            disable_bias_correction=settings.bias_correction == "none",
            disable_channel_alignment=True,  # NNCF has none for ONNX
        ),
    )
    algorithms = pipeline.pipeline_steps[0]  # min-max first, then bias correction where it is wanted
    if settings.bias_correction == "full":
        algorithms[-1].subset_size = bias_samples(count, largest_activation_bytes(model))
    graph = build_graph(model)
    points = [algorithm.get_statistic_points(model, graph) for algorithm in algorithms]
    if settings.ranges not in ("mean-min-max", "min-max"):
        _observe(points[0], settings, count)
    statistics = collect_statistics(points, model, graph, nncf.Dataset(feeds))
    quantized = pipeline.run_step(0, statistics, model, graph)
    compress_quantize_weights_transformation(quantized)
    return quantized


def bias_samples(count: int, largest_bytes: int) -> int:
    """How many of `count` calibration samples bias correction takes, where an activation may take `largest_bytes`."""
    fitting = BIAS_BYTES // max(largest_bytes, 1)
    return max(1, min(int(count * BIAS_SHARE), max(BIAS_SAMPLES, fitting)))


def largest_activation_bytes(model: Any) -> int:
    """Of the tensors between the nodes of a model whose shapes were inferred, for one sample; 0 where none were."""
    sizes = [0]
    for value in model.graph.value_info:
        dims = value.type.tensor_type.shape.dim
        sizes.append(4 * math.prod(dim.dim_value for dim in dims if dim.HasField("dim_value")))
    return max(sizes)


def _observe(points: Any, settings: Settings, count: int) -> None:
    """Put observers of ours in the place of NNCF's collectors, at every activation that gets a quantizer."""
    from nncf.common.tensor_statistics.collectors import RawReducer, TensorCollector
    from nncf.common.tensor_statistics.statistics import MinMaxTensorStatistic

    for name, point, _ in list(points.get_tensor_collectors()):
        if point.target_point.is_weight_target_point():
            continue
        collector = TensorCollector(MinMaxTensorStatistic)
        aggregator = _Aggregator(ranges.observer(settings.ranges, settings.percentile), count)
        collector.register_statistic_branch(MinMaxTensorStatistic.MIN_MAX_STAT, RawReducer(), aggregator)
        point.algorithm_to_tensor_collectors[name] = [collector]


class _Aggregator:
    """An observer as NNCF asks for one: the names of `nncf.common.tensor_statistics.collectors.AggregatorBase`."""

    def __init__(self, observer: ranges.Observer, num_samples: int) -> None:
        self._observer = observer
        self.num_samples = num_samples

    def register_reduced_input(self, tensor: Any) -> None:
        self._observer.add(tensor.data)

    def aggregate(self) -> dict[str, Any]:
        import numpy as np
        from nncf.tensor import Tensor

        low, high = self._observer.range()
        return {"min_values": Tensor(np.array(low, np.float32)), "max_values": Tensor(np.array(high, np.float32))}
