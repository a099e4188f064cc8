"""edgeopt init: a recipe to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, console, print_json


def init(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model file, or a torch factory (file.py:function).")],
    data: Annotated[
        str | None, typer.Option(help="Samples (.npz, .npy or file.py:function), with labels if there are any.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="For a torch factory: .safetensors or a checkpoint.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help='The shape of an input without data: "image=1,3,224,224"; repeatable.'),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The recipe's file.", show_default="MODEL.yaml")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> int:
    """Look at a model, measure it shortly, and write a recipe with comments that runs as it is.

    With --data the samples are checked, and the recipe quantizes and judges with them. Without, it compares times
    alone, on random inputs from a Python file that is written beside it: put your own samples there.

    \b
    Examples:
      edgeopt init model.onnx --data samples.npz
      edgeopt init model.onnx
      edgeopt init model.py:build --shape image=1,3,224,224
    """
    from edgeopt import firstrecipe
    from edgeopt.report.live import display

    found = firstrecipe.write(
        model,
        data=data,
        weights=weights,
        shapes=firstrecipe.shapes(shape or ()),
        output=output,
        display=display(quiet=quiet or as_json),
    )
    if as_json:
        print_json(found)
    elif not quiet:
        shown = console()
        for line in firstrecipe.told(found):
            shown.print(line, markup=False, soft_wrap=not shown.is_terminal)
    return 0
