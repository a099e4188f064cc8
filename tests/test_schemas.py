"""The published JSON Schemas: those made from code are as the code says, and real documents keep to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_check import write_run
from test_recipe_check import known_keys
from test_reports import hostile, measurement, result

from edgeopt import budget, catalog, recipe, schema, units, yaml
from edgeopt.__main__ import main
from edgeopt.errors import EdgeoptError

jsonschema = pytest.importorskip("jsonschema", reason="the extra `test` brings check-jsonschema")

ROOT = Path(__file__).parents[1]


def validator(name: str, *, closed: bool = False) -> Any:
    """A schema's validator; closed, what the schema does not name is a mistake too."""
    told = schema.read(name)
    jsonschema.Draft7Validator.check_schema(told)
    return jsonschema.Draft7Validator(_closed(told) if closed else told)


def _closed(told: Any) -> Any:
    if isinstance(told, list):
        return [_closed(one) for one in told]
    if not isinstance(told, dict):
        return told
    inner = {key: _closed(value) for key, value in told.items()}
    return {"additionalProperties": False, **inner} if "properties" in told and told.get("type") == "object" else inner


def mistakes(name: str, document: Any, *, closed: bool = True) -> list[str]:
    found = validator(name, closed=closed).iter_errors(json.loads(json.dumps(document)))
    return [f"{list(error.absolute_path)}: {error.message[:200]}" for error in found]


def of_recipe(text: str) -> list[str]:
    return mistakes("recipe", yaml.parse(text, "r.yaml").value, closed=False)


def test_the_folder_holds_the_schemas_that_are_listed() -> None:
    assert sorted(schema.ABOUT) == sorted(path.stem for path in schema.FOLDER.glob("*.json"))


def test_the_recipe_s_schema_is_that_of_the_code() -> None:
    """After a change: python -c "from edgeopt import reference; reference.write()"."""
    assert (schema.FOLDER / "recipe.json").read_text() == schema.text(schema.recipe(shipped_alone=True))


@pytest.mark.parametrize("name", ["schema", *schema.ABOUT])
def test_the_command_prints_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--json"] if name == "schema" else ["schema", name]) == 0
    assert json.loads(capsys.readouterr().out)


def test_an_unknown_schema_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "recipes"]) == 2
    assert "did you mean 'recipe'?" in capsys.readouterr().err


# Documents


@pytest.mark.parametrize("make", [result, hostile])
def test_results_keep_to_their_schema(make: Any) -> None:
    assert not mistakes("result", make())


def test_measurements_keep_to_their_schema() -> None:
    assert not mistakes("measurement", json.loads(measurement("onnxruntime", 1.0).to_line()))


def test_checks_and_baselines_keep_to_their_schemas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, base = str(write_run(tmp_path / "run")), tmp_path / "base.json"
    assert main(["baseline", run, "-o", str(base)]) == 0
    capsys.readouterr()
    assert main(["check", run, "--baseline", str(base), "--json"]) == 0
    assert not mistakes("check", json.loads(capsys.readouterr().out))
    assert not mistakes("baseline", json.loads(base.read_text()))


def test_a_closed_schema_sees_what_is_not_in_it() -> None:
    assert mistakes("result", result(more=1))
    assert not mistakes("result", result(more=1), closed=False)
    assert mistakes("result", {**result(), "winner": 1})


# Recipes


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_keep_to_the_schema_and_name_it_for_editors(path: Path) -> None:
    text = path.read_text()
    assert not of_recipe(text)
    line = next(line for line in text.splitlines() if line.startswith("# yaml-language-server: $schema="))
    assert (path.parent / line.partition("=")[2]).resolve() == schema.FOLDER / "recipe.json"


@pytest.mark.parametrize("entry", catalog.levels(), ids=lambda entry: entry.name)
def test_levels_keep_to_the_schema(entry: catalog.Entry) -> None:
    level = catalog.level(entry.name)
    document = {"model": "m.onnx", "steps": level["steps"], "budget": level.get("budget", {})}
    assert not mistakes("recipe", document, closed=False)


