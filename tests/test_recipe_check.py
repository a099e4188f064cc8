"""`edgeopt recipe check`: every mistake of several files with its place, and nothing heavy loaded; files to copy."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import project
from test_layers import VENDORS
from test_startup import loaded

from edgeopt import recipe, yaml
from edgeopt.__main__ import main
from edgeopt.errors import RecipeError

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
WRONG = "model: m.onnx\nmetric: top3\nsteps:\n  - quantise: int8\n  - compile: [tflit]\n"


@pytest.fixture(autouse=True)
def outside_of_github(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


def known_keys(*place: str) -> set[str]:
    """The keys that the reader of recipes names where one is unknown."""
    inner: object = {"nothing at all like it": 1}
    for key in reversed(place):
        inner = {key: inner}
    document = yaml.Document("r.yaml", {"model": "m.onnx", **inner})  # type: ignore[dict-item]
    with pytest.raises(RecipeError) as error:
        recipe.resolve(document, base=ROOT, name="r")
    return set(error.value.problems[0].partition("one of ")[2].split(", "))


@pytest.mark.parametrize("verb", ["recipe", "recipes"])
def test_shipped_recipes_are_right(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "check", *map(str, RECIPES)]) == 0
    assert capsys.readouterr().out == f"{len(RECIPES)} recipes checked, no mistake.\n"


def test_every_mistake_of_every_file_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = tmp_path / "a" / "r.yaml", tmp_path / "b" / "r.yaml"
    for path, text in ((one, WRONG), (other, "model: m.onnx\nbudget: {latency: 5}\n")):
        path.parent.mkdir()
        path.write_text(text)
    assert main(["recipe", "check", str(one), str(RECIPES[0]), str(other)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines[:-1]] == [f"{one}:2", f"{one}:4", f"{one}:5", f"{other}:2"]
    assert lines[-1] == "2 of 3 recipes wrong."


@pytest.mark.parametrize(
    ("text", "place"),
    [("model: [\n", ":2"), ("a: 1\na: 2\n", ":2"), ("", ""), ("- 1\n", ""), (b"\xff\xfe".decode("latin-1"), None)],
)
def test_what_is_no_recipe_is_told_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, place: str | None
) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert main(["recipe", "check", str(path), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    (problem,) = found["recipes"][0]["problems"]
    assert problem["file"] == str(path)
    assert str(path) not in problem["message"] or place is None
    if place is not None:
        assert problem["line"] == (int(place[1:]) if place else None)


def test_a_file_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "check", str(tmp_path / "r.yaml")]) == 2
    assert "No such file" in capsys.readouterr().out


def test_json_has_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(WRONG)
    assert main(["recipe", "check", str(path), str(RECIPES[0]), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["passed"]) == (1, False)
    assert [one["passed"] for one in found["recipes"]] == [False, True]
    assert [problem["line"] for problem in found["recipes"][0]["problems"]] == [2, 4, 5]


def test_mistakes_are_annotations_on_github(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(WRONG)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert main(["recipe", "check", str(path)]) == 2
    assert f"::error file={path},line=4,title=recipe::unknown stage 'quantise'" in capsys.readouterr().out


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    """The modules that the half second goes to: a library that is not among them has no business here."""
    packages, modules, _ = loaded("recipe", "check", *map(str, RECIPES), cache=tmp_path)
    assert not packages & {*VENDORS, "numpy", "rich", "psutil", "jsonschema"}
    foreign = {name for name in packages - set(sys.stdlib_module_names) if not name.startswith("_")}
    assert foreign <= {
        "edgeopt", "typer", "shellingham", "annotated_doc", "click", "yaml", "cython_runtime",
        "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection",
    }  # fmt: skip
    own = ("edgeopt.pipeline", "edgeopt.run", "edgeopt.store", "edgeopt.plan", "edgeopt.measurement")
    assert not modules & set(own)


# Files to copy

CI = ROOT / "recipes" / "ci"


@pytest.mark.parametrize(
    ("file", "schema", "more"),
    [
        ("github-actions.yml", "vendor.github-workflows", ()),
        ("action.yml", "vendor.github-actions", ()),
        ("gitlab-ci.yml", "vendor.gitlab-ci", ("--data-transform", "gitlab-ci")),
    ],
)
def test_files_for_ci_keep_to_the_public_schemas(file: str, schema: str, more: tuple[str, ...]) -> None:
    pytest.importorskip("check_jsonschema", reason="the extra `test` brings check-jsonschema")
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *more, str(CI / file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_for_ci_are_no_recipes() -> None:
    from edgeopt import catalog

    assert not [entry.name for entry in catalog.recipes() if "ci" in entry.path.parts[-2:]]


def test_the_pre_commit_hook_checks_the_shipped_recipes() -> None:
    (hook,) = yaml.load(ROOT / ".pre-commit-hooks.yaml").value
    assert {"id", "name", "entry", "language"} <= hook.keys()
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.y*ml")]
    chosen = [name for name in files if re.search(hook["files"], name)]
    assert sorted(chosen) == sorted(str(path.relative_to(ROOT)) for path in RECIPES)
    assert main([*shlex.split(hook["entry"])[1:], *(str(ROOT / name) for name in chosen)]) == 0


def commands(file: str) -> list[str]:
    """The lines of a file for CI that run edgeopt."""
    lines = (line.strip().removeprefix("- ").removeprefix("run: ") for line in (CI / file).read_text().splitlines())
    return [line for line in lines if line.startswith("edgeopt ")]


def test_the_commands_for_ci_run_as_they_are_written(tmp_path: Path) -> None:
    """In a repository whose recipe takes seconds, with the baseline of its first run on origin/main."""
    repository = tmp_path / "repository"
    text = (
        "model: model.onnx\ndata: {validation: validation.npz}\nsteps:\n  - compile: onnxruntime\n"
        "budget: {latency p50: 1 s}\nmeasure: {rounds: 8, block: 5 ms}\n"
    )
    project(repository / "recipes", text)
    (repository / "recipes" / "recipe.yaml").rename(repository / "recipes" / "fashion-mnist.yaml")
    shims = tmp_path / "bin"
    shims.mkdir()
    (shims / "edgeopt").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m edgeopt "$@"\n')
    (shims / "edgeopt").chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")},
        "PATH": f"{shims}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "EDGEOPT_CACHE": str(tmp_path / "cache"),
        "RECIPE": "recipes/fashion-mnist.yaml",
        "RUN": "runs/ci",
        "BASELINE": "origin/main:baselines/fashion-mnist.json",
    }

    def run(command: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=repository,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    github, gitlab, action = (commands(file) for file in ("github-actions.yml", "gitlab-ci.yml", "action.yml"))
    assert [line.split()[1] for line in github] == ["recipe", "convert", "check"]
    assert github[:2] == gitlab[:2]
    for command in github[:2]:
        run(command)
    named = "git -c user.name=a -c user.email=a@b -c commit.gpgsign=false"
    run("edgeopt baseline runs/ci -o baselines/fashion-mnist.json")
    run(f"git init -q && git add baselines && {named} commit -qm b && git update-ref refs/remotes/origin/main HEAD")
    run(github[2])
    run(gitlab[2])
    assert json.loads((repository / "gl-code-quality.json").read_text()) is not None
    shutil.rmtree(repository / "runs")
    for command in action:
        run(command)
    assert (repository / "check.xml").read_text().count("<failure") == 0
