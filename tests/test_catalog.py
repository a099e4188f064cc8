"""The shipped targets, levels and recipes, and target files of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeopt import backends, catalog, units, yaml
from edgeopt.budget import QUANTITIES
from edgeopt.errors import InputError, RecipeError
from edgeopt.recipe import resolve
from edgeopt.target import Target

TARGETS = [entry.name for entry in catalog.targets()]
LEVELS = [entry.name for entry in catalog.levels()]


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "board.yaml"
    path.write_text(text)
    return str(path)


def test_the_targets_are_those_of_the_documentation() -> None:
    assert TARGETS == ["coral-usb", "host", "intel-cpu", "jetson-orin-nano", "raspberry-pi-5"]


@pytest.mark.parametrize("name", TARGETS)
def test_a_shipped_target_survives_json(name: str) -> None:
    target = catalog.target(name)
    assert target.name == name
    assert target.description
    assert set(target.backends) <= set(backends.names())
    assert Target.from_json(target.to_json()) == target


@pytest.mark.parametrize("name", TARGETS)
def test_each_figure_of_a_shipped_target_names_its_source(name: str) -> None:
    lines = (catalog.PACKAGE / "targets" / f"{name}.yaml").read_text().splitlines()
    figures = [line for line in lines if line.startswith(("cores:", "memory:", "storage:", "power:", "isa:"))]
    assert all("(" in line.partition("#")[2] for line in figures)


def test_quantities_of_a_target_are_numbers() -> None:
    pi = catalog.target("raspberry-pi-5")
    assert (pi.arch, pi.cores, pi.memory_bytes, pi.power_watts) == ("aarch64", 4, 8 * 2**30, 25.0)


def test_a_shipped_board_is_not_local_and_the_host_is() -> None:
    assert catalog.target("host").is_local
    assert not catalog.target("raspberry-pi-5").is_local


def test_an_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'raspberry-pi-5'") as caught:
        catalog.target("rasberry-pi5")
    assert caught.value.remedy is not None
    assert "jetson-orin-nano" in caught.value.remedy


def test_a_file_starts_from_a_shipped_target_and_says_what_differs(tmp_path: Path) -> None:
    mine = catalog.target(written(tmp_path, "reach: {ssh: pi@10.0.0.7}\nmemory: 4 GiB\nbase: raspberry-pi-5\n"))
    assert mine.name == "board"
    assert mine.reach == {"ssh": "pi@10.0.0.7"}
    assert mine.memory_bytes == 4 * 2**30
    assert mine.isa == catalog.target("raspberry-pi-5").isa


def test_every_mistake_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    text = "arch: arm64\nmemroy: 8 GiB\nmemory: 8\ncores: true\nbackends: [openvno]\nreach: serial\npower: 5 V\n"
    with pytest.raises(RecipeError) as caught:
        catalog.target(written(tmp_path, text))
    problems = caught.value.problems
    assert [problem.split(": ")[0] for problem in problems] == [f"board.yaml:{line}" for line in range(1, 8)]
    assert "did you mean 'memory'" in problems[1]
    assert "'8 GiB'" in problems[2] or "no unit" in problems[2]
    assert "did you mean 'openvino'" in problems[4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "a target is a mapping"),
        ("", "a target is a mapping"),
        ("base: board\n", "there is no target 'board'"),
        ("cores: [4\n", "not YAML"),
        ("batches: 8\n", "not a list"),
        ("batches: [0]\n", "not a count"),
        ("threads: 0\n", "not a count"),
        ("isa: asimddp\n", "not a list"),
        ("reach: {ssh: a, local: true}\n", "no way to reach it"),
        ("precisions: [int9]\n", "did you mean 'int8'"),
    ],
)
def test_a_wrong_file_is_the_users_mistake(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        catalog.target(written(tmp_path, text))
    assert caught.value.exit_code == 2


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        catalog.target(str(tmp_path / "none.yaml"))


def test_a_mapping_inside_a_recipe_keeps_the_name_of_its_base() -> None:
    target = catalog.target_from({"threads": 4, "batches": [1, 16]}, base="intel-cpu")
    assert (target.name, target.threads, target.arch) == ("intel-cpu", 4, "x86_64")
    assert target.batches == (1, 16)


def test_mistakes_of_a_mapping_are_told_at_its_place() -> None:
    with pytest.raises(InputError, match="did you mean 'threads'") as caught:
        catalog.target_from({"thread": 4}, where="recipe.yaml:9")
    assert caught.value.where == "recipe.yaml:9"


def test_the_levels_are_those_that_have_stages() -> None:
    assert LEVELS == ["compilation", "distillation", "full", "none", "pruning", "quantization"]


@pytest.mark.parametrize("name", LEVELS)
def test_each_level_has_the_steps_of_a_recipe(name: str) -> None:
    written = {"model": "a.onnx", "steps": catalog.level(name)["steps"]}
    assert resolve(yaml.Document("level", written), base=Path("/"), name=name).steps


@pytest.mark.parametrize("name", LEVELS)
def test_each_limit_of_a_level_is_a_budget(name: str) -> None:
    budget = catalog.level(name)["budget"]
    assert {key: QUANTITIES[key].parse(text) for key, text in budget.items()} == {"accuracy drop": 0.01}


def test_full_tries_all_that_the_other_levels_try() -> None:
    def compiled(name: str) -> list[object]:
        return next(step["compile"] for step in catalog.level(name)["steps"] if "compile" in step)

    assert {"quantize": ["none", "int8"]} in catalog.level("full")["steps"]
    assert all(alternative in compiled("full") for name in LEVELS for alternative in compiled(name))


def test_an_unknown_level_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'quantization'"):
        catalog.level("quantisation")


def test_recipes_are_found_with_their_first_line_of_comment() -> None:
    found = catalog.recipes()
    assert found
    for entry in found:
        assert entry.about
        assert catalog.recipe(entry.name) == entry.path


def test_an_unknown_recipe_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match="there is no recipe 'no-such-recipe'"):
        catalog.recipe("no-such-recipe")


@pytest.mark.parametrize(("text", "watts"), [("25 W", 25.0), ("500 mW", 0.5)])
def test_power_is_in_watts(text: str, watts: float) -> None:
    assert units.parse_power(text) == watts
