"""Whether recipes are right, as far as can be told without opening a model or data: several files, every mistake."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import yaml
from edgeopt.errors import EdgeoptError, RecipeError
from edgeopt.recipe import resolve


@dataclass(frozen=True)
class Problem:
    """One mistake. `line` counts from 1, None where it is of the whole file."""

    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass(frozen=True)
class CheckedRecipe:
    """A file and its mistakes: none where it is right."""

    path: Path
    problems: tuple[Problem, ...]


def check(paths: Iterable[Path]) -> tuple[CheckedRecipe, ...]:
    """Read each as `edgeopt convert` does, and collect what is wrong."""
    return tuple(CheckedRecipe(path, _problems(path)) for path in dict.fromkeys(paths))


def to_json(found: Sequence[CheckedRecipe]) -> dict[str, Any]:
    return {
        "schema": 1,
        "passed": not any(one.problems for one in found),
        "recipes": [
            {
                "path": str(one.path),
                "passed": not one.problems,
                "problems": [{"file": p.file, "line": p.line, "message": p.message} for p in one.problems],
            }
            for one in found
        ],
    }


def _problems(path: Path) -> tuple[Problem, ...]:
    try:
        resolve(yaml.load(path), base=path.resolve().parent, name=path.stem)
    except RecipeError as error:
        return tuple(_problem(path, text) for text in error.problems)
    except EdgeoptError as error:
        told = f"{error.where}: {error.message}" if error.where else error.message
        return (_problem(path, told.removeprefix(f"{path}: ") if path.name != str(path) else told),)
    return ()


def _problem(path: Path, text: str) -> Problem:
    """ "recipe.yaml:12: unknown stage" with the file as it was given: several recipes may have one name."""
    place, colon, message = text.partition(": ")
    name, _, line = place.rpartition(":")
    if colon and name == path.name and line.isdecimal():
        return Problem(str(path), int(line), message)
    if colon and place in (path.name, str(path)):
        return Problem(str(path), None, message)
    return Problem(str(path), None, text)
