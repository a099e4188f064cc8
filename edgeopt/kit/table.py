"""What `bench` and the kit's `doctor` found, as plain text: the same on a workstation and on a device."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from edgeopt.statistics import LEAST_MARGIN
from edgeopt.text import plain
from edgeopt.units import format_fraction, format_size, format_time

Cells = Sequence[str]
Column = Tuple[str, Callable[[Mapping[str, Any]], str]]
NONE = "-"
SHOWN = 4  # names, of a longer list
OF_SEVERAL = ("speed-up", "verdict")


def bench_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The document of `edgeopt.kit.measure.bench`."""
    machine, rows = document["machine"], document["measurements"]
    yield plain(_machine(machine, document["threads"]))
    data = document["data"]
    if data:
        labels = "" if data["labels"] else ", without labels"
        yield plain(f"data: {data['samples']} samples of {data['location']}{labels}")
    for row in rows:
        if row["proof"]:
            proof = row["proof"]
            yield plain(
                f"proven: {row['id']}: {proof['samples']} golden samples, output {proof['worst']} off by "
                f"{proof['difference']:.1g} of its range (tolerance {proof['tolerance']:.1g})"
            )
        elif row["kind"] == "model":
            yield plain(f"not proven: {row['id']}: a bare model has no golden samples")
    yield ""
    for columns in (_TIMES, _COSTS, _STARTS):
        shown = [column for column in columns if len(rows) > 1 or column[0] not in OF_SEVERAL]
        cells = [_row(row, shown, is_baseline=row["id"] == document["baseline"]) for row in rows]
        if any(cell not in ("", NONE) for row in cells for cell in row[1:]):
            yield from _aligned(["", *(title for title, _ in shown)], cells)
            yield ""
    for row in rows:
        yield from _batches(row)
    for line in _notes(document):
        yield plain(line)


def _notes(document: Mapping[str, Any]) -> Iterator[str]:
    rows = document["measurements"]
    yield "Single-stream: one sample after the other, clean calls. Offline: samples per second, call after call."
    yield from _overhead(rows)
    for session in document["sessions"]:
        yield from _conditions(session["disturbance"])
        twin = session["twin"]
        if twin:
            margin = max(LEAST_MARGIN, abs(twin["value"] - 1))
            same = f"A/A twin of the first, in turn with it: {twin['value']:.3f}x"
            yield f"{same}." if len(rows) == 1 else f"{same}; no difference under {margin:.1%} is claimed."
    for row in rows:
        latency = row["latency_ns"]
        if latency and not latency["p99"]:
            yield f"{row['id']}: no p99: {latency['reasons']['p99']}"
    for row in rows:
        if row["speedup"] and row["speedup"]["reason"]:
            yield f"{row['id']}: {row['speedup']['verdict']}: {row['speedup']['reason']}"
        yield from _alone(row)
        recorded = (row["quality"] or {}).get("recorded")
        known = recorded is not None and None not in (recorded["value"], row["quality"]["value"])
        if recorded is not None and known and recorded["metric"] == row["quality"]["metric"]:
            there = f"{format_fraction(recorded['value'])} of {recorded['samples']} samples where it was made"
            yield f"{row['id']}: {recorded['metric']} {format_fraction(row['quality']['value'])} here, {there}"
        if row["quality"] and row["quality"]["error"]:
            yield f"{row['id']}: no accuracy: {row['quality']['error']}"
        if row["error"]:
            yield f"{row['id']} failed: {row['error']['message']}" + (
                f" {row['error']['remedy']}" if row["error"]["remedy"] else ""
            )
    told: Dict[str, str] = {}
    for row in rows:
        for warning in row["warnings"]:
            told.setdefault(warning, row["id"])
    for warning, name in told.items():
        yield f"Warning: {name}: {warning}"


def _alone(row: Mapping[str, Any]) -> Iterator[str]:
    """What is to be said of a row's starts, batches and sustained load. A row that failed has none."""
    starts, curve, sustained = (row.get(key) for key in ("starts", "batch_curve", "sustained"))
    if starts and starts["reason"]:
        yield f"{row['id']}: no start with the page cache dropped: {starts['reason']}"
    if curve and curve["ended"]:
        yield f"{row['id']}: batch curve: {curve['ended']}"
    if sustained:
        yield _sustained(row["id"], sustained)


def _sustained(name: str, found: Mapping[str, Any]) -> str:
    windows, ratio = found["windows"], found["last_to_first"]
    seconds = (windows[-1]["at_ns"] - windows[0]["at_ns"]) / 1e9
    verdict = {"slower": "it slows down", "faster": "it speeds up", "tie": "it holds its speed"}.get(ratio["verdict"])
    heat = f"; {_CONDITIONS['throttled'][1](found['throttled'])}" if found["throttled"] is not None else ""
    told = verdict or f"inconclusive: {ratio['reason']}"
    return f"{name}: back to back for {seconds:.0f} s: {told}, at the end {_ratio(ratio)} as fast as at first{heat}"


