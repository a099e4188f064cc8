"""edgeopt report: a run as one page to look at, print and send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, console, print_json


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, as `edgeopt convert` wrote it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file.", show_default="report.html in the run's folder")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write Markdown (report.md) instead.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: Json = False,
) -> int:
    """Draw a run's report again: one HTML file that needs nothing else, not even a network.

    The verdict, latency against quality, the distribution of every call, what each step bought, the budgets, and how
    all of it came about. It is drawn from choice.json, measurements.jsonl and run.json alone.

    \b
    Examples:
      edgeopt report runs/fashion-mnist-1 --open
      edgeopt report runs/fashion-mnist-1 -o report.html
    """
    from edgeopt import files, redraw
    from edgeopt.text import plain
    from edgeopt.units import format_size

    text = redraw.text(run) if markdown else redraw.page(run)
    path = output or run / ("report.md" if markdown else "report.html")
    files.write(path, text)
    if as_json:
        print_json({"schema": 1, "path": str(path), "size_bytes": len(text.encode())})
    elif path.is_file():
        console().print(f"{plain(path)}: {format_size(len(text.encode()))}", markup=False, soft_wrap=True)
    if show:
        typer.launch(path.absolute().as_uri())
    return 0
