"""The cells of the table of candidates, for every report: what a person reads of each number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeopt import units
from edgeopt.budget import Limit
from edgeopt.text import plain

SHOWN = 4  # layers by name, of those that a line is about


@dataclass(frozen=True)
class Column:
    """A column. `words` stand left."""

    key: str
    title: str
    words: bool = False


COLUMNS = (
    Column("mark", ""),
    Column("id", "candidate", words=True),
    Column("p50", "p50"),
    Column("p95", "p95"),
    Column("speedup", "speed-up"),
    Column("size", "size"),
    Column("smaller", "smaller"),
    Column("memory", "memory"),
    Column("quality", "quality"),
    Column("drop", "drop"),
    Column("fidelity", "fidelity"),
    Column("sqnr", "SQNR"),
    Column("verdict", "verdict", words=True),
)


@dataclass(frozen=True)
class Row:
    """One candidate as text. `numbers` are those behind the cells, in ns, bytes, dB and fractions of one; what was not
    measured is not there."""

    id: str
    status: str
    baseline: bool
    cells: Mapping[str, str]
    numbers: Mapping[str, float]


def rows_of(document: Mapping[str, Any], *, baseline_first: bool = True) -> tuple[Row, ...]:
    """Rows in the order a person reads them: baseline, winner, fallbacks by rank, outside, failed, skipped."""
    order = {name: rank for rank, name in enumerate([document["winner"], *document["fallbacks"]])}
    kinds = ("chosen", "inside", "outside", "failed", "skipped")

    def place(candidate: Mapping[str, Any]) -> tuple[Any, ...]:
        latency = _value(candidate, "p50")
        return (
            baseline_first and candidate["id"] != document["baseline"],
            kinds.index(candidate["status"]),
            order.get(candidate["id"], len(order)),
            latency if latency is not None else float("inf"),
        )

    baseline = next((c for c in document["candidates"] if c["id"] == document["baseline"]), None)
    planned = [candidate for candidate in document["candidates"] if _was_planned(candidate)]
    return tuple(_row(candidate, document, baseline) for candidate in sorted(planned, key=place))


def left_out_lines(document: Mapping[str, Any]) -> list[str]:
    """The combinations that were not built, and why."""
    skipped = [candidate for candidate in document["candidates"] if not _was_planned(candidate)]
    return [plain(f"{candidate['id']} left out: {'; '.join(candidate['reasons'])}") for candidate in skipped]


def pruned_lines(document: Mapping[str, Any]) -> list[str]:
    """What each pruning step removed, and the layers that it left alone with the reason."""
    return [plain(". ".join(_pruned(found))) for found in document.get("pruned", [])]


def _pruned(found: Mapping[str, Any]) -> Iterator[str]:
    if "masked" in found:
        share = units.format_fraction(found["zeros"] / found["zeros_of"])
        yield f"{found['id']}: {share} of the weights are zero in {len(found['sparsity'])} layers; {found['note']}"
    elif "blocks" in found:
        yield f"{found['id']}: without the residual blocks {', '.join(name for name, _ in found['blocks'])}"
    else:
        widths = found.get("channels", {})
        fewer = {name: pair for name, pair in widths.items() if pair[0] != pair[1]}
        shown = [f"{name} {before} to {after}" for name, (before, after) in list(fewer.items())[:SHOWN]]
        more = f" and {len(fewer) - SHOWN} more" if len(fewer) > SHOWN else ""
        told = f"fewer channels in {len(fewer)} of {len(widths)} layers ({', '.join(shown)}{more})"
        yield f"{found['id']}: {told if fewer else 'no layer has fewer channels'}"
    by_reason: dict[str, list[str]] = {}
    for name, reason in found["not_pruned"].items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"Not pruned: {', '.join(names[:SHOWN])}{more}: {reason}"


def _was_planned(candidate: Mapping[str, Any]) -> bool:
    """Whether it was to be built: what was left out has no steps."""
    return "steps" in candidate


def summary_of(document: Mapping[str, Any]) -> list[str]:
    """The verdict in words, ties, how near each came that is outside, warnings, the time spent."""
    winner = f"Winner: {document['winner']}" if document["winner"] else "No winner"
    return [
        plain(f"{winner}: {document['why']}."),
        *search_lines(document),
        *rejected_lines(document),
        *slower_lines(document),
        *placement_lines(document),
        *notes(document),
    ]


def search_lines(document: Mapping[str, Any]) -> list[str]:
    """What was found by measuring before anything was trained."""
    return [plain(f"{found['label']}: {found['why']}.") for found in document.get("search", [])]


def rejected_lines(document: Mapping[str, Any]) -> list[str]:
    """How near each came that is outside, and why each failed, with a line for its log."""
    lines = []
    for told, log in rejected(document):
        lines += [f"  {told}", *([f"    log: {log} in the run's folder"] if log else [])]
    return lines


def rejected(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What to say of each candidate that is outside or failed, and its log, empty where there is none."""
    for candidate in document["candidates"]:
        if candidate["status"] in ("outside", "failed"):
            nearest = " (nearest)" if candidate["id"] == document["nearest"] else ""
            told = f"{candidate['id']}{nearest} {candidate['status']}: {'; '.join(candidate['reasons'])}"
            yield plain(told), plain(candidate.get("log") or "")


