"""edgeopt recipes check, and edgeopt recipe check: are recipes right? Nothing heavy is loaded, no model is opened."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, print_json

app = typer.Typer(help="Check recipes.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Check recipes."""


@app.command("check")
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recipes.")], as_json: Json = False
) -> int:
    """Check recipes, and tell every mistake with its file and line.

    In GitHub Actions each is an annotation too. Exit codes: 0 all are right, 2 at least one is not.

    Example:  edgeopt recipe check recipes/*.yaml
    """
    from edgeopt import recipecheck
    from edgeopt.text import plain

    found = recipecheck.check(files)
    if as_json:
        print_json(recipecheck.to_json(found))
    else:
        for problem in (problem for one in found for problem in one.problems):
            sys.stdout.write(plain(problem) + "\n")
        wrong = sum(bool(one.problems) for one in found)
        of = "1 recipe" if len(found) == 1 else f"{len(found)} recipes"
        sys.stdout.write(f"{wrong} of {of} wrong.\n" if wrong else f"{of} checked, no mistake.\n")
    if os.environ.get("GITHUB_ACTIONS"):
        from edgeopt.report.annotations import Finding, github

        findings = [
            Finding("error", "recipe", problem.message, "edgeopt-recipe", problem.file, problem.line)
            for one in found
            for problem in one.problems
        ]
        (sys.stderr if as_json else sys.stdout).write(github(findings))
    return 2 if any(one.problems for one in found) else 0
