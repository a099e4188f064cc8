"""edgeopt inspect: what a model is, and where a runtime would run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, console, print_json


def inspect(
    model: Annotated[str, typer.Argument(help="A model file, a torch factory (file.py:function), or a bundle.")],
    weights: Annotated[str | None, typer.Option(help="For a torch factory: .safetensors or a checkpoint.")] = None,
    data: Annotated[str | None, typer.Option(help="Samples, where shapes cannot be known without.")] = None,
    as_json: Json = False,
) -> int:
    """Print a model's signature, parameters, multiply-accumulates, operators, precision, size and provenance.

    Of a model that a runtime takes as it is, also which operator runs where, and in what precision.

    Example:  edgeopt inspect sample_models/fashion_mnist/model.onnx
    """
    from edgeopt import inspection

    found = inspection.inspect(model, weights=weights, data=data, base=Path.cwd(), placement=True)
    if as_json:
        print_json(found)
    else:
        inspection.print_summary(found, console())
    return 0
