"""The result of a run as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeopt.report.cells import COLUMNS, Row, rows_of, summary_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_STYLES = {"chosen": "bold green", "inside": "", "outside": "yellow", "failed": "red", "skipped": "dim"}


def print_result(document: Mapping[str, Any], console: Console) -> None:
    """The table of candidates, then the verdict in words and where everything is."""
    rows = rows_of(document)
    console.print(_table(document, rows, narrow=console.width < 100))
    for line in summary_of(document):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(document: Mapping[str, Any], rows: Sequence[Row], *, narrow: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = [column for column in COLUMNS if not (narrow and column.optional) and any(r.cells[column.key] for r in rows)]
    table = Table(
        title=Text(f"{document['recipe']} on {document['target']}", style="bold"), box=box.SIMPLE_HEAD, title_justify="left"
    )
    for column in columns:
        table.add_column(column.title, justify="left" if column.words else "right", no_wrap=not column.words)
    for row in rows:
        style = _STYLES[row.status]
        table.add_row(*(_cell(row, column.key) for column in columns), style=style, end_section=row.baseline)
    return table


def _cell(row: Row, key: str) -> Text:
    from rich.text import Text

    return Text(row.cells[key])
