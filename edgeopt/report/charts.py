"""What the charts of report.html are drawn from, as plain JSON: numbers, and the text that a person reads of each.

Of a candidate's calls only their distribution goes in: a histogram and percentiles. The raw samples stay in
measurements.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.measurement import Measurement
from edgeopt.report.ablation import Gain, gains
from edgeopt.report.cells import COLUMNS, quality_change_text, rows_of, smaller_text
from edgeopt.text import plain

BINS = 48  # of a histogram, equal on a logarithmic axis
SPREAD = {"p5": 0.05, "p25": 0.25, "p75": 0.75}  # beside the percentiles that are reported
EDGES = (0.005, 0.995)  # the histogram's ends: calls beyond are in its first and last bin
METRICS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "agreement": "agreement with the original",
    "sqnr": "signal to quantization noise",
}
NOT_TOLD = ("mark", "id")  # of the table's columns, where a mark is hovered over


def chart_data(document: Mapping[str, Any], measured: Mapping[str, Measurement]) -> dict[str, Any]:
    """What the scripts of `page/` draw. `measured` are the raw samples by candidate. Times in ns, sizes in bytes."""
    by_id = {one["id"]: one for one in document["candidates"]}
    baseline = by_id.get(document["baseline"])
    rows = rows_of(document, baseline_first=False)
    numbers = {row.id: number for number, row in enumerate(rows, 1)}
    candidates = []
    for row in rows:
        one, samples = by_id[row.id], measured.get(row.id)
        if samples is None or not one.get("latency_ns"):
            continue
        candidates.append(
            {
                "n": numbers[row.id],
                "name": plain(row.id),
                "status": row.status,
                "baseline": row.baseline,
                "backend": plain(one["backend"]),
                "told": {c.title: row.cells[c.key] for c in COLUMNS if c.key not in NOT_TOLD and row.cells[c.key]},
                "size": row.numbers.get("size"),
                "latency": {name: one["latency_ns"][name] for name in ("p50", "p90", "p95", "p99")},
                "basis": one["latency_ns"]["basis"],
                "calls": one["latency_ns"]["clean_samples" if one["latency_ns"]["basis"] == "clean" else "samples"],
                "quality": _quality(one.get("quality"), baseline),
                "spread": _spread(samples, one["latency_ns"]["basis"]),
            }
        )
    metric = metric_of(document)
    return {
        "candidates": candidates,
        "metric": metric,
        "metric_name": METRICS.get(metric, "quality"),
        "axis": _axis(document),
        "prefer": document["budget"]["prefer"][0],
        "limits": {name: bound for name, bound in document["budget"]["limits"].items() if name.startswith("latency ")},
        "least_quality": _least_quality(document, baseline),
        "gains": [_gain(gain, numbers) for gain in gains(document) if gain.latency],
    }


def metric_of(document: Mapping[str, Any]) -> str:
    """The recipe's metric; empty where no quality was taken."""
    return next((one["quality"]["metric"] for one in document["candidates"] if one.get("quality")), "")


def _axis(document: Mapping[str, Any]) -> str:
    """The percentile that the first chart begins with: the one that is limited, else the one that is preferred."""
    wanted = [*document["budget"]["limits"], *document["budget"]["prefer"]]
    return next((name.partition(" ")[2] for name in wanted if name.startswith("latency ")), "p50")


def _quality(quality: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The metric's value, with the interval of its drop around it; `exact` of equal outputs, whose ratio has no end."""
    if quality is None or (quality["value"] is None and not quality["exact"]):
        return None
    original = ((baseline or {}).get("quality") or {}).get("value")
    low = high = None
    if quality["drop_low"] is not None and original is not None:
        low, high = original - quality["drop_high"], original - quality["drop_low"]
    return {"value": quality["value"], "low": low, "high": high, "exact": quality["value"] is None}


def _least_quality(document: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The limit that can be drawn as a line of quality, and how it reads."""
    limits, quality = document["budget"]["limits"], (baseline or {}).get("quality") or {}
    original, metric = quality.get("value"), quality.get("metric")
    if metric == "sqnr" and "sqnr" in limits:
        return {"value": limits["sqnr"], "name": "sqnr"}
    if metric == "agreement" and "fidelity" in limits:
        return {"value": limits["fidelity"], "name": "fidelity"}
    if "accuracy drop" in limits and original is not None:
        return {"value": original - limits["accuracy drop"], "name": "accuracy drop"}
    return None


def _spread(measured: Measurement, basis: str) -> dict[str, Any]:
    """The distribution of the calls that the percentiles are of: clean ones, or all where few were."""
    calls = sorted(
        ns for block in measured.rounds for ns in (block.clean_ns if basis == "clean" else block.latencies_ns)
    )
    low, high = (_quantile(calls, q) for q in EDGES)
    return {
        **{name: _quantile(calls, q) for name, q in SPREAD.items()},
        "low": low,
        "high": high,
        "counts": _histogram(calls, low, high),
    }


def _quantile(ordered: Sequence[int], q: float) -> int:
    return ordered[max(0, math.ceil(q * len(ordered) - 1e-9) - 1)]


def _histogram(calls: Sequence[int], low: int, high: int) -> list[int]:
    counts = [0] * BINS
    width = math.log(high / low) / BINS if high > low else 1.0
    for ns in calls:
        counts[min(BINS - 1, max(0, int(math.log(ns / low) / width)))] += 1
    return counts


def _gain(gain: Gain, numbers: Mapping[str, int]) -> dict[str, Any]:
    assert gain.latency is not None
    return {
        "step": plain(gain.step),
        "after": plain(gain.after),
        "n": numbers[gain.after],
        "also": [*filter(None, (smaller_text(gain.smaller), quality_change_text(gain.quality, gain.metric)))],
        "value": gain.latency.speedup.value,
        "low": gain.latency.speedup.low,
        "high": gain.latency.speedup.high,
        "verdict": gain.latency.verdict,
    }
