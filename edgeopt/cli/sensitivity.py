"""edgeopt sensitivity: which layers lose most in 8-bit integers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, Target, console, print_json


def sensitivity(
    what: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe (.yaml), or a model with --data.")],
    data: Annotated[str | None, typer.Option(help="For a model: samples (.npz, .npy or file.py:function).")] = None,
    weights: Annotated[str | None, typer.Option(help="For a torch factory: .safetensors or a checkpoint.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many of the calibration samples to rank on.")] = 50,
    target: Target = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A plot: .svg or .html.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
    as_json: Json = False,
) -> int:
    """Rank the layers of a model by what quantizing each one alone costs, the worst first.

    Each layer's weights and input activations are quantized with all else in float: the signal-to-noise ratio at the
    model's outputs says what that layer costs. A recipe's model, data, preprocessing and int8 options are used, but for
    its goal, equalize and smooth.

    \b
    Examples:
      edgeopt sensitivity model.onnx --data samples.npz
      edgeopt sensitivity recipes/efficientnet-lite0.yaml -o layers.html
    """
    from edgeopt import request
    from edgeopt import sensitivity as ranking
    from edgeopt.report import sensitivity as report
    from edgeopt.report.live import display

    if output is not None:
        report.check_plot(output)
    level = None if what.endswith((".yaml", ".yml")) else "quantization"
    recipe = request.read_recipe(
        what, level=level, target=target, data=data, weights=weights, budget=(), base=Path.cwd()
    )
    found = ranking.examine(recipe, samples=samples, display=display(quiet=quiet or as_json))
    if output is not None:
        report.write_plot(found, output)
    if as_json:
        print_json(found)
    elif not quiet:
        report.print_ranking(found, console())
    return 0
