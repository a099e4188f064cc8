"""edgeopt targets: the devices that edgeopt knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, complete_targets, console, print_json
from edgeopt.errors import InputError

app = typer.Typer(help="List or show the shipped targets.", no_args_is_help=True, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def targets(
    context: typer.Context,
    matrix: Annotated[bool, typer.Option("--matrix", help="Which model formats go to which runtimes.")] = False,
    as_json: Json = False,
) -> int:
    """List or show the shipped targets.

    Example:  edgeopt targets --matrix
    """
    if context.invoked_subcommand is not None:
        return 0
    if not matrix:
        raise InputError("targets needs a command or --matrix", remedy="edgeopt targets -h explains what it takes.")
    from edgeopt.matrix import matrix as made
    from edgeopt.matrix import print_matrix, print_missing

    found = made()
    if as_json:
        print_json(found)
        return 0
    print_matrix(found, console())
    print_missing(found, console())
    return 0


@app.command("list")
def list_targets(as_json: Json = False) -> int:
    """List the shipped targets.

    Example:  edgeopt targets list
    """
    from edgeopt import catalog

    if as_json:
        entries = [{"name": e.name, "path": str(e.path), "about": e.about} for e in catalog.targets()]
        print_json({"schema": 1, "targets": entries})
        return 0
    from rich.table import Table

    table = Table("target", "about", "backends", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for entry in catalog.targets():
        table.add_row(entry.name, entry.about, ", ".join(catalog.target(entry.name).backends))
    console().print(table)
    return 0


@app.command("show")
def show_target(
    name: Annotated[str, typer.Argument(help="A target's name or .yaml file.", autocompletion=complete_targets)],
    as_json: Json = False,
) -> int:
    """Print a target's specification.

    Example:  edgeopt targets show raspberry-pi-5
    """
    from edgeopt import catalog

    found = catalog.target(name)
    if as_json:
        print_json({"schema": 1, **found.to_json()})
        return 0
    path = next((entry.path for entry in catalog.targets() if entry.name == name), None)
    typer.echo((path or Path(name)).read_text(), nl=False)
    return 0
