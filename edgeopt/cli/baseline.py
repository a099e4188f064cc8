"""edgeopt baseline: the small file that later runs are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, console, print_json


def baseline(
    run: Annotated[Path, typer.Argument(help="A run's folder, as `edgeopt convert` wrote it.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file.", show_default="print it")] = None,
    as_json: Json = False,
) -> int:
    """Write what a later run is compared with: a few KB to commit, the same bytes for the same run.

    \b
    Example:
      edgeopt baseline runs/fashion-mnist-1 -o baselines/fashion-mnist.json
    """
    from edgeopt import evidence, files
    from edgeopt.text import plain

    record = evidence.read_run(run, every=True)
    text = evidence.baseline_text(record)
    if output is None:
        typer.echo(text, nl=False)
        return 0
    files.write(output, text)
    kept = sum(bool(found.readings) for found in record.candidates.values())
    if as_json:
        told = {"schema": 1, "path": str(output), "size_bytes": len(text.encode())}
        print_json({**told, "winner": record.winner, "candidates": kept})
    else:
        size = f"{len(text.encode()) / 1024:.1f} KiB"
        told_winner = f"{kept} candidates, the winner {plain(record.winner)}, {size}."
        console().print(f"{plain(output)}: {told_winner}", markup=False, soft_wrap=True)
    return 0
