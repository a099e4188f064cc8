"""edgeopt check: does a run keep its budgets, and is it no worse than the one before?"""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, console, print_json


class Annotations(str, Enum):
    """Where annotations are written for."""

    auto = "auto"
    github = "github"
    none = "none"


def check(
    run: Annotated[Path, typer.Argument(help="A run's folder, as `edgeopt convert` wrote it.")],
    baseline: Annotated[
        str | None, typer.Option(help="A file of `edgeopt baseline`, REV:PATH of one in Git, or a run's folder.")
    ] = None,
    tolerance: Annotated[
        list[str] | None, typer.Option(help='How much worse is fine: "latency p50: 5 %", "size: any"; repeatable.')
    ] = None,
    candidate: Annotated[str | None, typer.Option(help="Check this one.", show_default="the winner")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="What is inconclusive fails too.")] = False,
    unlike: Annotated[
        bool, typer.Option("--unlike", help="Compare them though the machines or threads differ.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML: a test case a rule.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a summary in Markdown.")] = None,
    code_quality: Annotated[Path | None, typer.Option(help="Write GitLab's Code Quality report.")] = None,
    annotations: Annotated[
        Annotations, typer.Option(help="Print GitHub's ::error lines; auto: where GITHUB_ACTIONS is set.")
    ] = Annotations.auto,
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe's file: annotations of broken budgets point into it.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check a run: its budgets, and with --baseline whether it got worse.

    A quantity got worse where the whole 95 % interval of its change is beyond the tolerance; a tie is no regression.
    Tolerances: latency p50 10 %, latency p95 25 %, peak memory 5 % or 1 MiB, size 1 %, accuracy 0.5 points.
    In GitHub Actions a summary is added to the job's own.

    \b
    Exit codes: 0 all kept, 2 wrong input, 3 a budget is broken, 4 every candidate
    failed, 7 a regression, 8 the baseline is of another kind of machine.

    \b
    Examples:
      edgeopt check runs/fashion-mnist-1
      edgeopt check runs/fashion-mnist-2 --baseline origin/main:baselines/fashion-mnist.json \\
          --tolerance "latency p50: 5 %" --junit check.xml
    """
    from edgeopt import baselines, evidence, files
    from edgeopt import check as gate
    from edgeopt.report import annotations as places
    from edgeopt.report import gate as report
    from edgeopt.report import junit as xml

    allowed = gate.tolerances(tolerance or ())
    lines = baselines.budget_lines(recipe) if recipe else {}
    before = baselines.read(baseline, candidate) if baseline is not None else None
    found = gate.check(
        evidence.read_run(run, candidate=candidate),
        before,
        candidate=candidate,
        allowed=allowed,
        strict=strict,
        unlike=unlike,
    )
    findings = places.findings_of(found, str(recipe) if recipe else None, lines)
    if junit is not None:
        files.write(junit, xml.render(found))
    if markdown is not None:
        files.write(markdown, report.markdown(found))
    if code_quality is not None:
        files.write(code_quality, places.gitlab(findings, str(recipe or run / "choice.json")))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        files.append(Path(summary), report.markdown(found))
    if as_json:
        print_json(found.to_json())
    else:
        report.print_check(found, console())
    if annotations is Annotations.github or (annotations is Annotations.auto and os.environ.get("GITHUB_ACTIONS")):
        (sys.stderr if as_json else sys.stdout).write(places.github(findings))
    return found.exit_code
