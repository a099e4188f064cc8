"""edgeopt convert: from a trained model to the best artifact inside its budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, Target, Verbose, complete_levels, console, print_json


def convert(
    what: Annotated[
        str | None, typer.Argument(metavar="RECIPE|MODEL", help="A recipe (.yaml), or a model with --level.")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            help="For a model: none, compilation, quantization, pruning, distillation or full.",
            show_default="full",
            autocompletion=complete_levels,
        ),
    ] = None,
    target: Target = None,
    data: Annotated[str | None, typer.Option(help="For a model: samples (.npz, .npy or file.py:function).")] = None,
    weights: Annotated[str | None, typer.Option(help="For a torch factory: .safetensors or a checkpoint.")] = None,
    budget: Annotated[list[str] | None, typer.Option(help='A limit such as "latency p95=5 ms"; repeatable.')] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's folder, new or empty.", show_default="runs/NAME-N")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help='A limit on the whole run, such as "10m": the most promising first.')
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; build and measure nothing.")] = False,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Measure again what was measured before.")] = False,
    reproduce: Annotated[
        Path | None,
        typer.Option(metavar="RUN.JSON", help="Do that run again, built anew, and compare the digest of every step."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> int:
    """Build every candidate, measure each on its target, choose the best inside the budgets.

    What is finished is kept: the same command, run again after Ctrl-C or a crash, goes on from there.

    \b
    Exit codes: 0 inside the budgets, 2 wrong input, 3 no candidate inside the
    budgets, 4 every candidate failed, 5 a library is missing, 6 the target
    cannot be reached, 7 not reproduced, 130 interrupted.

    \b
    Examples:
      edgeopt convert recipes/fashion-mnist.yaml
      edgeopt convert recipes/fashion-mnist.yaml --dry-run
      edgeopt convert recipes/fashion-mnist-full.yaml --time 10m
      edgeopt convert model.onnx --level quantization --data samples.npz \\
          --budget "latency p95=5 ms"
    """
    from edgeopt import dryrun, request, run
    from edgeopt.errors import InputError
    from edgeopt.report.live import display

    if reproduce is not None:
        given = (what, level, target, data, weights, budget, time, dry_run or None)
        if any(one is not None for one in given):
            raise InputError("--reproduce takes all from the run.json: only --output, --quiet and --json go with it")
        return _reproduce(reproduce, output, quiet=quiet, as_json=as_json)
    if what is None:
        raise InputError(
            "missing argument 'RECIPE|MODEL'", remedy="edgeopt convert -h explains what it takes, with examples."
        )
    recipe = request.read_recipe(
        what, level=level, target=target, data=data, weights=weights, budget=budget or (), time=time, base=Path.cwd()
    )
    if dry_run:
        found = dryrun.examine(recipe)
        if as_json:
            print_json(found)
        else:
            dryrun.print_plan(found, console())
        return 0
    shown = display(quiet=quiet or (as_json and not verbose), verbose=verbose)
    document = run.convert(recipe, output=output, remeasure=remeasure, display=shown)
    if as_json:
        print_json(document)
    elif not quiet:
        from edgeopt.report.terminal import print_result

        print_result(document, console())
    return run.exit_code(document)


def _reproduce(lock: Path, output: Path | None, *, quiet: bool, as_json: bool) -> int:
    from edgeopt import reproduce
    from edgeopt.report.live import display

    told = reproduce.read(lock)
    recipe = reproduce.recipe_of(told)
    if not quiet and not as_json:
        reproduce.print_differences(reproduce.surroundings(told, recipe), console())
    document = reproduce.reproduce(told, recipe, output=output, display=display(quiet=quiet or as_json))
    if as_json:
        print_json(document)
    elif not quiet:
        reproduce.print_document(document, console())
    return int(document["exit_code"])