def slower_lines(document: Mapping[str, Any]) -> list[str]:
    """The quantized candidates that are slower than the same one without quantization."""
    lines = []
    for candidate in document["candidates"]:
        over = candidate.get("over_float")
        if over and over["verdict"] == "slower":
            told = f"{candidate['artifact']['precision']} is slower here than no quantization"
            lines.append(plain(f"  {candidate['id']}: {told}, {over['value']:.2f}x the speed of {over['against']}"))
    return lines


def placement_lines(document: Mapping[str, Any]) -> list[str]:
    """The candidates of which some operators do not run where, or as what, they should."""
    told = {c["id"]: (c.get("placement") or {}).get("exceptions") for c in document["candidates"]}
    return [plain(f"  {name}: {'; '.join(exceptions)}") for name, exceptions in told.items() if exceptions]


def notes(document: Mapping[str, Any]) -> list[str]:
    """The warnings, and the time spent."""
    seconds, reused = document["seconds"], document["reused"]
    built = f"{reused['steps']} of {reused['of']} steps reused"
    measured = "reused; --remeasure measures again" if reused["measurements"] else "now"
    return [
        *(plain(f"Warning: {warning}") for warning in document.get("warnings", [])),
        f"Built in {seconds['build']:.1f} s ({built}), measured in {seconds['measure']:.1f} s ({measured}), "
        f"{seconds['total']:.1f} s in all.",
    ]


def budget_lines(document: Mapping[str, Any]) -> list[str]:
    """The limits of the budget as text."""
    return [str(Limit(name, bound)) for name, bound in document["budget"]["limits"].items()]


def quality_text(quality: Mapping[str, Any] | None) -> str:
    """ "94.40 %" for a share, "19.3 dB" for a ratio."""
    if quality is None or quality["value"] is None:
        return ""
    if quality["metric"] == "sqnr":
        return f"{quality['value']:.1f} dB"
    return units.format_fraction(quality["value"])


def drop_text(quality: Mapping[str, Any] | None) -> str:
    """The drop in points with half the width of its interval: "0.12 ±0.20"."""
    if quality is None or quality["drop"] is None:
        return ""
    half = (quality["drop_high"] - quality["drop_low"]) / 2 * 100
    return f"{quality['drop'] * 100:.2f} ±{half:.2f}"


def _fidelity_text(quality: Mapping[str, Any] | None) -> str:
    """Agreement with the original, where that is not the metric itself."""
    if quality is None or quality["fidelity"] is None or quality["metric"] == "agreement":
        return ""
    return units.format_fraction(quality["fidelity"])


def _sqnr_text(quality: Mapping[str, Any] | None) -> str:
    if quality is None or quality["metric"] == "sqnr":
        return ""
    if quality["exact"]:
        return "exact"
    return f"{quality['sqnr_db']:.1f} dB" if quality["sqnr_db"] is not None else ""


