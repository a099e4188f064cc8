"""The ranking of layers as a table for the terminal, and as a plot that stands alone: .svg or .html."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import InputError
from edgeopt.text import plain
from edgeopt.units import format_count

if TYPE_CHECKING:
    from rich.console import Console

SUFFIXES = (".svg", ".html")
BAR_WIDTH = 16
WIDE = 110  # columns from which there is room for bars
_ROW, _LABELS, _BARS, _TOP = 18, 260, 460, 56  # pixels of the plot
_CURVE_HEIGHT = 220


def noise_shares(layers: Sequence[Mapping[str, Any]]) -> list[float]:
    """Each layer's part of the noise of all taken alone: powers, 10 ** (-snr / 10), over their sum."""
    powers = [0.0 if layer["snr_db"] is None else 10 ** (-layer["snr_db"] / 10) for layer in layers]
    whole = sum(powers)
    return [power / whole if whole else 0.0 for power in powers]


def print_ranking(found: Mapping[str, Any], console: Console) -> None:
    """The layers, the costliest first, and what is left when the worst of them are in float."""
    from rich.table import Table
    from rich.text import Text

    layers, shares = found["layers"], noise_shares(found["layers"])
    parameters = sum(layer["parameters"] for layer in layers)
    macs = [layer["macs"] for layer in layers]
    all_macs = None if any(count is None for count in macs) else sum(macs)
    left = {point["float_layers"]: point["snr_db"] for point in found["curve"]}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer", overflow="fold", min_width=10)
    table.add_column("operator")
    for title in ("alone", "params", "MACs", "noise", "sum"):
        table.add_column(title, justify="right", no_wrap=True)
    bars = console.width >= WIDE
    if bars:
        table.add_column("", no_wrap=True)
    table.add_column("in float so far", justify="right", min_width=9)
    so_far, most = 0.0, max(shares, default=0.0)
    for index, (layer, share) in enumerate(zip(layers, shares), 1):
        so_far += share
        table.add_row(
            Text(plain(layer["title"])),
            layer["operator"],
            _decibels(layer["snr_db"]),
            _percent(layer["parameters"], parameters),
            _percent(layer["macs"], all_macs),
            _percent(share, 1.0),
            _percent(so_far, 1.0),
            *(["█" * round(BAR_WIDTH * share / most) if most else ""] if bars else []),
            _decibels(left[index]) if index in left else "",
        )
    name = plain(str(found["name"]))
    outputs = "" if len(found["outputs"]) == 1 else f", the worst of {len(found['outputs'])} outputs"
    console.print(
        Text(f"{name}: {_decibels(found['snr_db'])} with all {len(layers)} layers in int8, {found['samples']} samples")
        + Text(f"; {format_count(parameters)} parameters{outputs}", style="dim"),
        soft_wrap=True,
    )
    console.print(table)
    console.print(
        Text(
            "alone: signal to noise at the output with that layer alone in int8. noise: its part of the noise of all, "
            "each taken alone. in float so far: measured with this layer and those above in float.",
            style="dim",
        ),
        soft_wrap=True,
    )


def check_plot(path: Path) -> None:
    """Raise InputError where the plot could not be written later."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: a plot is a .svg or a .html file", where="--output")
    if path.is_dir():
        raise InputError(f"{path} is a folder", where="--output")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} cannot be written: its folder is not there", where="--output")


def write_plot(found: Mapping[str, Any], path: Path) -> None:
    """The plot, whole or not at all. Raises InputError where it cannot be written."""
    drawing = svg(found)
    text = drawing if path.suffix == ".svg" else html(found, drawing)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}", where="--output") from error


def html(found: Mapping[str, Any], drawing: str) -> str:
    title = escape(plain(f"What each layer of {found['name']} costs in int8"))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>body {{ font: 16px system-ui, sans-serif; margin: 2rem auto; max-width: 60rem }}</style></head>"
        f"<body><h1>{title}</h1>{drawing}</body></html>\n"
    )


def svg(found: Mapping[str, Any]) -> str:
    """A bar for each layer, its ratio alone in dB, and below the ratio of the whole by how many are in float."""
    layers = found["layers"]
    ratios = [layer["snr_db"] for layer in layers if layer["snr_db"] is not None]
    ceiling = 10 * math.ceil(max([*ratios, 10.0]) / 10)
    width, middle = _LABELS + _BARS + 60, _TOP + _ROW * len(layers)
    height = middle + _CURVE_HEIGHT + 70
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(10, 20, f"{found['name']}: {_decibels(found['snr_db'])} with all layers in int8", size=15),
        _text(10, 40, "Signal to noise at the output with one layer alone in int8, dB; short bars cost most"),
    ]
    for mark in range(0, ceiling + 1, 10):
        x = _LABELS + _BARS * mark / ceiling
        parts.append(f'<path d="M{x:.1f} {_TOP - 4}V{middle}" stroke="#ddd"/>')
        parts.append(_text(x, middle + 14, str(mark), anchor="middle"))
    for row, layer in enumerate(layers):
        y, ratio = _TOP + row * _ROW, layer["snr_db"]
        length = _BARS * max(0.0, ceiling if ratio is None else ratio) / ceiling
        parts.append(_text(_LABELS - 8, y + 12, f"{layer['title']} ({layer['operator']})", anchor="end"))
        parts.append(f'<rect x="{_LABELS}" y="{y + 2}" width="{length:.1f}" height="{_ROW - 5}" fill="#3b6ea5"/>')
        parts.append(_text(_LABELS + length + 5, y + 12, _decibels(ratio)))
    parts += _curve(found, middle + 50)
    return "".join([*parts, "</svg>\n"])


def _curve(found: Mapping[str, Any], top: int) -> list[str]:
    points = [(p["float_layers"], p["snr_db"]) for p in found["curve"] if p["snr_db"] is not None]
    parts = [_text(10, top, "The whole model's ratio, dB, by how many of the worst layers are in float")]
    if len(points) < 2:
        return parts
    most = points[-1][0]
    ratios = [ratio for _, ratio in points]
    low, high = 10 * math.floor(min(ratios) / 10), 10 * math.ceil(max(ratios) / 10)
    base, span = top + _CURVE_HEIGHT - 20, max(10, high - low)

    def place(count: int, ratio: float) -> tuple[float, float]:
        return _LABELS + _BARS * count / most, base - (_CURVE_HEIGHT - 50) * (ratio - low) / span

    for mark in range(low, low + span + 1, 10):
        y = place(0, mark)[1]
        parts.append(f'<path d="M{_LABELS} {y:.1f}h{_BARS}" stroke="#ddd"/>')
        parts.append(_text(_LABELS - 8, y + 4, str(mark), anchor="end"))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    parts.append(f'<polyline points="{path}" fill="none" stroke="#b35900" stroke-width="2"/>')
    for count, ratio in points:
        x, y = place(count, ratio)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#b35900"/>')
        parts.append(_text(x, base + 16, str(count), anchor="middle"))
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(plain(text))}</text>'


def _decibels(ratio: float | None) -> str:
    return "no noise" if ratio is None else f"{ratio:.1f} dB"


def _percent(part: float | None, whole: float | None) -> str:
    return f"{100 * part / whole:.1f} %" if whole and part is not None else "-"
