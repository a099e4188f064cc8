"""The result of a run as one self-contained page: report.html. Nothing is fetched, nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from edgeopt.report.cells import COLUMNS, budget_lines, left_out_lines, pruned_lines, rows_of, summary_of
from edgeopt.text import plain

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #b35900; }
@media (prefers-color-scheme: dark) { :root { --good: #56d364; --bad: #e3b341; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 86rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th.words, td.words { text-align: left; }
td.verdict { white-space: normal; min-width: 14rem; }
tr.baseline td { border-bottom-width: 3px; }
tr.chosen { color: var(--good); font-weight: 600; }
tr.outside, tr.failed { color: var(--bad); }
tr.skipped { opacity: .6; }
"""


def render(document: Mapping[str, Any]) -> str:
    """The verdict in words, the table of candidates, the budgets."""
    title = escape(plain(f"{document['recipe']} on {document['target']}"))
    head = "".join(f'<th class="{_kind(c.key)}">{escape(c.title)}</th>' for c in COLUMNS)
    body = []
    for row in rows_of(document):
        cells = "".join(f'<td class="{_kind(c.key)} {c.key}">{escape(row.cells[c.key])}</td>' for c in COLUMNS)
        body.append(f'<tr class="{row.status}{" baseline" if row.baseline else ""}">{cells}</tr>')
    told = "".join(f"<p>{escape(line)}</p>" for line in summary_of(document))
    left_out = "".join(f"<li>{escape(line)}</li>" for line in left_out_lines(document))
    pruned = "".join(f"<li>{escape(line)}</li>" for line in pruned_lines(document))
    limits = "".join(f"<li>{escape(line)}</li>" for line in budget_lines(document))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>{told}"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f"{f'<ul>{left_out}</ul>' if left_out else ''}"
        f"{f'<h2>Pruned</h2><ul>{pruned}</ul>' if pruned else ''}"
        f"{f'<h2>Budgets</h2><ul>{limits}</ul>' if limits else ''}</body></html>\n"
    )


def _kind(key: str) -> str:
    return "words" if key in ("id", "verdict", "mark") else ""
