"""The tree of errors: exit codes, what a person reads, and the way between processes."""

from __future__ import annotations

import pickle

import pytest

from edgeopt import errors
from edgeopt.errors import EdgeoptError, InputError, RecipeError, from_json


def documented() -> dict[str, int]:
    """The classes and exit codes that the tree in the module's docstring draws."""
    drawn = (errors.__doc__ or "").split("\n\n")[1]
    rows = [line.replace("|", " ").replace("+--", " ").split() for line in drawn.splitlines()]
    return {row[0]: int(row[1]) for row in rows}


def test_exit_codes_are_those_of_the_documentation() -> None:
    classes = errors._tree(EdgeoptError)
    own = {name: kind.exit_code for name, kind in classes.items() if kind.__module__ == errors.__name__}
    assert own == documented()


def test_parents_are_those_of_the_documentation() -> None:
    drawn = (errors.__doc__ or "").split("\n\n")[1].splitlines()
    stack: list[tuple[int, str]] = []
    for line in drawn:
        name = line.replace("|", " ").replace("+--", " ").split()[0]
        indent = line.index(name)
        stack = [(depth, parent) for depth, parent in stack if depth < indent]
        parent = getattr(errors, name).__mro__[1].__name__
        assert parent == (stack[-1][1] if stack else "Exception")
        stack.append((indent, name))


def test_place_comes_first_and_remedy_last() -> None:
    error = InputError("unknown stage 'prun'", where="recipe.yaml:12", remedy="Did you mean prune?")
    assert list(error.lines()) == ["recipe.yaml:12: unknown stage 'prun'", "Did you mean prune?"]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 100])
@pytest.mark.parametrize("remedy", [None, "Mend it.", "Mend it.\nThen\nrun\nit\nagain."])
def test_a_person_reads_one_to_five_lines(count: int, remedy: str | None) -> None:
    text = [f"line {index}" for index in range(count)]
    for error in (EdgeoptError("\n".join(text), remedy=remedy), RecipeError(text, remedy=remedy)):
        lines = list(error.lines())
        assert 1 <= len(lines) <= 5
        assert all(line and len(line.splitlines()) == 1 for line in lines)
        if remedy:
            assert lines[-1].startswith("Mend it.")


def test_what_is_cut_is_counted() -> None:
    assert list(RecipeError([f"problem {n}" for n in range(9)]).lines())[-1].startswith("... and 5 more mistakes")
    assert list(EdgeoptError("\n".join("abcdefg")).lines()) == ["a", "b", "c", "... and 4 more lines"]


def test_a_problem_is_one_line() -> None:
    error = RecipeError(["first\nwith more", "second"])
    assert error.problems == ("first with more", "second")


@pytest.mark.parametrize("name", documented())
def test_an_error_survives_json_and_pickle(name: str) -> None:
    kind = getattr(errors, name)
    message = ["one", "two"] if kind is RecipeError else "one\ntwo"
    error = kind(message, where="model.onnx", remedy="Mend it.")
    for copy in (from_json(error.to_json()), pickle.loads(pickle.dumps(error))):
        assert type(copy) is kind
        assert copy.to_json() == error.to_json()
        assert list(copy.lines()) == list(error.lines())


def test_an_error_of_an_unknown_type_is_a_bug() -> None:
    error = from_json({"type": "SomebodyElses", "message": "what"})
    assert type(error) is EdgeoptError
    assert error.exit_code == 1
