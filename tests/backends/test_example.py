"""The example of another package is what the README shows, and a recipe takes what it publishes."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

import command
import example
import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
CODE = example.FOLDER / "edgeopt_reference" / "backend.py"
RECIPE = """
model: model.onnx
data: {validation: validation.npz}
steps:
  - round: {bits: 7}
  - compile: [onnxruntime, reference]
measure: {rounds: 3, block: 5 ms}
"""


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_readme_shows_the_whole_backend() -> None:
    assert CODE.read_text() in fenced("python")


def test_the_readme_shows_how_it_is_published() -> None:
    published = configparser.ConfigParser()
    published.read(example.FOLDER / "edgeopt_reference-1.dist-info" / "entry_points.txt")
    shown = configparser.ConfigParser()
    shown.read_string(next(block for block in fenced("toml") if "edgeopt.backends" in block))
    wanted = {f'project.entry-points."{group}"': dict(published[group]) for group in published.sections()}
    assert {name: {key: json.loads(value) for key, value in shown[name].items()} for name in shown.sections()} == wanted


def test_a_recipe_takes_its_stage_and_its_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PLUGIN", example.FOLDER)
    found = command.convert(command.project(tmp_path / "p", RECIPE), tmp_path / "cache")
    rounded = command.candidate(found, "round7-reference")
    assert rounded["artifact"]["format"] == "onnx"
    assert rounded["quality"]["sqnr_db"] > 30
    assert command.candidate(found, "reference")["quality"]["sqnr_db"] > 80
    assert rounded["latency_ns"]["p50"] is not None
