"""The command line: one file a verb. A verb reads its flags, imports its module, calls it, prints and exits."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

PACKAGE = Path(__file__).parents[1]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else, to standard output.")]


def console() -> Console:
    """Standard output, as wide as COLUMNS says, else the terminal; 120 columns where there is neither."""
    from rich.console import Console

    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(width=None if known else 120, highlight=False)


def complete_targets(incomplete: str) -> list[str]:
    """The names of shipped targets that begin so, for the shell."""
    return _stems("targets", incomplete)


def complete_levels(incomplete: str) -> list[str]:
    """The names of shipped levels that begin so, for the shell."""
    return _stems("levels", incomplete)


def complete_schemas(incomplete: str) -> list[str]:
    """The names of schemas that begin so, for the shell."""
    return _stems("schemas", incomplete)


def complete_recipes(incomplete: str) -> list[str]:
    """The names of shipped recipes and levels that begin so, for the shell."""
    inside = PACKAGE / "recipes"
    folder = inside if inside.is_dir() else PACKAGE.parent / "recipes"
    return sorted({*_stems(folder, incomplete), *complete_levels(incomplete)})


def _stems(folder: str | Path, incomplete: str) -> list[str]:
    """The names of a folder's data files, read off the disk alone: a shell waits for this."""
    names = {path.stem for path in (PACKAGE / folder).iterdir() if path.suffix in (".yaml", ".json")}
    return sorted(name for name in names if name.startswith(incomplete))


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(text.encode(errors="backslashreplace").decode() + "\n")  # names of files may be no text


Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="A line for each thing that is done, on standard error.")
]
Target = Annotated[
    str | None,
    typer.Option(help="A target's name or .yaml file.", show_default="host", autocompletion=complete_targets),
]
