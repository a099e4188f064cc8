"""edgeopt schema: the JSON Schemas of what edgeopt reads and writes."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeopt.cli import Json, console, print_json


def schema(
    name: Annotated[str | None, typer.Argument(help="recipe, result, measurement, check or baseline.")] = None,
    as_json: Json = False,
) -> int:
    """Print the JSON Schema of a document, or list them all.

    That of recipes knows the stages and compilers that are installed, also those of other packages.

    Example:  edgeopt schema recipe > recipe.schema.json
    """
    from edgeopt import schema as schemas

    if name is not None:
        print_json(schemas.recipe() if name == "recipe" else schemas.read(name))
    elif as_json:
        print_json({"schema": 1, "schemas": [{"name": one, "about": about} for one, about in schemas.ABOUT.items()]})
    else:
        for one, about in schemas.ABOUT.items():
            console().print(f"{one:<14}{about}", markup=False, soft_wrap=True)
    return 0
