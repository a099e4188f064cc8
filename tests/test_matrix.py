"""The table of formats and runtimes: every pair works or says why not, and plans agree with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeopt import compilers, formats, plan, yaml
from edgeopt.__main__ import main
from edgeopt.errors import InputError
from edgeopt.matrix import WITHOUT_SUFFIX, matrix
from edgeopt.recipe import resolve

FOUND = matrix()
PAIRS = {(pair["source"], pair["target"]): pair for pair in FOUND["pairs"]}
MODELS = {"torch": "model.py:build", "savedmodel": "folder"}


def test_every_pair_is_there():
    assert set(PAIRS) == {(source, target) for source in formats.FORMATS for target in compilers.names()}
    assert formats.FORMATS.keys() == set(formats.SUFFIXES.values()) | WITHOUT_SUFFIX.keys()


@pytest.mark.parametrize("pair", PAIRS.values(), ids=lambda pair: f"{pair['source']}-{pair['target']}")
def test_works_or_one_line_says_why_not(pair: dict[str, Any]):
    assert pair["works"] == (pair["why"] is None) == bool(pair["precisions"]) == (pair["route"] is not None)
    assert pair["works"] or (pair["why"] and "\n" not in pair["why"])


@pytest.mark.parametrize("source", formats.FORMATS)
@pytest.mark.parametrize("target", compilers.COMPILERS)
def test_plans_agree(source: str, target: str):
    suffix = next((end for end, name in formats.SUFFIXES.items() if name == source), "")
    text = f"""
model: {MODELS.get(source) or "net" + suffix}
data: {{calibration: c.npz}}
steps:
  - quantize: [none, int8]
  - compile: {target}
"""
    found = resolve(yaml.parse(text, "r.yaml"), base=Path("/base"), name="r")
    try:
        backends = {candidate.backend for candidate in plan.make(found).candidates}
    except InputError:
        backends = set()
    assert (target in backends) == PAIRS[source, target]["works"]


def test_the_table(capsys):
    assert main(["targets", "--matrix"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", *compilers.names()]
    row = next(line for line in lines if line.startswith(".tflite"))
    assert "as it is" in row and "no (2)" in row
    assert "(2) .tflite runs on tflite alone: there is no way from its format to ONNX" in lines


def test_the_document(capsys):
    assert main(["targets", "--matrix", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == FOUND


def test_targets_without_a_command(capsys):
    assert main(["targets", "--json"]) == 2
    assert "needs a command or --matrix" in capsys.readouterr().err
