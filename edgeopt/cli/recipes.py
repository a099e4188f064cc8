"""edgeopt recipes: the recipes and levels that come with edgeopt."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeopt.cli import Json, complete_recipes, console, print_json

app = typer.Typer(help="List, show or check recipes and levels.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_recipes(as_json: Json = False) -> int:
    """List the shipped recipes, and the levels that `convert --level` takes.

    Example:  edgeopt recipes list
    """
    from edgeopt import catalog

    if as_json:
        print_json(
            {
                "schema": 1,
                "recipes": [{"name": e.name, "path": str(e.path), "about": e.about} for e in catalog.recipes()],
                "levels": [{"name": e.name, "path": str(e.path), "about": e.about} for e in catalog.levels()],
            }
        )
        return 0
    from rich.table import Table

    for title, entries in (("recipe", catalog.recipes()), ("level", catalog.levels())):
        table = Table(title, "about", box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for entry in entries:
            table.add_row(entry.name, entry.about)
        console().print(table)
    return 0


@app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(help="A recipe's or level's name.", autocompletion=complete_recipes)],
    as_json: Json = False,
) -> int:
    """Print a shipped recipe or level.

    Example:  edgeopt recipes show fashion-mnist
    """
    from edgeopt import catalog, yaml
    from edgeopt.errors import InputError

    known = {entry.name: entry for entry in (*catalog.levels(), *catalog.recipes())}
    if name not in known:
        from edgeopt.recipe import unknown

        raise InputError(unknown("recipe", name, known), remedy="edgeopt recipes list names them all.")
    path = known[name].path
    if as_json:
        print_json({"schema": 1, "name": name, "path": str(path), "recipe": yaml.load(path).value})
    else:
        typer.echo(path.read_text(), nl=False)
    return 0
