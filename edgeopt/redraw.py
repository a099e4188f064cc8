"""The reports of a run that is there already, drawn again from its JSON alone: `edgeopt report`."""

from __future__ import annotations

from pathlib import Path

from edgeopt import evidence
from edgeopt.report import html, markdown


def page(folder: Path) -> str:
    """report.html. Raises InputError where the folder is no whole run, or is damaged."""
    choice, measured = evidence.read_result(folder)
    run = evidence.read_json(folder / "run.json")
    with evidence.undamaged(folder):
        return html.render(choice, measured, run)


def text(folder: Path) -> str:
    """report.md. Raises InputError as `page` does."""
    choice, _ = evidence.read_result(folder)
    with evidence.undamaged(folder):
        return markdown.render(choice)
