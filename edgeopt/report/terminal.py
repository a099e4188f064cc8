"""The result of a run as a table in the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.report.cells import COLUMNS, Column, Row, left_out_lines, rows_of, summary_of
from edgeopt.text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

LEFT_OUT_FIRST = ("sqnr", "fidelity", "memory", "smaller", "p95", "drop", "quality", "size")
BEFORE_WRAPPING = LEFT_OUT_FIRST[:5]
GAP = 2  # between columns
NARROWEST = {"id": 40, "verdict": 18}  # these are wrapped where there is no room, the others never

_STYLES = {"chosen": "bold green", "inside": "", "outside": "dark_orange3", "failed": "red", "skipped": "dim"}


def print_result(document: Mapping[str, Any], console: Console) -> None:
    """The table of candidates, what was left out, then the verdict in words and where everything is."""
    from rich.text import Text

    rows = rows_of(document)
    console.print(_table(document, rows, width=console.width))
    as_is = not console.is_terminal  # piped, a line stays one line
    for line in left_out_lines(document):
        console.print(Text(line, style="dim"), soft_wrap=as_is)
    for line in summary_of(document):
        console.print(Text(line), soft_wrap=as_is)
    near = os.path.relpath(document["run"])
    run = plain(document["run"] if near.startswith(os.pardir) else near)
    console.print(Text(f"Run: {run}" + (f"   Bundle: {run}/best" if document["winner"] else "")), soft_wrap=True)


def _table(document: Mapping[str, Any], rows: Sequence[Row], *, width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = _that_fit([column for column in COLUMNS if any(row.cells[column.key] for row in rows)], rows, width)
    title = Text(plain(f"{document['recipe']} on {document['target']}"), style="bold")
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(
            column.title,
            justify="left" if column.words else "right",
            no_wrap=column.key not in NARROWEST,
            min_width=_narrowest(column, rows),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(_cell(row, c.key) for c in columns), style=_STYLES[row.status], end_section=row.baseline)
    return table


def _that_fit(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[Column]:
    """The columns without those that there is no room for, the least needed left out first, before names are wrapped
    and after."""
    for widths, order in ((_widest, BEFORE_WRAPPING), (_narrowest, LEFT_OUT_FIRST)):
        shown = list(columns)
        for key in ("", *order):
            shown = [column for column in shown if column.key != key]
            if sum(widths(column, rows) for column in shown) + GAP * len(shown) <= width:
                return shown
    return shown


def _widest(column: Column, rows: Sequence[Row]) -> int:
    if column.key == "verdict":
        return NARROWEST["verdict"]
    return max(len(column.title), *(len(row.cells[column.key]) for row in rows))


def _narrowest(column: Column, rows: Sequence[Row]) -> int:
    widest = _widest(column, rows)
    return min(widest, NARROWEST.get(column.key, widest))


def _cell(row: Row, key: str) -> Text:
    from rich.text import Text

    return Text(row.cells[key])
