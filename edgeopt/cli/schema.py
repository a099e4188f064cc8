"""edgeopt schema: the JSON Schemas of what edgeopt reads and writes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgeopt.cli import Json, complete_schemas, console, print_json


def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            help="recipe, result, measurement, check, baseline or compare.", autocompletion=complete_schemas
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Of the recipe: every key, for people.")] = False,
    as_json: Json = False,
) -> int:
    """Print the JSON Schema of a document, or list them all.

    That of recipes knows the stages and compilers that are installed, also those of other packages.

    \b
    Examples:
      edgeopt schema recipe > recipe.schema.json
      edgeopt schema recipe --markdown > recipe.md
    """
    from edgeopt import schema as schemas
    from edgeopt.errors import InputError

    if markdown:
        from edgeopt import reference

        if name != "recipe":
            raise InputError("--markdown is of the recipe alone", remedy="Write: edgeopt schema recipe --markdown")
        sys.stdout.write(reference.render(schemas.recipe()))
    elif name is not None:
        print_json(schemas.recipe() if name == "recipe" else schemas.read(name))
    elif as_json:
        print_json({"schema": 1, "schemas": [{"name": one, "about": about} for one, about in schemas.ABOUT.items()]})
    else:
        for one, about in schemas.ABOUT.items():
            console().print(f"{one:<14}{about}", markup=False, soft_wrap=True)
    return 0
