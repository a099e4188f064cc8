"""What is measured of one artifact by itself, beside the session: batch curve, starts, sustained load.

Scenarios are named as MLPerf Inference names them (Reddi et al. 2020, https://arxiv.org/abs/1911.02549): single-stream
is one sample after the other, offline is all samples at once, in batches of the size that gives most per second.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeopt.measurement import Block, latency
from edgeopt.statistics import Comparison, Percentile, unpaired_ratio, verdict

BATCHES = (1, 2, 4, 8, 16, 32, 64)
PARTS = 10  # of the first and of the last stretch, each long enough that its median hardly depends on the one before
STRETCH_NS = 60_000_000_000
SUSTAINED_MARGIN = 0.05


@dataclass(frozen=True)
class BatchPoint:
    """One batch size: its blocks, one a round; each call is of `batch` samples."""

    batch: int
    rounds: Tuple[Block, ...]

    @property
    def p50(self) -> Optional[Percentile]:
        """ns for the whole batch."""
        return latency(self.rounds).p50

    @property
    def samples_per_s(self) -> Optional[float]:
        p50 = self.p50
        return self.batch * 1e9 / p50.value if p50 else None

    def summary(self) -> Dict[str, Any]:
        return {"batch": self.batch, "samples_per_s": self.samples_per_s, "latency_ns": latency(self.rounds).to_json()}


@dataclass(frozen=True)
class BatchCurve:
    """Latency by batch size. `ended` says why there are no larger ones; without points, why there is no curve."""

    points: Tuple[BatchPoint, ...]
    ended: Optional[str]

    @property
    def offline(self) -> Optional[BatchPoint]:
        """The batch size with most samples per second, the smallest of those within 3 % of it."""
        rates = [(point.samples_per_s or 0.0, point) for point in self.points]
        best = max((rate for rate, _ in rates), default=0.0)
        return next((point for rate, point in rates if rate and rate * 1.03 >= best), None)

    def summary(self) -> Dict[str, Any]:
        """Without raw samples, as a bundle keeps it."""
        return {
            "points": [point.summary() for point in self.points],
            "offline_batch": self.offline.batch if self.offline else None,
            "ended": self.ended,
        }

    def to_json(self) -> Dict[str, Any]:
        """The summary and the raw samples."""
        rounds = [[block.to_json() for block in point.rounds] for point in self.points]
        return {**self.summary(), "rounds": rounds}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> BatchCurve:
        points = [
            BatchPoint(point["batch"], tuple(Block.from_json(block) for block in rounds))
            for point, rounds in zip(value["points"], value["rounds"])
        ]
        return BatchCurve(tuple(points), value["ended"])


@dataclass(frozen=True)
class Start:
    """A fresh process, its runtime imported: loading the artifact, and the first inference. `read_bytes` came from the
    disk meanwhile, None where the system does not tell."""

    load_ns: int
    first_inference_ns: int
    read_bytes: Optional[int]

    @property
    def ns(self) -> int:
        return self.load_ns + self.first_inference_ns


@dataclass(frozen=True)
class Starts:
    """Starts with the artifact's files in the page cache, and with them dropped from it; the runtime's own files stay.

    `dropped` is empty where that was not to be had: `reason` says why.
    """

    warm: Tuple[Start, ...]
    dropped: Tuple[Start, ...]
    reason: Optional[str] = None

    def to_json(self) -> Dict[str, Any]:
        def told(starts: Sequence[Start]) -> Optional[Dict[str, Any]]:
            if not starts:
                return None
            loads, firsts = [one.load_ns for one in starts], [one.first_inference_ns for one in starts]
            return {
                "load_ns": int(median(loads)),
                "first_inference_ns": int(median(firsts)),
                "starts": [asdict(one) for one in starts],
            }

        return {"warm": told(self.warm), "dropped": told(self.dropped), "reason": self.reason}


@dataclass(frozen=True)
class Window:
    """A tenth of a second or so of inferences back to back: when it began, how many there were, their clean median."""

    at_ns: int
    calls: int
    clean_calls: int
    p50_ns: int
    slowest_ns: int


@dataclass(frozen=True)
class Sustained:
    """Inferences back to back for a long time. `throttled` counts how often the processor slowed itself down, None
    where it does not tell; `temperature_c` is that before and after."""

    windows: Tuple[Window, ...]
    throttled: Optional[int]
    temperature_c: Optional[Tuple[float, float]]

    @property
    def comparison(self) -> Comparison:
        """The last stretch beside the first: a minute of each, or a third of the whole where that is less.

        Each stretch is cut into ten parts, whose medians are resampled: neighbouring calls depend on one another, and
        parts of some seconds hardly do (batch means: Law, Simulation Modeling and Analysis, section 9.5).
        """
        whole = self.windows[-1].at_ns - self.windows[0].at_ns
        stretch = min(STRETCH_NS, whole // 3)
        first = [one for one in self.windows if one.at_ns - self.windows[0].at_ns <= stretch]
        last = [one for one in self.windows if self.windows[-1].at_ns - one.at_ns <= stretch]
        return verdict(unpaired_ratio(_parts(first), _parts(last), "clean"), margin=SUSTAINED_MARGIN)

    def to_json(self) -> Dict[str, Any]:
        found = self.comparison
        return {
            "windows": [asdict(window) for window in self.windows],
            "throttled": self.throttled,
            "temperature_c": list(self.temperature_c) if self.temperature_c else None,
            "last_to_first": {**found.speedup.to_json(), "verdict": found.verdict, "reason": found.reason},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Sustained:
        windows = tuple(Window(**window) for window in value["windows"])
        temperature = value["temperature_c"]
        return Sustained(windows, value["throttled"], tuple(temperature) if temperature else None)


def _parts(windows: Sequence[Window]) -> List[float]:
    """The medians of ten parts of a stretch, fewer where it has fewer windows."""
    count = min(PARTS, len(windows))
    edges = [index * len(windows) // count for index in range(count + 1)]
    return [median(one.p50_ns for one in windows[edges[i] : edges[i + 1]]) for i in range(count)]
