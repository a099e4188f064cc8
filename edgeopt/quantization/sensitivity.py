"""What each layer's quantization costs: the signal-to-noise ratio at the outputs when that layer alone is quantized.

A layer alone means its weights and its input activations in 8 bits, all else in float. Noise of different layers is
nearly independent, so that the powers add: layers that are bad alone are those to keep in float first. How well that
holds is measured, not assumed: `curve` runs the model with the worst k layers in float.

Source: per-layer signal-to-quantization-noise ratio, as in Lin, Talathi and Annapureddy 2016,
https://arxiv.org/abs/1511.06393. This module knows nothing of accuracy or of goals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgeopt.quantization import execution
from edgeopt.quantization.layers import Layer, QuantizedModel

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SAMPLES = 50
POINTS = 8  # of the curve, beside its two ends


@dataclass(frozen=True)
class Ranked:
    """A layer with the signal-to-noise ratio that its quantization alone leaves, in dB: that of the worst output.

    None where it changes nothing at all.
    """

    layer: Layer
    snr_db: float | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.layer), "snr_db": self.snr_db}


Progress = Callable[[float | None, str], None]


def rank(
    model: QuantizedModel,
    reference: Sequence[Array],
    feeds: execution.Batches,
    threads: int | None,
    progress: Progress,
) -> tuple[Ranked, ...]:
    """The layers, the costliest first. `reference` is what the float model computes on `feeds`."""
    found = []
    for index, layer in enumerate(model.layers):
        progress(index / len(model.layers), f"layer {index + 1} of {len(model.layers)} alone: {layer.title}")
        alone = execution.outputs(model.with_only({layer.name}), feeds, threads)
        found.append(Ranked(layer, execution.lowest(execution.snr_db(reference, alone))))
    return tuple(sorted(found, key=_by_cost))


def curve(
    model: QuantizedModel,
    ranking: Sequence[Ranked],
    reference: Sequence[Array],
    feeds: execution.Batches,
    threads: int | None,
    progress: Progress,
) -> dict[int, float | None]:
    """The ratio in dB, of the worst output, with the worst k layers in float: by k, from 0 to one layer left."""
    counts = points(len(ranking))
    found = {}
    for index, count in enumerate(counts):
        progress(index / len(counts), f"the worst {count} of {len(ranking)} layers in float")
        kept = {ranked.layer.name for ranked in ranking[:count]}
        made = execution.outputs(model.with_float(kept), feeds, threads)
        found[count] = execution.lowest(execution.snr_db(reference, made))
    return found


def points(layers: int) -> tuple[int, ...]:
    """How many layers are kept in float at the points of the curve: 0, 1, 2, 3, 5, ... and one less than all."""
    last = max(0, layers - 1)
    steps = {round(last ** (index / POINTS)) for index in range(POINTS + 1)} if last else set()
    return tuple(sorted({0, last, *steps}))


def _by_cost(ranked: Ranked) -> float:
    return float("inf") if ranked.snr_db is None else ranked.snr_db
