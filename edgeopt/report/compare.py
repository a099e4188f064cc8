"""A comparison of two models for the terminal: outputs, layers in the order of the graph, costs, tolerances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeopt import units
from edgeopt.text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LAYERS_SHOWN = 24
BAR_WIDTH = 16
NONE = "-"


def print_comparison(found: Mapping[str, Any], console: Console) -> None:
    """Everything that was found, the worst layer marked."""
    from rich.text import Text

    def say(line: str, style: str = "") -> None:
        console.print(Text(plain(line), style=style), soft_wrap=True)

    say(f"a: {_about(found['a'])}")
    say(f"b: {_about(found['b'])}")
    say(_samples(found["samples"]), "yellow" if found["samples"]["source"] == "random" else "")
    console.print()
    console.print(_outputs(found["outputs"]))
    if found["accuracy"]:
        say(_accuracy(found["accuracy"]))
    console.print()
    layers = found["layers"]
    if layers["layers"]:
        console.print(_layers(layers))
        for line in _about_layers(layers):
            say(line, "dim")
    else:
        say(f"Layers are not compared: {layers['reason'] or 'none of one has its counterpart in the other'}.", "dim")
    console.print()
    console.print(_costs(found))
    if found["operators"]:
        told = ", ".join(f"{name} {a} to {b}" for name, (a, b) in found["operators"].items())
        say(f"operators: {told}")
    for line in _about_latency(found["latency"]):
        say(line, "dim")
    for note in found["notes"]:
        say(f"Note: {note}.", "dim")
    for one in found["tolerances"]:
        say(f"{'✓' if one['passed'] else '✗'} {one['told']}", "" if one["passed"] else "red")


def _about(side: Mapping[str, Any]) -> str:
    return f"{side['name']} ({side['backend']}{', ' + side['precision'] if side['precision'] else ''})"


def _samples(samples: Mapping[str, Any]) -> str:
    count, where = samples["count"], samples["location"]
    kinds = {
        "data": f"on {count} samples of {where}",
        "golden": f"on the {count} golden samples of {where}",
        "random": f"on {count} samples of RANDOM NUMBERS",
    }
    return kinds[samples["source"]]


def _table(titles: Sequence[str], left: Sequence[int] = (0,)) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        if index in left:
            table.add_column(title, overflow="fold")
        else:
            table.add_column(title, justify="right", no_wrap=True)
    return table


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> Table:
    from rich.text import Text

    scored = any(one["fidelity"] for one in outputs)
    titles = ["output", "max abs", "mean abs", "relative", "SQNR", "cosine"]
    table = _table([*titles, *(["same top-1"] if scored else [])])
    for one in outputs:
        share = one["fidelity"]
        table.add_row(
            Text(plain(one["name"])),
            f"{one['max_abs']:.3g}",
            f"{one['mean_abs']:.3g}",
            NONE if one["relative"] is None else units.format_fraction(one["relative"]),
            "exact" if one["exact"] else _decibels(one["sqnr_db"]),
            NONE if one["cosine"] is None else f"{one['cosine']:.6f}",
            *([_share(share) if share else NONE] if scored else []),
        )
    return table


def _share(share: Mapping[str, float]) -> str:
    low, high = (f"{share[bound] * 100:.2f}" for bound in ("low", "high"))
    return f"{units.format_fraction(share['value'])} [{low}, {high}]"


def _accuracy(found: Mapping[str, Any]) -> str:
    both = f"{units.format_fraction(found['a'])} to {units.format_fraction(found['b'])}"
    low, high = found["drop_low"] * 100, found["drop_high"] * 100
    return f"{found['metric']}: {both}, {found['drop'] * 100:.2f} points lost [{low:.2f}, {high:.2f}]"


def _layers(found: Mapping[str, Any]) -> Table:
    from rich.text import Text

    layers = found["layers"]
    order = sorted(range(len(layers)), key=lambda place: -layers[place]["added"])
    shown = sorted(order[:LAYERS_SHOWN])
    most = layers[order[0]]["share"]
    table = _table(["layer", "operator", "SQNR", "noise added", ""], left=(0, 1, 4))
    for place in shown:
        one = layers[place]
        is_worst = one["tensor"] == found["worst"]
        bar = "█" * round(BAR_WIDTH * one["share"] / most) if most else ""
        table.add_row(
            Text(plain(one["title"])),
            plain(one["operator"]),
            _decibels(one["sqnr_db"]),
            f"{one['share'] * 100:.1f} %" if one["share"] else NONE,
            f"{bar} ◄ worst" if is_worst else bar,
            style="bold red" if is_worst else "",
        )
    return table


def _about_layers(found: Mapping[str, Any]) -> Iterator[str]:
    layers = found["layers"]
    if len(layers) > LAYERS_SHOWN:
        yield f"{len(layers) - LAYERS_SHOWN} layers more, which add less (--json has them all)."
    way = "names" if found["matched_by"] == "name" else "what they hold: names differ"
    count = f"{len(layers)} of {found['of']} layers of a"
    yield f"{count}, in the order of the graph, matched by {way}; {found['samples']} samples."
    if found["unlike"]:
        yield f"{len(found['unlike'])} of the same name have another shape in b, first {found['unlike'][0]}."
    yield (
        "SQNR: signal to noise of what a layer gives. noise added: its part of all noise that layers give beyond what "
        "those before them gave."
    )


def _costs(found: Mapping[str, Any]) -> Table:
    timed = found["latency"]
    table = _table(["", "a", "b", ""], left=(0, 3))
    sizes = [found[side]["size_bytes"] for side in ("a", "b")]
    table.add_row("size", *map(units.format_size, sizes), f"{sizes[0] / sizes[1]:.2f}x smaller" if sizes[1] else "")
    counts = [found[side]["parameters"] for side in ("a", "b")]
    if None not in counts:
        table.add_row("parameters", *map(units.format_count, counts), "")
    if timed:
        for name in ("p50", "p95"):
            speedup = timed["speedup"] if name == "p50" else None
            told = f"{_ratio(speedup)} {speedup['verdict']}" if speedup else ""
            table.add_row(name, *(_percentile(timed[side], name) for side in ("a", "b")), told)
        memory = [timed[side]["peak_memory_bytes"] for side in ("a", "b")]
        table.add_row("peak memory", *(NONE if size is None else units.format_size(size) for size in memory), "")
    return table


def _about_latency(timed: Mapping[str, Any] | None) -> Iterator[str]:
    if timed is None:
        return
    if timed["twin"]:
        threads = f"{timed['threads']} thread{'' if timed['threads'] == 1 else 's'}"
        yield f"A/A twin of a, in turn with both: {timed['twin']['value']:.3f}x; {threads}."
    if timed["speedup"] and timed["speedup"]["reason"]:
        yield f"Inconclusive: {timed['speedup']['reason']}"
    for side in ("a", "b"):
        if timed[side]["error"]:
            yield f"{side} could not be timed: {timed[side]['error']['message']}"
        for warning in timed[side]["warnings"]:
            yield f"Warning: {side}: {warning}"


def _percentile(side: Mapping[str, Any], name: str) -> str:
    found = side["latency_ns"] and side["latency_ns"][name]
    return units.format_time(found["value"]) if found else NONE


def _ratio(speedup: Mapping[str, Any]) -> str:
    if speedup["low"] is None:
        return f"{speedup['value']:.2f}x"
    return f"{speedup['value']:.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}]"


def _decibels(ratio: float | None) -> str:
    return "no noise" if ratio is None else f"{ratio:.1f} dB"