def _conditions(found: Mapping[str, Any]) -> Iterator[str]:
    """What went on while a session measured, and what of it cannot be read here."""
    measured = [told(found[key]) for key, (_, told) in _CONDITIONS.items() if found[key] is not None]
    missing = [name for key, (name, _) in _CONDITIONS.items() if found[key] is None]
    if measured:
        yield f"While measuring: {', '.join(measured)}."
    if missing:
        yield f"Unavailable here: {', '.join(missing)}."


def _batches(row: Mapping[str, Any]) -> Iterator[str]:
    """The batch curve of one row, a line for each size."""
    curve = row.get("batch_curve")
    if not curve or not curve["points"]:
        return
    cells = []
    for point in curve["points"]:
        p50 = point["latency_ns"]["p50"]
        times = [format_time(p50[key]) if p50 and p50[key] is not None else NONE for key in ("value", "low", "high")]
        mark = "offline" if point["batch"] == curve["offline_batch"] else ""
        rate = f"{point['samples_per_s']:.4g}/s" if point["samples_per_s"] else NONE
        cells.append([f"batch {point['batch']}", *times, rate, mark])
    yield from _aligned([row["id"], "p50", "from", "to", "samples", ""], cells)
    yield ""


def _overhead(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the clock and a call of each runtime cost by themselves."""
    timed = [row for row in rows if row["latency_ns"] and row["clock_overhead_ns"] is not None]
    calls = {row["backend"]: row["call_overhead_ns"] for row in timed if row["call_overhead_ns"] is not None}
    if timed:
        told = "".join(f", a call of {name} {format_time(ns)}" for name, ns in calls.items())
        yield f"In every latency: the clock {format_time(timed[0]['clock_overhead_ns'])}{told} by itself."


def comparison_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The document of `edgeopt.kit.comparison.compare`."""
    if document["unlike"]:
        yield plain(f"Warning: unlike machines, times say nothing of the software: {'; '.join(document['unlike'])}")
    titles = ["", "p50 before", "p50 after", "p90 before", "p90 after", "speed-up", "verdict", "runtime"]
    rows = []
    for row in document["comparisons"]:
        a, b = row["a"], row["b"]
        versions = [str(side["runtime_version"]) for side in (a, b)]
        runtime = versions[0] if versions[0] == versions[1] else " to ".join(versions)
        times = [_percentile(side["latency_ns"], name) for name in ("p50", "p90") for side in (a, b)]
        speedup = row["speedup"]
        rows.append([row["id"], *times, _ratio(speedup), speedup["verdict"], f"{b['backend']} {runtime}"])
    yield from _aligned(titles, rows)
    yield ""
    for row in document["comparisons"]:
        if row["speedup"]["reason"]:
            yield plain(f"{row['id']}: inconclusive: {row['speedup']['reason']}")
        if not row["same_artifact"]:
            yield plain(f"{row['id']}: the artifact is another one in each file")
        elif row["a"]["runtime_version"] == row["b"]["runtime_version"]:
            yield plain(f"{row['id']}: the same artifact and runtime: what differs is the state of the machine")
        for when, side in (("before", "a"), ("after", "b")):
            for warning in row[side]["warnings"]:
                yield plain(f"Warning: {row['id']} {when}: {warning}")
    for side in ("a", "b"):
        if document[f"only_{side}"]:
            names = document[f"only_{side}"]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield plain(f"in {document[side]} alone: {', '.join(names[:SHOWN])}{more}")
    yield "Two sessions: differences under 5 % are a tie, and larger ones may still be the machine's; one bench of both"
    yield "artifacts, in turn, tells them apart."


def doctor_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The document of `edgeopt.kit.usable.examine`."""
    yield plain(_machine(document["machine"], None))
    rows = []
    for name, backend in document["backends"].items():
        devices = "; ".join(f"{d} ({', '.join(a)})" if a else d for d, a in backend["devices"].items())
        why = backend["reason"] or f"no {backend['missing']}: {backend['install']}"
        told = devices if backend["usable"] else why
        rows.append([name, "usable" if backend["usable"] else "not usable", backend["version"] or "", plain(told)])
    yield from _aligned(["backend", "", "version", "devices, or what is missing"], rows, left=(0, 1, 2, 3))


def _machine(machine: Mapping[str, Any], threads: Optional[int]) -> str:
    memory = format_size(machine["memory_bytes"]) if machine["memory_bytes"] else "unknown memory"
    governor = f", governor {machine['governor']}" if machine["governor"] else ""
    used = f"; {threads} thread{'' if threads == 1 else 's'}" if threads is not None else ""
    cpu = machine["cpu"] or "unknown CPU"
    system = f"{machine['os']}, Python {machine['python']}"
    return f"{cpu}, {machine['arch']}, {machine['cores']} cores, {memory}{governor}, {system}{used}"


def _row(row: Mapping[str, Any], columns: Sequence[Column], *, is_baseline: bool) -> Cells:
    if row["latency_ns"] is None:
        return [row["id"], "failed", *(NONE for _ in columns[1:])]
    return [row["id"], *(cell({**row, "is_baseline": is_baseline}) for _, cell in columns)]


def _percentile(latency: Mapping[str, Any], name: str) -> str:
    return format_time(latency[name]["value"]) if latency[name] else NONE


def _latency(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: _percentile(row["latency_ns"], name)


def _ratio(speedup: Mapping[str, Any]) -> str:
    if speedup["low"] is None:
        return f"{speedup['value']:.2f}x"
    return f"{speedup['value']:.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}]"


def _runtime(row: Mapping[str, Any]) -> str:
    return f"{row['backend']} {row['runtime_version'] or ''}".strip() + (
        f" {row['precision']}" if row["precision"] else ""
    )


def _speedup(row: Mapping[str, Any]) -> str:
    return "1x" if row["is_baseline"] else _ratio(row["speedup"]) if row["speedup"] else NONE


def _verdict(row: Mapping[str, Any]) -> str:
    return "baseline" if row["is_baseline"] else row["speedup"]["verdict"] if row["speedup"] else NONE


def _accuracy(row: Mapping[str, Any]) -> str:
    found = row["quality"]
    if not found or found["value"] is None:
        return NONE
    if found["drop"] is None or row["is_baseline"]:
        return format_fraction(found["value"])
    half = (found["drop_high"] - found["drop_low"]) / 2 * 100
    return f"{format_fraction(found['value'])} (drop {found['drop'] * 100:.2f} ±{half:.2f})"


def _clean(row: Mapping[str, Any]) -> str:
    latency = row["latency_ns"]
    return f"{latency['clean_samples'] / latency['samples']:.0%} of {latency['samples']}"


def _bytes(found: Optional[Mapping[str, Any]], key: str) -> str:
    return format_size(found[key]) if found and found[key] is not None else NONE


def _start(starts: Optional[Mapping[str, Any]], kind: str, key: str) -> str:
    return format_time(starts[kind][key]) if starts and starts[kind] else NONE


_TIMES: Sequence[Column] = (
    ("p50", _latency("p50")),
    ("p90", _latency("p90")),
    ("p99", _latency("p99")),
    ("clean", _clean),
    ("offline", lambda row: f"{row['offline_samples_per_s']:.4g}/s" if row["offline_samples_per_s"] else NONE),
    ("speed-up", _speedup),
    ("verdict", _verdict),
    ("runtime", _runtime),
)
_COSTS: Sequence[Column] = (
    ("load", lambda row: format_time(row["load_ns"])),
    ("first call", lambda row: format_time(row["first_inference_ns"])),
    ("CPU time", lambda row: format_time(row["cpu_ns_per_inference"]) if row["cpu_ns_per_inference"] else NONE),
    (
        "energy",
        lambda row: f"{row['energy_uj_per_inference'] / 1e3:.3g} mJ" if row["energy_uj_per_inference"] else NONE,
    ),
    ("memory", lambda row: _bytes(row, "peak_memory_bytes")),
    ("to load", lambda row: _bytes(row["memory"], "load_peak_bytes")),
    ("to run", lambda row: _bytes(row["memory"], "inference_peak_bytes")),
    ("size", lambda row: format_size(row["size_bytes"]) if row["size_bytes"] is not None else NONE),
    ("accuracy", _accuracy),
)


_STARTS: Sequence[Column] = (
    ("cached load", lambda row: _start(row["starts"], "warm", "load_ns")),
    ("first call", lambda row: _start(row["starts"], "warm", "first_inference_ns")),
    ("load from disk", lambda row: _start(row["starts"], "dropped", "load_ns")),
    ("first call", lambda row: _start(row["starts"], "dropped", "first_inference_ns")),
)
# What is told of the conditions: its name where it cannot be read, and its value in words.
_CONDITIONS: Mapping[str, Tuple[str, Callable[[Any], str]]] = {
    "others": ("load by others", lambda share: f"other programs used {share:.0%} of the processors"),
    "pressure": ("waiting", lambda share: f"some program waited for one {share:.0%} of the time"),
    "steal": ("steal", lambda share: f"{share:.1%} stolen by the hypervisor"),
    "throttled": ("throttling", lambda count: f"throttled {count} times"),
    "swapped_pages": ("swapping", lambda count: f"{count} pages swapped"),
    "frequency_hz": ("frequency", lambda pair: f"{pair[0] / 1e9:.2f} GHz before, {pair[1] / 1e9:.2f} after"),
    "temperature_c": ("temperature", lambda pair: f"{pair[0]:.0f} °C before, {pair[1]:.0f} after"),
    "power_watts": ("power", lambda rails: ", ".join(f"{name} {watts:.2f} W" for name, watts in rails.items())),
}


def _aligned(titles: Cells, rows: Sequence[Cells], left: Sequence[int] = (0,)) -> List[str]:
    """Columns of one width, those of `left` and the last standing left. Columns without any value are left out."""
    table = [[plain(cell) for cell in row] for row in (titles, *rows)]
    shown = [i for i in range(len(titles)) if any(row[i] not in ("", NONE) for row in table[1:])]
    widths = {i: max(len(row[i]) for row in table) for i in shown}
    left = (*left, shown[-1] if shown else 0)
    return [
        "  ".join(row[i].ljust(widths[i]) if i in left else row[i].rjust(widths[i]) for i in shown).rstrip()
        for row in table
    ]