GOOD = [
    "model: m.onnx",
    "{model: m.py:build, weights: w.safetensors, metric: top5, target: {base: host, memory: 4 GiB, threads: 2}}",
    "{model: m.onnx, data: {train: t.npz, calibration: {from: train, samples: 3, seed: 0, part: first 80 %}}}",
    "{model: m.onnx, preprocess: {mean: [1, 2.5], std: 90, transpose: [2, 0, 1]}}",
    "{model: m.onnx, steps: [{prune: {channels: [30 %, 50 %], importance: [l2, bn]}}, {distill: {epochs: 3}}]}",
    "{model: m.onnx, steps: [{quantize: int8}, {compile: [tflite, {openvino: {precision: [bf16, auto]}, tflite: }]}]}",
    "{model: m.onnx, steps: [{quantize: [{int8: {ignore: [a.*]}}]}]}",
    "{model: m.onnx, budget: {latency: near-real-time, throughput: 10 per second, size: 2 MB}, prefer: [size]}",
    "{model: m.onnx, measure: {rounds: 5, block: 20 ms}, step time limit: 10 min, step memory limit: 2 GiB, time: 1h}",
]
BAD = [
    "{}",
    "{modle: m.onnx}",
    "{model: 5}",
    "{model: m.onnx, metric: top3}",
    "{model: m.onnx, data: {trian: t.npz}}",
    "{model: m.onnx, data: {train: {samples: 3}}}",
    "{model: m.onnx, data: {train: {from: t.npz, samples: 0}}}",
    "{model: m.onnx, data: {train: {from: t.npz, part: middle 3 %}}}",
    "{model: m.onnx, preprocess: {std: 0}}",
    "{model: m.onnx, steps: {quantize: int8}}",
    "{model: m.onnx, steps: [{quantise: int8}]}",
    "{model: m.onnx, steps: [{quantize: int4}]}",
    "{model: m.onnx, steps: [{quantize: []}]}",
    "{model: m.onnx, steps: [{quantize: int8, compile: tflite}]}",
    "{model: m.onnx, steps: [{quantize: {int8: {ignored: [a]}}}]}",
    "{model: m.onnx, steps: [{compile: {openvino: {precision: [bf17]}}}]}",
    "{model: m.onnx, budget: {latency: 5}}",
    "{model: m.onnx, budget: {latency: 5 MB}}",
    "{model: m.onnx, budget: {speed: 5 ms}}",
    "{model: m.onnx, prefer: speed}",
    "{model: m.onnx, measure: {rounds: 2}}",
    "{model: m.onnx, step time limit: soon}",
]


def is_right(text: str) -> bool:
    """What the reader of recipes says."""
    try:
        recipe.resolve(yaml.parse(text, "r.yaml"), base=Path("/base"), name="r")
    except EdgeoptError:
        return False
    return True


@pytest.mark.parametrize("text", GOOD)
def test_schema_and_reader_take_the_same(text: str) -> None:
    assert is_right(text)
    assert not of_recipe(text)


@pytest.mark.parametrize("text", BAD)
def test_schema_and_reader_refuse_the_same(text: str) -> None:
    assert not is_right(text)
    assert of_recipe(text)


@pytest.mark.parametrize("place", [(), ("data",), ("preprocess",), ("measure",), ("target",)])
def test_the_schema_has_every_key_that_the_reader_knows(place: tuple[str, ...]) -> None:
    told = schema.read("recipe")
    for key in place:
        told = told["properties"][key]
    told = told if "properties" in told else told["anyOf"][1]
    assert set(told["properties"]) == (
        {"base", *catalog.FIELDS, *catalog.SSH} if place == ("target",) else known_keys(*place)
    )


def test_the_schema_has_every_quantity() -> None:
    assert set(schema.read("recipe")["properties"]["budget"]["properties"]) == {*budget.QUANTITIES, "latency"}


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (units.parse_time, ["5 ns", "5us", "5 µs", "5 \u03bcs", "5 ms", "1.5 s", "5 m", "5 min", "5h"]),
        (units.parse_size, ["5 B", "5 kB", "5 KB", "5MB", "5 GB", "5 KiB", "5 MiB", "5 GiB"]),
        (units.parse_fraction, ["5 %", "0.5%"]),
        (units.parse_rate, ["5 /s", "5/s", "5 per second", "5 Hz"]),
        (units.parse_decibels, ["5 dB"]),
        (units.parse_power, ["5 W", "500 mW"]),
    ],
)
def test_patterns_take_what_is_parsed(parse: Any, texts: list[str]) -> None:
    check = jsonschema.Draft7Validator(schema._quantity(parse))
    for text in texts:
        parse(text)
        assert check.is_valid(text)
    for text in ("5", "ms", "-5 ms", "5 parsecs", ""):
        assert not check.is_valid(text)
        with pytest.raises(ValueError):
            parse(text)
