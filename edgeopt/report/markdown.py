"""The result of a run as Markdown: report.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeopt.report.cells import COLUMNS, budget_lines, left_out_lines, pruned_lines, rows_of, summary_of
from edgeopt.text import in_markdown


def render(document: Mapping[str, Any]) -> str:
    """The verdict, the table of candidates, the budgets."""
    columns = [column for column in COLUMNS if column.key != "mark"]
    lines = [f"# {in_markdown(document['recipe'])} on {in_markdown(document['target'])}", ""]
    lines += [in_markdown(line) + "  " for line in summary_of(document)]
    lines += ["", "| " + " | ".join(column.title for column in columns) + " |"]
    lines.append("|" + "|".join("---" if column.words or column.key == "id" else "--:" for column in columns) + "|")
    for row in rows_of(document):
        cells = [in_markdown(row.cells[column.key]) for column in columns]
        lines.append("| " + " | ".join(f"**{c}**" if row.status == "chosen" and c else c for c in cells) + " |")
    if left_out := left_out_lines(document):
        lines += ["", *(f"- {in_markdown(line)}" for line in left_out)]
    if pruned := pruned_lines(document):
        lines += ["", "## Pruned", "", *(f"- {in_markdown(line)}" for line in pruned)]
    if limits := budget_lines(document):
        lines += ["", "Budgets: " + "; ".join(limits)]
    return "\n".join(lines) + "\n"
