"""edgeopt convert: from a trained model to the best artifact inside its budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, console, print_json


def convert(
    what: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe (.yaml), or a model with --level.")],
    level: Annotated[
        str | None, typer.Option(help="For a model: none, compilation, quantization or full.", show_default="full")
    ] = None,
    target: Annotated[str | None, typer.Option(help="A target's name or .yaml file.", show_default="host")] = None,
    data: Annotated[str | None, typer.Option(help="For a model: samples (.npz, .npy or file.py:function).")] = None,
    weights: Annotated[str | None, typer.Option(help="For a torch factory: .safetensors or a checkpoint.")] = None,
    budget: Annotated[list[str] | None, typer.Option(help='A limit such as "latency p95=5 ms"; repeatable.')] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's folder, new or empty.", show_default="runs/NAME-N")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; build and measure nothing.")] = False,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Measure again what was measured before.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
    as_json: Json = False,
) -> int:
    """Build every candidate, measure each on its target, choose the best inside the budgets.

    What is finished is kept: the same command, run again after Ctrl-C or a crash, goes on from there.

    \b
    Exit codes: 0 inside the budgets, 2 wrong input, 3 no candidate inside the
    budgets, 4 every candidate failed, 5 a library is missing, 6 the target
    cannot be reached, 130 interrupted.

    \b
    Examples:
      edgeopt convert recipes/fashion-mnist.yaml
      edgeopt convert recipes/fashion-mnist.yaml --dry-run
      edgeopt convert model.onnx --level quantization --data samples.npz \\
          --budget "latency p95=5 ms"
    """
    from edgeopt import dryrun, request, run
    from edgeopt.report.live import display

    recipe = request.read_recipe(
        what, level=level, target=target, data=data, weights=weights, budget=budget or (), base=Path.cwd()
    )
    if dry_run:
        found = dryrun.examine(recipe)
        if as_json:
            print_json(found)
        else:
            dryrun.print_plan(found, console())
        return 0
    document = run.convert(recipe, output=output, remeasure=remeasure, display=display(quiet=quiet or as_json))
    if as_json:
        print_json(document)
    elif not quiet:
        from edgeopt.report.terminal import print_result

        print_result(document, console())
    return run.exit_code(document)
