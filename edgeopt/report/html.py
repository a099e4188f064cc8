"""The result of a run as one self-contained page: report.html, drawn from the run's own JSON and nothing else.

Nothing is fetched: style, script, the charting library (Observable Plot, in `page/`) and the numbers stand in the file,
and its Content-Security-Policy forbids everything else. Only the two scripts whose digests the policy names may run.
Without them the text and the tables stay as they are; the charts alone are missing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.measurement import Measurement
from edgeopt.report.ablation import Gain, gains, way
from edgeopt.report.cells import (
    COLUMNS,
    Row,
    budget_lines,
    left_out_lines,
    notes,
    pruned_lines,
    quality_change_text,
    rejected,
    rows_of,
    search_lines,
    slower_lines,
    smaller_text,
)
from edgeopt.report.charts import METRICS, chart_data, metric_of
from edgeopt.report.markup import UNFOLDED, folded, folded_items, items, name_cell, section, table, text
from edgeopt.report.provenance import again, placement, provenance

PAGE = Path(__file__).parent / "page"
SCRIPTS = (("plot.min.js",), ("shared.js", "pareto.js", "rows.js", "table.js", "draw.js"))


def render(document: Mapping[str, Any], measured: Mapping[str, Measurement], run: Mapping[str, Any]) -> str:
    """The page. `document` is choice.json, `measured` the measurements by candidate, `run` is run.json."""
    scripts = ["".join((PAGE / name).read_text(encoding="utf-8") for name in names) for names in SCRIPTS]
    title = f"{document['recipe']} on {document['target']}"
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src {' '.join(map(_digest, scripts))}"
    )
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="generator" content="edgeopt {text(run.get("edgeopt", ""))}">',
            f"<title>{text(title)}</title>",
            f"<style>{(PAGE / 'style.css').read_text(encoding='utf-8')}</style></head><body><main>",
            f"<header><p class=kicker>edgeopt report</p><h1>{text(title)}</h1>{_verdict(document)}</header>",
            *_sections(document, run),
            f"</main>{_data(chart_data(document, measured))}",
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>\n",
        ]
    )


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _data(value: Mapping[str, Any]) -> str:
    """JSON that no name in it can end: every character that means something in HTML is escaped as JSON allows."""
    told = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        told = told.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="data">{told}</script>'


def _sections(document: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[str]:
    measured = any(one.get("latency_ns") for one in document["candidates"])
    if measured:
        yield section("Latency against quality", _CHARTS["pareto"])
    yield section("Budgets", _budgets(document))
    yield section("Candidates", _candidates(document))
    if measured:
        yield section("Latency of every call", _CHARTS["spread"])
    yield section("What each step bought", _gains(document))
    yield section("Where operators run", placement(document))
    yield section("Pruned", items(pruned_lines(document)))
    yield section(
        "Outside and failed", folded_items([f"{told} ({log})" if log else told for told, log in rejected(document)])
    )
    yield section("Left out", folded_items(left_out_lines(document)))
    yield section("Notes", items([*search_lines(document), *slower_lines(document), *notes(document)]))
    yield section("How this came about", provenance(document, run))
    yield section("Do it again", again(document, run))


_CHARTS = {
    "pareto": (
        '<div class="controls needs-script"><label>Latency <select id="percentile"></select></label></div>'
        '<figure id="pareto" class="needs-script"></figure>'
        "<noscript><p>The charts need JavaScript; the tables below hold the same numbers.</p></noscript>"
        '<p class="note">Up and left is better. The area of a mark is the size of the artifact, its number is that of '
        "the table below. The line joins the candidates that no other one beats in both. Hollow marks are outside the "
        "budgets; what is shaded is outside of them too. Thin lines are 95 % intervals.</p>"
    ),
    "spread": (
        '<figure id="spread" class="needs-script"></figure>'
        '<p class="controls needs-script"><button type="button" id="more-spread" hidden></button></p>'
        '<p class="note">A histogram of the calls, logarithmic in time. Below it: from the 5th to the 95th percentile, '
        "thick from the 25th to the 75th; the dot is the median, the tick the 95th percentile, and the boxes around "
        "them are their 95 % intervals. Calls that the system interrupted are left out where enough others are there."
        "</p>"
    ),
    "gains": '<figure id="gains" class="needs-script"></figure>'
    '<p class="controls needs-script"><button type="button" id="more-gains" hidden></button></p>',
}


def _verdict(document: Mapping[str, Any]) -> str:
    by_id = {row.id: row for row in rows_of(document)}
    winner, nearest = by_id.get(document["winner"]), by_id.get(document["nearest"])
    why = f"{document['why'][:1].upper()}{document['why'][1:]}."
    if winner is None:
        near = f" {nearest.id} came nearest." if nearest else ""
        return f'<p class="verdict none">{text(why + near)}</p>'
    against = "the original itself" if winner.baseline else _against(winner, document)
    told = f'<p class="verdict">Take <strong>{text(winner.id)}</strong>: {text(against)}.</p><p>{text(why)}</p>'
    original = by_id[document["baseline"]]
    tiles = "".join(
        f"<div><dt>{title}</dt><dd>{text(winner.cells[key])}</dd>{_before(original, winner, key)}</div>"
        for key, title in {**_TILES, "quality": METRICS.get(metric_of(document), "quality")}.items()
        if winner.cells[key]
    )
    return f'{told}<dl class="tiles">{tiles}</dl>'


_TILES = {"p50": "latency p50", "p95": "latency p95", "size": "size", "memory": "peak memory"}


def _before(baseline: Row, winner: Row, key: str) -> str:
    """What the original had instead."""
    told = baseline.cells[key] if baseline is not winner else ""
    return f'<dd class="was">was {text(told)}</dd>' if told else ""


def _against(winner: Row, document: Mapping[str, Any]) -> str:
    """The winner beside the original, in one sentence."""
    chosen = next(one for one in document["candidates"] if one["id"] == winner.id)
    speedup, quality, told = chosen.get("speedup"), chosen.get("quality"), []
    if speedup:
        unsure = ", within what noise may be" if speedup["verdict"] in ("tie", "inconclusive") else ""
        told.append(f"{speedup['value']:.2f}x as fast as {document['baseline']}{unsure}")
    if winner.numbers.get("smaller", 0) > 1:
        told.append(f"{winner.cells['smaller']} smaller")
    if quality and quality["drop"] is not None:
        unsure = "" if quality["drop_low"] > 0 else " (no loss that the samples show)"
        told.append(f"a drop in quality of {winner.cells['drop']} points{unsure}")
    return ", ".join(told) or f"nothing could be told against {document['baseline']}"


def _budgets(document: Mapping[str, Any]) -> str:
    """Each limit, and how near the winner came, or the nearest where there is none; and how many are inside it."""
    best = document["winner"] or document["nearest"]
    judged = {
        one["id"]: {limit["quantity"]: limit for limit in one.get("budget", ())} for one in document["candidates"]
    }
    measured = [limits for limits in judged.values() if limits]
    rows = []
    for quantity, line in zip(document["budget"]["limits"], budget_lines(document), strict=True):
        inside = sum(limits[quantity]["passed"] for limits in measured)
        mine = judged.get(best, {}).get(quantity)
        kept = "" if mine is None else "kept" if mine["passed"] else "broken"
        rows.append(
            f'<tr class="{kept}"><th scope="row">{text(mine["told"] if mine else line)}</th>'
            f'<td class="bar">{_bar(mine) if mine else ""}</td><td>{kept}</td>'
            f"<td>{f'{inside} of {len(measured)} inside' if measured else ''}</td></tr>"
        )
    if not rows:
        return "<p>The recipe sets no limits.</p>"
    of = f"<p>Of {text(best)}, the {'winner' if document['winner'] else 'nearest'}:</p>" if best else ""
    return of + table((), rows, kind="budgets")


def _bar(judged: Mapping[str, Any]) -> str:
    """How much of a limit is used up, drawn up to twice the limit."""
    value, limit = judged["value"], judged["limit"]
    if value is None or not limit or value < 0:
        return ""
    share = value / limit
    return (
        f'<span class="meter" role="img" aria-label="{share * 100:.0f} % of the limit">'
        f'<span style="width:{min(share, 2) * 50:.1f}%"></span></span> <small>{share * 100:.0f} %</small>'
    )


def _candidates(document: Mapping[str, Any]) -> str:
    rows = rows_of(document, baseline_first=False)
    columns = [c for c in COLUMNS if c.key != "mark" and any(row.cells[c.key] for row in rows)]
    head = '<th scope="col" data-key="n"><button type="button">#</button></th>' + "".join(
        f'<th scope="col" class="{"words" if c.words else ""}" data-key="{c.key}">'
        f'<button type="button">{text(c.title)}</button></th>'
        for c in columns
    )
    body = []
    for number, row in enumerate(rows, 1):
        cells = "".join(_cell(row, c.key, words=c.words) for c in columns)
        kind = f"{row.status}{' baseline' if row.baseline else ''}"
        body.append(f'<tr class="{kind}" data-n="{number}"><td data-value="{number}">{number}</td>{cells}</tr>')
    states = sorted({row.status for row in rows})
    options = "".join(f'<option value="{state}">{state}</option>' for state in states)
    return (
        '<div class="controls needs-script" role="search"><label>Filter <input type="search" id="filter" '
        'placeholder="int8 openvino" autocomplete="off"></label>'
        f'<label>Verdict <select id="status"><option value="">all</option>{options}</select></label>'
        f'<output id="count" aria-live="polite"></output></div>'
        f'<div class="scroll{" tall" if len(rows) > UNFOLDED else ""}">'
        f'<table id="candidates" class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        '<p class="note">± and ranges are 95 % intervals. A speed-up is over the baseline, in the same rounds; with a '
        "question mark it could not be told from noise.</p>"
    )


def _cell(row: Row, key: str, *, words: bool) -> str:
    number = row.numbers.get(key)
    value = f' data-value="{"Infinity" if number == math.inf else number}"' if number is not None else ""
    if key == "id":
        return name_cell(row.cells[key], "th")
    return f'<td class="{"words " if words else ""}{key}"{value}>{text(row.cells[key])}</td>'


def _gains(document: Mapping[str, Any]) -> str:
    found = gains(document)
    if not found:
        return ""
    best = document["winner"] or document["nearest"]
    steps = way(document, best) if best else []
    told = _gains_table(f"The way to {best}, one step after the other", steps) if len(steps) > 1 else ""
    every = _gains_table("Every candidate beside the one that lacks a step", found)
    return (
        f"{told}{_CHARTS['gains']}"
        '<p class="note">How many times as fast each candidate is as the one that differs by the named step alone, '
        "with its 95 % interval; right of 1 is faster. Steps that were never built apart are told together.</p>"
        f"{folded(f'All {len(found)} comparisons as a table', every)}"
    )


def _gains_table(caption: str, found: Sequence[Gain]) -> str:
    head = (("step", True), ("over", True), ("latency", False), ("size", False), ("quality", False))
    return table(head, (_gain_row(gain) for gain in found), caption=caption)


def _gain_row(gain: Gain) -> str:
    numbers = (_latency_text(gain), smaller_text(gain.smaller), quality_change_text(gain.quality, gain.metric))
    cells = "".join(f"<td>{text(told)}</td>" for told in numbers)
    return f"<tr>{name_cell(gain.step, 'th')}{name_cell(gain.before)}{cells}</tr>"


def _latency_text(gain: Gain) -> str:
    if gain.latency is None:
        return ""
    ratio = gain.latency.speedup
    interval = f" [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.low and ratio.high else ""
    return f"{ratio.value:.2f}x{interval} {gain.latency.verdict}"