def speedup_text(speedup: Mapping[str, Any] | None) -> str:
    """ "5.41x", with a question mark where the comparison is inconclusive, and "~5.41x" where it is not precise."""
    if speedup is None:
        return ""
    if speedup["verdict"] == "inconclusive":
        return f"{speedup['value']:.2f}x?"
    wide = speedup["low"] is not None and not speedup.get("precise", True)
    return f"{'~' if wide else ''}{speedup['value']:.2f}x"


def smaller_text(times: float | None) -> str:
    """ "3.44x smaller", "1.01x larger"."""
    if not times:
        return ""
    if round(times, 2) == 1:
        return "same size"
    return f"{times:.2f}x smaller" if times >= 1 else f"{1 / times:.2f}x larger"


def quality_change_text(change: float | None, metric: str | None) -> str:
    """ "-0.56 points" of a share, "+1.2 dB" of a ratio."""
    if change is None:
        return ""
    return f"{change:+.1f} dB" if metric == "sqnr" else f"{change * 100:+.2f} points"


def _row(candidate: Mapping[str, Any], document: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> Row:
    is_baseline = candidate["id"] == document["baseline"]
    artifact, original = candidate.get("artifact"), (baseline or {}).get("artifact")
    p50, p95, memory = _value(candidate, "p50"), _value(candidate, "p95"), candidate.get("peak_memory_bytes")
    cells = {
        "mark": "►" if candidate["status"] == "chosen" else "",
        "id": candidate["id"],
        "p50": units.format_time(p50) if p50 is not None else "",
        "p95": units.format_time(p95) if p95 is not None else "",
        "speedup": "1x" if is_baseline and p50 is not None else speedup_text(candidate.get("speedup")),
        "size": units.format_size(artifact["size_bytes"]) if artifact else "",
        "smaller": f"{original['size_bytes'] / artifact['size_bytes']:.1f}x" if artifact and original else "",
        "memory": units.format_size(memory) if memory is not None else "",
        "quality": quality_text(candidate.get("quality")),
        "drop": drop_text(candidate.get("quality")),
        "fidelity": _fidelity_text(candidate.get("quality")),
        "sqnr": _sqnr_text(candidate.get("quality")),
        "verdict": _verdict(candidate, document),
    }
    cells = {key: plain(text) for key, text in cells.items()}
    return Row(candidate["id"], candidate["status"], is_baseline, cells, _numbers(candidate, is_baseline, original))


def _numbers(candidate: Mapping[str, Any], is_baseline: bool, original: Mapping[str, Any] | None) -> dict[str, float]:
    quality, artifact, speedup = candidate.get("quality") or {}, candidate.get("artifact"), candidate.get("speedup")
    found = {
        "p50": _value(candidate, "p50"),
        "p95": _value(candidate, "p95"),
        "speedup": speedup["value"] if speedup else 1.0 if is_baseline else None,
        "size": artifact["size_bytes"] if artifact else None,
        "smaller": original["size_bytes"] / artifact["size_bytes"] if artifact and original else None,
        "memory": candidate.get("peak_memory_bytes"),
        "quality": quality.get("value"),
        "drop": quality.get("drop"),
        "fidelity": quality.get("fidelity"),
        "sqnr": math.inf if quality.get("exact") else quality.get("sqnr_db"),
    }
    return {key: number for key, number in found.items() if number is not None}


def _verdict(candidate: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    status, name = candidate["status"], candidate["id"]
    told = str(status)
    if name == document["baseline"]:
        told = f"baseline, {told}"
    if name in document["ties"]:
        told += ", tie"
    if status == "skipped":
        return f"{told}: {candidate['reasons'][0].partition('. ')[0]}"
    if status == "outside":
        broken = [judged["quantity"] for judged in candidate["budget"] if not judged["passed"]]
        return f"{told}: {', '.join(broken)}"
    undecided = [judged["quantity"] for judged in candidate["budget"] if judged.get("undecided")]
    return f"{told}, undecided: {', '.join(undecided)}" if undecided else told


def _value(candidate: Mapping[str, Any], name: str) -> float | None:
    latency = candidate.get("latency_ns")
    return latency[name]["value"] if latency and latency[name] else None
