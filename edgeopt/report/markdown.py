"""The result of a run as Markdown: report.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeopt.report.cells import COLUMNS, budget_lines, left_out_lines, rows_of, summary_of
from edgeopt.text import plain


def render(document: Mapping[str, Any]) -> str:
    """The verdict, the table of candidates, the budgets."""
    columns = [column for column in COLUMNS if column.key != "mark"]
    lines = [f"# {_safe(document['recipe'])} on {_safe(document['target'])}", ""]
    lines += [_safe(line) + "  " for line in summary_of(document)]
    lines += ["", "| " + " | ".join(column.title for column in columns) + " |"]
    lines.append("|" + "|".join("---" if column.words or column.key == "id" else "--:" for column in columns) + "|")
    for row in rows_of(document):
        cells = [_safe(row.cells[column.key]) for column in columns]
        lines.append("| " + " | ".join(f"**{c}**" if row.status == "chosen" and c else c for c in cells) + " |")
    if left_out := left_out_lines(document):
        lines += ["", *(f"- {_safe(line)}" for line in left_out)]
    if limits := budget_lines(document):
        lines += ["", "Budgets: " + "; ".join(limits)]
    return "\n".join(lines) + "\n"


def _safe(text: object) -> str:
    """Text that cannot break out of its cell, nor make markup, links or images."""
    return "".join(f"\\{c}" if c in "\\|`*<>[]&" else c for c in plain(text))
