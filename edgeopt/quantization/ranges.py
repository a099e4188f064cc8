"""Which range of an activation the integers stand for: the ends are what a histogram of its values says is best.

Quantizers are symmetric, as the fast integer kernels want them: [0, a] in 255 steps where no value is negative, else
[-a, a] in 2 x 127 steps and one more below. A method picks the threshold a. Values beyond it saturate, so that a small
a costs clipping and a large one rounding. This module knows nothing of models or of how values are observed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from edgeopt.quantization.histograms import SIDE, Histogram

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

FromHistogram = Literal["percentile", "entropy", "mse"]

UNSIGNED_STEPS, SIGNED_STEPS = 255, 127
SMALLEST_SHARE = 2.0**-8  # of the largest magnitude, that mse tries
STEPS_AN_OCTAVE = 32  # of thresholds that mse tries
DIVERGENCE_BINS = 2048  # as in Migacz 2017
DIVERGENCE_STRIDE = 4
REMEMBERED = 0.95  # of a moving average, at each array


class Observer(Protocol):
    """Sees arrays one by one and then tells a range."""

    def add(self, values: Array) -> None: ...

    def range(self) -> tuple[float, float]:
        """The lowest and highest value that are to be represented: (0, a) where nothing is negative, else (-a, a)."""
        ...


def observer(method: str, percentile: float) -> Observer:
    """A new observer for "moving-average" or one of `FromHistogram`."""
    if method == "moving-average":
        return MovingAverage()
    return Histogrammed(cast(FromHistogram, method), percentile)


class Histogrammed:
    """The range that a histogram of all values says is best."""

    def __init__(self, method: FromHistogram, percentile: float) -> None:
        self._method, self._percentile = method, percentile
        self._histogram = Histogram()

    def add(self, values: Array) -> None:
        self._histogram.add(values)

    def range(self) -> tuple[float, float]:
        return from_histogram(self._histogram, self._method, self._percentile)


class MovingAverage:
    """The exponential moving averages of each array's smallest and largest value.

    Source: Jacob et al. 2018, section 3.1, https://arxiv.org/abs/1712.05877; weight of the past as in LiteRT.
    """

    def __init__(self) -> None:
        self._low: float | None = None
        self._high = 0.0

    def add(self, values: Array) -> None:
        low, high = float(values.min()), float(values.max())
        if self._low is None:
            self._low, self._high = low, high
        self._low += (1 - REMEMBERED) * (low - self._low)
        self._high += (1 - REMEMBERED) * (high - self._high)

    def range(self) -> tuple[float, float]:
        low = self._low or 0.0
        threshold = max(abs(low), abs(self._high))
        return (-threshold if low < 0 else 0.0), threshold


def from_histogram(histogram: Histogram, method: FromHistogram, percentile: float) -> tuple[float, float]:
    """The lowest and highest value that are to be represented: (0, a) where nothing is negative, else (-a, a)."""
    if histogram.largest == 0:
        return 0.0, 0.0
    signed = histogram.low < 0
    if method == "percentile":
        threshold = percentile_threshold(histogram, percentile)
    elif method == "entropy":
        threshold = entropy_threshold(histogram, SIGNED_STEPS + 1 if signed else UNSIGNED_STEPS + 1)
    else:
        threshold = mse_threshold(histogram, signed)
    return (-threshold if signed else 0.0), threshold


def percentile_threshold(histogram: Histogram, percentile: float) -> float:
    """The magnitude that `percentile` % of all values, zeros among them, do not exceed; linear inside a bin."""
    import numpy as np

    counts = histogram.magnitudes()
    cumulative = histogram.zeros + np.cumsum(counts)
    wanted = percentile / 100 * int(cumulative[-1])
    bin_ = int(np.searchsorted(cumulative, wanted))
    if wanted <= histogram.zeros or counts[bin_] == 0:  # zeros alone: the largest magnitude is all that is known
        return histogram.largest
    inside = (wanted - (cumulative[bin_] - counts[bin_])) / counts[bin_]
    return min((bin_ + float(inside)) * histogram.width, histogram.largest)


def mse_threshold(histogram: Histogram, signed: bool) -> float:
    """The threshold with the least mean squared error of quantizing, among magnitudes 2 % apart.

    Values are taken as spread evenly inside a bin, over which the squared error of rounding and clipping has an
    integral in closed form. Zeros are represented exactly and cost nothing.
    """
    import numpy as np

    edges = (np.arange(2 * SIDE + 1) - SIDE) * histogram.width
    used = np.flatnonzero(histogram.counts)
    edges = edges[used[0] : used[-1] + 2]
    density = histogram.counts[used[0] : used[-1] + 1] / histogram.width
    octaves = -np.log2(SMALLEST_SHARE)
    thresholds = histogram.largest * 2.0 ** -(np.arange(int(octaves * STEPS_AN_OCTAVE) + 1) / STEPS_AN_OCTAVE)
    errors = [float(np.diff(_squared_error(edges, threshold, signed)) @ density) for threshold in thresholds]
    return float(thresholds[int(np.argmin(errors))])


def _squared_error(x: Array, threshold: float, signed: bool) -> Array:
    """The integral from 0 to x of (t - quantized(t))**2 dt, up to a constant.

    With q = clip(round(x / step)) and r = x - q * step it is q * step**3 / 12 + r**3 / 3: each whole step adds
    step**3 / 12, and the remainder r**3 / 3, beyond the last step too.
    """
    import numpy as np

    step = threshold / (SIGNED_STEPS if signed else UNSIGNED_STEPS)
    lowest, highest = (-SIGNED_STEPS - 1, SIGNED_STEPS) if signed else (0, UNSIGNED_STEPS)
    quantized = np.clip(np.round(x / step), lowest, highest)
    rest = x - quantized * step
    integral: Array = quantized * step**3 / 12 + rest**3 / 3
    return integral


def entropy_threshold(histogram: Histogram, levels: int) -> float:
    """The threshold whose quantized distribution diverges least from the one that is only clipped (Kullback-Leibler).

    Source: Migacz, "8-bit inference with TensorRT", GTC 2017. Unlike there, `levels` are 256 where nothing is
    negative, and exact zeros, which any threshold represents, are left out: after a ReLU they would outweigh the rest.
    """
    import numpy as np

    counts = histogram.magnitudes()[: int(histogram.largest / histogram.width) + 1]
    width = histogram.width
    while len(counts) > DIVERGENCE_BINS:
        counts = np.append(counts, np.zeros(len(counts) % 2, counts.dtype)).reshape(-1, 2).sum(1)
        width *= 2
    if len(counts) <= levels:
        return histogram.largest
    below = np.concatenate([[0], np.cumsum(counts)])
    ends = np.arange(len(counts), levels - 1, -DIVERGENCE_STRIDE)
    divergences = [_divergence(counts[:end], int(below[-1] - below[end]), levels) for end in ends]
    return min(float(ends[int(np.argmin(divergences))]) * width, histogram.largest)


def _divergence(counts: Array, outliers: int, levels: int) -> float:
    """KL(P || Q): P the counts with the outliers in the last bin that is not empty, Q the counts merged into `levels`
    and spread again over those bins that were not empty. Infinite where all are."""
    import numpy as np

    filled = counts > 0
    reference = counts.astype(np.float64)
    if not filled.any():
        return float("inf")
    reference[np.flatnonzero(filled)[-1]] += outliers
    level = np.arange(len(counts)) * levels // len(counts)
    sums = np.bincount(level, counts, levels)
    bins = np.bincount(level, filled, levels)
    spread = np.where(filled, (sums / np.maximum(bins, 1))[level], 0.0)
    p, q = reference[filled] / reference.sum(), spread[filled] / spread.sum()
    return float(p @ np.log(p / q))
