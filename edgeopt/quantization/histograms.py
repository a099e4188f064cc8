"""A histogram of a stream of arrays, in memory that does not grow with how much has been seen.

Bins are a power of two wide and one edge is zero. Where a value lies outside, bins are made twice as wide and merged
in pairs, so that counts stay exact and do not depend on the order of the arrays. It knows nothing of quantization.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SIDE = 4096  # bins below zero, and as many above
NARROWEST = -100  # bins are 2 ** -100 wide at least: below that float32 ends


class Histogram:
    """Counts of the finite values of arrays. Bin i holds [(i - SIDE) * width, (i - SIDE + 1) * width).

    `counts` are those of values other than zero, int64 of shape (2 * SIDE,), `zeros` of exact zeros. `low` and `high`
    are the smallest and largest value seen, `largest` the largest magnitude, 0 before any.
    """

    def __init__(self) -> None:
        import numpy as np

        self.counts: Array = np.zeros(2 * SIDE, np.int64)
        self.zeros = 0
        self.low, self.high = math.inf, -math.inf
        self._exponent: int | None = None

    @property
    def width(self) -> float:
        return 0.0 if self._exponent is None else math.ldexp(1.0, self._exponent)

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high)) if math.isfinite(self.low) else 0.0

    def add(self, values: Array) -> None:
        """Count the values of an array of any shape. Those that are not finite are left out."""
        import numpy as np

        values = np.asarray(values, np.float32).reshape(-1)
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self.add(values[np.isfinite(values)])
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        zeros = values.size - int(np.count_nonzero(values))
        self.zeros += zeros
        if zeros == values.size:
            return
        self._widen(self.largest)
        index = np.floor(values * np.float32(1 / self.width)).astype(np.int64)
        np.clip(index, -SIDE, SIDE - 1, out=index)
        counts = np.bincount(index + SIDE, minlength=2 * SIDE)
        counts[SIDE] -= zeros
        self.counts += counts

    def magnitudes(self) -> Array:
        """Counts by magnitude, int64 of shape (SIDE,): bin i holds magnitudes in [i * width, (i + 1) * width]."""
        folded: Array = self.counts[SIDE:] + self.counts[:SIDE][::-1]
        return folded

    def _widen(self, largest: float) -> None:
        """Ensure that `largest`, above zero, is inside."""
        exponent = max(math.frexp(largest / SIDE)[1], NARROWEST)
        if self._exponent is None:
            self._exponent = exponent
        while self._exponent < exponent:
            half = SIDE // 2
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[half : half + SIDE] = pairs
            self._exponent += 1
