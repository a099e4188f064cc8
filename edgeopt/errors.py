"""The tree of errors a person may meet, one exit code a class.

    EdgeoptError                1    a bug of ours
    +-- InputError              2    the command, recipe, model or data is wrong, or a folder cannot be written
    |   +-- RecipeError         2    several mistakes of one recipe, told at once
    +-- BudgetError             3    no candidate is inside the budgets
    +-- StageError              4    a stage or a backend failed: it costs its candidate, the command when none is left
    |   +-- WorkerCrashed       4    the process died: a signal, no memory left, past its time limit
    |   +-- UnsupportedOperator 4    the backend lacks operators of this model
    |   +-- CorruptArtifact     4    the files are not what their manifest says
    |   +-- UntrustedArtifact   4    not signed, or not by whom it should be
    |   +-- NoAccelerator       4    built, and it cannot run here: the GPU or its driver is missing
    |   +-- NoTimeLeft          4    the run's time limit came first: its candidates are skipped, not failed
    +-- MissingDependency       5    a library or tool is not installed
    +-- TargetUnreachable       6    the device does not answer
    +-- RegressionError         7    worse than the baseline (`check`), or other bytes than before (`--reproduce`)
    +-- UnlikeMachines          8    measured on another kind of machine than what it is compared with
    +-- Interrupted             130  Ctrl-C

An error says what is wrong, where, and the likely remedy, in at most five lines, long ones cut. It travels between
processes as JSON, whole.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Type

LONGEST_LINE = 1000  # characters: what is wrong may be the length of a name


class EdgeoptError(Exception):
    """The root. `where` is a place such as "recipe.yaml:12"; `remedy` is one sentence that says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, where: Optional[str] = None, remedy: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy

    def lines(self) -> Sequence[str]:
        """What is wrong and where, then the remedy: five lines at the most."""
        place = f"{self.where}: " if self.where else ""
        told = f"{place}{self.message or type(self).__name__}".splitlines()
        if len(told) > 4:
            told = [*told[:3], f"... and {len(told) - 3} more lines"]
        return _cut([*told, _one_line(self.remedy)] if self.remedy else told)

    def to_json(self) -> Dict[str, Any]:
        return {"type": type(self).__name__, "message": self.message, "where": self.where, "remedy": self.remedy}

    def __reduce__(self) -> Tuple[Any, ...]:
        return (from_json, (self.to_json(),))


class InputError(EdgeoptError):
    """The user's input is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """Every mistake of one recipe. Each problem is a line of its own, with its place."""

    def __init__(self, problems: Sequence[str], *, where: Optional[str] = None, remedy: Optional[str] = None) -> None:
        self.problems = tuple(_one_line(problem) for problem in problems)
        super().__init__("\n".join(self.problems), where=where, remedy=remedy)

    def lines(self) -> Sequence[str]:
        shown = list(self.problems) or [type(self).__name__]
        room = 4 if self.remedy else 5
        if len(shown) > room:
            shown = [*shown[: room - 1], f"... and {len(shown) - room + 1} more mistakes (--json lists them all)"]
        return _cut([*shown, _one_line(self.remedy)] if self.remedy else shown)


class BudgetError(EdgeoptError):
    """No candidate is inside the budgets. Everything is still written."""

    exit_code = 3


class StageError(EdgeoptError):
    """A stage or backend could not do its work on this model."""

    exit_code = 4


class WorkerCrashed(StageError):
    """A worker process ended without a result."""


class UnsupportedOperator(StageError):
    """The backend has no implementation of an operator of this model; the message names it."""


class CorruptArtifact(StageError):
    """Files differ from the digests in their manifest."""


class UntrustedArtifact(StageError):
    """There is no signature, or none by a key that is trusted."""


class NoAccelerator(StageError):
    """What the artifact runs on, or the driver of it, is not on this machine. The artifact itself is kept."""


class NoTimeLeft(StageError):
    """Not begun, or broken off, because of the run's time limit."""


class MissingDependency(EdgeoptError):
    """A library or tool is needed and not installed."""

    exit_code = 5


class TargetUnreachable(EdgeoptError):
    """The target device cannot be reached."""

    exit_code = 6


class RegressionError(EdgeoptError):
    """Worse than the baseline, or not the same as before."""

    exit_code = 7


class UnlikeMachines(EdgeoptError):
    """Times of two kinds of machine say nothing about each other."""

    exit_code = 8


class Interrupted(EdgeoptError):
    """Stopped by the user."""

    exit_code = 130


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _cut(lines: Sequence[str]) -> Sequence[str]:
    return [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..." for line in lines]


def _tree(root: Type[EdgeoptError]) -> Dict[str, Type[EdgeoptError]]:
    classes = {root.__name__: root}
    for child in root.__subclasses__():
        classes.update(_tree(child))
    return classes


def from_json(value: Mapping[str, Any]) -> EdgeoptError:
    """The error that `to_json` described. An unknown type becomes an EdgeoptError: a bug, not a user's mistake."""
    kind = _tree(EdgeoptError).get(str(value.get("type")), EdgeoptError)
    message, where, remedy = str(value.get("message")), value.get("where"), value.get("remedy")
    if issubclass(kind, RecipeError):
        return kind(message.splitlines(), where=where, remedy=remedy)
    return kind(message, where=where, remedy=remedy)
