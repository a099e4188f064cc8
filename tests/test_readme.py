"""What the README says is what the code does, as far as text can be held against code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from edgeopt import recipe, yaml
from edgeopt.commands import app
from edgeopt.errors import EdgeoptError, _tree

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def fenced(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_command_runs_the_main_job_and_the_second_the_tests():
    first, second = fenced("sh")[:2]
    assert first.splitlines()[-1] == "edgeopt convert recipes/fashion-mnist.yaml"
    assert "/bin/python -m pytest" in second.splitlines()[-1]
    assert all("-c constraints.txt" in block for block in (first, second))


def test_the_recipe_shown_is_the_shipped_one():
    assert (ROOT / "recipes" / "fashion-mnist.yaml").read_text() in fenced("yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_right(path):
    assert recipe.read(path).steps


def test_every_key_of_a_recipe_is_explained():
    with pytest.raises(EdgeoptError) as error:
        recipe.resolve(yaml.parse("nothing: 1\nmodel: m.onnx\n", "recipe.yaml"), base=ROOT, name="r")
    known = re.search(r"one of (.*)$", error.value.lines()[0])
    assert known and all(f"| `{key}` |" in README for key in known.group(1).split(", "))


def test_every_verb_has_its_chapter():
    for name in typer.main.get_command(app).commands:
        assert re.search(rf"^### .*edgeopt {name}", README, re.MULTILINE), name


def test_every_exit_code_is_in_the_table():
    for kind in _tree(EdgeoptError).values():
        assert f"\n| {kind.exit_code} |" in README, kind


def test_torch_is_pinned_to_the_build_without_cuda():
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
