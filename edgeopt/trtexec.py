"""What NVIDIA's program trtexec measured, where it is used instead of edgeopt's own sampler.

Two forms: the list of calls that `trtexec --exportTimes=times.json` writes, and the summary that it prints
(https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/command-line-programs.html). Its calls follow each other
without a pause and overlap where it uses several streams, so that their latencies are not comparable with those of
`edgeopt convert`: they are told, never ranked. This module runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import jsontext
from edgeopt.errors import InputError
from edgeopt.statistics import PERCENTILES, Percentile, percentile

_NS = 1_000_000  # of a millisecond
LONGEST_MS = 1e9
_PARTS = {"copy_in_ns": "h2dMs", "compute_ns": "computeMs", "copy_out_ns": "d2hMs", "latency_ns": "latencyMs"}
_NUMBER = r"[-+]?\d{1,15}(?:\.\d{1,15})?(?:[eE][-+]?\d{1,2})?"
_THROUGHPUT = re.compile(rf"\bThroughput: ({_NUMBER}) qps")
_LINE = re.compile(r"\b(Latency|GPU Compute Time|H2D Latency|D2H Latency|Enqueue Time): (min = .*)$", re.M)
_VALUE = re.compile(rf"(min|max|mean|median|percentile\((\d{{1,3}}(?:\.\d{{1,9}})?)%\)) = ({_NUMBER}) ms")
_SUMMARIES = {
    "Latency": "latency_ns",
    "GPU Compute Time": "compute_ns",
    "H2D Latency": "copy_in_ns",
    "D2H Latency": "copy_out_ns",
    "Enqueue Time": "enqueue_ns",
}


@dataclass(frozen=True)
class Times:
    """Every call, in ns: copying the inputs to the GPU, computing, copying the outputs back, and all of it."""

    copy_in_ns: tuple[int, ...]
    compute_ns: tuple[int, ...]
    copy_out_ns: tuple[int, ...]
    latency_ns: tuple[int, ...]

    def percentiles(self) -> dict[str, Percentile | None]:
        """p50 to p99 of the latency, each with its interval; None where there are too few calls for it."""
        return {name: percentile(self.latency_ns, q)[0] for name, q in PERCENTILES.items()}


@dataclass(frozen=True)
class Summary:
    """What trtexec printed: inferences a second, and for each part {"min": ns, "median": ns, "p99": ns, ...}."""

    throughput_per_s: float | None
    parts: Mapping[str, Mapping[str, int]]


def read_times(path: Path) -> Times:
    """The file of `--exportTimes`. Raises InputError with what is wrong in it."""
    try:
        calls = jsontext.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except ValueError as error:
        raise InputError(f"is no JSON: {error}", where=str(path)) from error
    if not isinstance(calls, list) or not calls or not all(isinstance(call, dict) for call in calls):
        raise InputError("is no list of calls", where=str(path), remedy="Write it with trtexec --exportTimes=FILE.")
    return Times(
        **{name: tuple(_ns(call, key, index, path) for index, call in enumerate(calls)) for name, key in _PARTS.items()}
    )


def read_summary(text: str) -> Summary:
    """The lines that trtexec prints at its end. Raises InputError where there are none."""
    throughput = _THROUGHPUT.search(text)
    parts = {_SUMMARIES[name]: _values(line) for name, line in _LINE.findall(text)}
    if throughput is None and not parts:
        raise InputError("this is no output of trtexec: there is no line with Throughput or GPU Compute Time")
    return Summary(float(throughput.group(1)) if throughput else None, parts)


def _values(line: str) -> dict[str, int]:
    return {
        f"p{quantile}" if quantile else name: round(float(value) * _NS)
        for name, quantile, value in _VALUE.findall(line)
    }


def _ns(call: Mapping[str, Any], key: str, index: int, path: Path) -> int:
    value = call.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LONGEST_MS:
        raise InputError(f"call {index} has {value!r} for {key}: milliseconds are expected", where=str(path))
    return round(value * _NS)
