"""What a model computes on samples, Q/DQ taken at its word, and how far that is from what another model computes.

Constants are dequantized beforehand and integer fusions are off, so that the result is that of the canonical model on
every CPU: kernels for 8-bit integers saturate on some. This module knows nothing of layers or of goals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeopt.errors import InputError, StageError
from edgeopt.measuring import quality
from edgeopt.quantization import layers
from edgeopt.samples import Samples

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LARGEST_BATCH = 32
ELEMENTS_AT_ONCE = 1 << 17  # of inputs: large samples go one by one, which is as fast and takes less memory


@dataclass(frozen=True)
class Batches:
    """Samples as feeds of a model, `size` at once, the first `count` of them. Each is read when it is asked for."""

    samples: Samples
    count: int
    size: int

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        for start in range(0, self.count, self.size):
            yield self.samples.batch(start, min(start + self.size, self.count))

    def first(self, count: int) -> Batches:
        """At least the first `count` samples, in whole batches, or all where there are fewer."""
        return replace(self, count=min(self.count, -(-count // self.size) * self.size))


def batches(model: Any, samples: Samples, count: int | None = None) -> Batches:
    """The first `count` samples as feeds of a model, all of them for None. Where the model's batch is fixed, only whole
    batches. Raises InputError where that leaves none."""
    stored = {tensor.name for tensor in model.graph.initializer}
    given = next(value for value in model.graph.input if value.name not in stored)
    dims = given.type.tensor_type.shape.dim
    total = len(samples) if count is None else min(count, len(samples))
    if dims and dims[0].HasField("dim_value"):
        size = int(dims[0].dim_value)
        total -= total % size
        if not total:
            raise InputError(
                f"the model takes {size} samples at once, and there are {len(samples)}",
                remedy="Give more samples, or export the model with a free batch.",
            )
    else:
        elements = sum(array.size for array in samples.batch(0, 1).values())
        size = max(1, min(LARGEST_BATCH, ELEMENTS_AT_ONCE // max(1, elements)))
    if not total:
        raise InputError("there are no samples", remedy="Give at least one; 50 are a good number.")
    return Batches(samples, total, size)


def outputs(model: Any, feeds: Batches, threads: int | None) -> list[Array]:
    """Every output over all feeds, one row a sample; of an output without a batch axis, one row a feed.

    Raises StageError where they are not finite or do not fit together.
    """
    import numpy as np

    session = _session(model, threads)
    names = [given.name for given in session.get_outputs()]
    rows: list[list[Array]] = [[] for _ in names]
    for feed in feeds:
        size = len(next(iter(feed.values())))
        for kept, value in zip(rows, session.run(None, dict(feed))):
            kept.append(value if value.ndim and len(value) == size else value[None])
    found = []
    for name, kept in zip(names, rows):
        if len({value.shape[1:] for value in kept}) > 1:
            raise StageError(f"output {name} changes its shape from sample to sample: it cannot be compared")
        value = np.concatenate(kept)
        if not np.isfinite(value).all():
            raise StageError(f"output {name} holds NaN or infinite values")
        found.append(value)
    return found


def ranges(model: Any, tensors: Sequence[str], feeds: Batches) -> dict[str, Array]:
    """The largest magnitude in each channel of tensors inside a model, over all feeds: one row of them a tensor.

    Channels are axis 1; of tensors of three axes the shorter of the last two, since detectors have them on either.
    """
    import numpy as np
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors)
    session, found = _session(copy, None), dict[str, "Array"]()
    for feed in feeds:
        for name, value in zip(tensors, session.run(None, dict(feed))):
            axis = min(1, value.ndim - 1) if value.ndim != 3 or value.shape[1] <= value.shape[2] else 2
            others = tuple(other for other in range(value.ndim) if other != axis)
            peaks = np.abs(value).max(axis=others, initial=0.0)
            found[name] = np.maximum(found[name], peaks) if name in found else peaks
    return found


def snr_db(reference: Sequence[Array], found: Sequence[Array]) -> list[float | None]:
    """10 log10(signal power / noise power) of each output over all samples, None where nothing differs."""
    return [quality.decibels(*quality.energies(wanted, value)) for wanted, value in zip(reference, found)]


def _session(model: Any, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    content = layers.dequantized(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def lowest(ratios: Sequence[float | None]) -> float | None:
    """The worst of several ratios; None, no noise at all, is the best."""
    return min((ratio for ratio in ratios if ratio is not None), default=None)
