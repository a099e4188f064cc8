"""The JSON Schemas of what edgeopt reads and writes: files in edgeopt/schemas, that of recipes made from the code.

Documents only ever gain fields: a reader that ignores what it does not know goes on working, so nothing is forbidden in
them. In a recipe an unknown key is a mistake. What a schema cannot say (that two options do not go together, that a
file is there) `edgeopt recipe check` and `edgeopt convert` say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_origin

from edgeopt import budget, catalog, compilers, stages, units
from edgeopt.errors import InputError
from edgeopt.recipe import LEAST_STEP_MEMORY_BYTES, METRICS, ROLES, MeasureOptions, unknown
from edgeopt.stages import Options

FOLDER = Path(__file__).parent / "schemas"
DRAFT = "http://json-schema.org/draft-07/schema#"
ABOUT: dict[str, str] = {
    "recipe": "a recipe, for editors and for `edgeopt recipe check`",
    "result": "choice.json, and what `convert --json` prints",
    "measurement": "a line of measurements.jsonl, and of `bench -o`",
    "check": "what `check --json` prints",
    "baseline": "the file of `edgeopt baseline`",
}

_NUMBER = r"\s*[0-9]+(\.[0-9]+)?\s*"
_UNITS: dict[Callable[..., Any], tuple[str, str]] = {
    units.parse_time: ("(ns|us|µs|\u03bcs|ms|s|m|min|h)", "5 ms"),
    units.parse_size: ("(B|kB|KB|MB|GB|KiB|MiB|GiB)", "180 MiB"),
    units.parse_fraction: ("%", "1 %"),
    units.parse_rate: (r"(/\s*s|per\s*second|Hz)", "100 /s"),
    units.parse_decibels: ("dB", "20 dB"),
    units.parse_power: ("(W|mW)", "25 W"),
}
_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 1}


def read(name: str) -> dict[str, Any]:
    """A schema by its name. Raises InputError for an unknown one."""
    if name not in ABOUT:
        raise InputError(unknown("schema", name, ABOUT), remedy="`edgeopt schema` lists them.")
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def recipe(*, shipped_alone: bool = False) -> dict[str, Any]:
    """The schema of recipes, with the stages and compilers that are installed, or those of edgeopt alone."""
    steps = tuple(stages.STAGES) if shipped_alone else _installed_stages()
    return {
        "$schema": DRAFT,
        "title": "edgeopt recipe",
        "description": "What to start from, the steps with their alternatives, the budgets.",
        "type": "object",
        "required": ["model"],
        "additionalProperties": False,
        "properties": {
            "model": {**_TEXT, "description": "A model file, or a torch factory: file.py:function. From this folder."},
            "weights": {**_TEXT, "description": "For a torch factory: .safetensors or a checkpoint."},
            "data": _object("Samples by what they are for.", {role: _source() for role in ROLES}),
            "preprocess": _object(
                "What is done to samples: transpose, then (x - mean) / std.",
                {
                    "mean": _numbers(),
                    "std": _numbers({"exclusiveMinimum": 0}),
                    "transpose": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                },
            ),
            "metric": {"enum": list(METRICS), "description": "How right a candidate is."},
            "steps": {
                "type": "array",
                "description": "Stages in order, each with one alternative or a list of which each is tried.",
                "items": {
                    "type": "object",
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": False,
                    "properties": {name: _one_or_many({"$ref": f"#/definitions/{name}"}) for name in steps},
                },
            },
            "target": {
                "description": "The device: a name, a .yaml file, or what differs from a device.",
                "anyOf": [{**_TEXT, "examples": [e.name for e in catalog.targets()]}, _target(shipped_alone)],
            },
            "budget": _object(
                "Limits that a candidate has to keep.",
                {**{name: _limit(name) for name in budget.QUANTITIES}, "latency": _limit("latency p50")},
            ),
            "prefer": {
                "description": "What decides among candidates inside the budgets, the first one first.",
                **_one_or_many({"enum": list(budget.QUANTITIES)}),
            },
            "measure": _object(
                "How candidates are timed.",
                {
                    "rounds": {"type": "integer", "minimum": 3, "default": MeasureOptions.rounds},
                    "block": {**_quantity(units.parse_time), "default": "100 ms"},
                },
            ),
            "step time limit": {**_quantity(units.parse_time), "description": "After which a step has failed."},
            "step memory limit": {
                **_quantity(units.parse_size),
                "description": f"Of a step's process; at least {units.format_size(LEAST_STEP_MEMORY_BYTES)}.",
            },
            "time": {**_quantity(units.parse_time), "description": "For the whole run: the most promising first."},
        },
        "definitions": {name: _alternative(name, shipped_alone) for name in steps},
    }


def text(schema: Mapping[str, Any]) -> str:
    """As it stands in the file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def write() -> None:
    """Write the schema of recipes anew, after its code has changed."""
    (FOLDER / "recipe.json").write_text(text(recipe(shipped_alone=True)), encoding="utf-8")


def _installed_stages() -> tuple[str, ...]:
    import importlib.metadata

    return (*stages.STAGES, *sorted(entry.name for entry in importlib.metadata.entry_points(group="edgeopt.stages")))


def _object(about: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": about,
        "additionalProperties": False,
        "properties": dict(properties),
    }


def _one_or_many(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [dict(one), {"type": "array", "items": dict(one), "minItems": 1}]}


def _numbers(bound: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return _one_or_many({"type": "number", **(bound or {})})


def _quantity(parse: Callable[..., Any]) -> dict[str, Any]:
    unit, example = _UNITS[parse]
    return {"type": "string", "pattern": f"^{_NUMBER}{unit}\\s*$", "examples": [example]}


def _limit(name: str) -> dict[str, Any]:
    quantity = budget.QUANTITIES[name]
    side = "At most." if quantity.lower_is_better else "At least."
    if quantity.parse is units.parse_count:
        whole = {"type": "integer", "minimum": 0, "examples": [int(quantity.example)]}
        return {"description": side, "anyOf": [whole, {"type": "string", "pattern": r"^\s*[0-9]+\s*$"}]}
    if name.startswith("latency"):
        classes = {"enum": list(budget.LATENCY_CLASSES_NS)}
        return {"description": side, "anyOf": [_quantity(units.parse_time), classes]}
    parse = units.parse_time if quantity.parse not in _UNITS else quantity.parse
    return {"description": side, **_quantity(parse), "examples": [quantity.example]}


def _source() -> dict[str, Any]:
    options = {
        "from": {**_TEXT, "description": "A .npz or .npy file, file.py:function, or another role."},
        "samples": {**_COUNT, "description": "How many, drawn by the seed; all where it is left out."},
        "seed": {"type": "integer", "minimum": 0, "default": 0},
        "part": {
            "type": "string",
            "pattern": f"^(first|last) {_NUMBER}%\\s*$",
            "examples": ["first 80 %", "last 20 %"],
        },
    }
    return {"anyOf": [_TEXT, {**_object("Where samples come from.", options), "required": ["from"]}]}


def _target(shipped_alone: bool) -> dict[str, Any]:
    backends = [*compilers.COMPILERS] if shipped_alone else [*compilers.names()]
    known: dict[str, dict[str, Any]] = {
        "name": _TEXT,
        "description": _TEXT,
        "arch": {"enum": list(catalog.ARCHITECTURES)},
        "cores": _COUNT,
        "memory": _quantity(units.parse_size),
        "storage": _quantity(units.parse_size),
        "accelerators": {"type": "array", "items": _TEXT},
        "precisions": {"type": "array", "items": {"enum": list(catalog.PRECISIONS)}},
        "backends": {"type": "array", "items": {**_TEXT, "examples": backends}},
        "isa": {"type": "array", "items": _TEXT},
        "power": _quantity(units.parse_power),
        "tier": {"enum": list(catalog.TIERS)},
        "reach": {"type": "object", "examples": [{"local": True}, {"ssh": "user@host", "port": 22}]},
        "python": _TEXT,
        "threads": _COUNT,
    }
    base = {"enum": [entry.name for entry in catalog.targets()], "description": "The device to start from."}
    ssh = {
        "ssh": {**_TEXT, "description": "Where it is measured, as ssh takes it.", "examples": ["pi@192.168.1.20"]},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "key": {**_TEXT, "description": "A private key, from / or ~/."},
        "known_hosts": {**_TEXT, "description": "A file of host keys in place of the user's, from / or ~/."},
    }
    fields = {name: known[name] for name in catalog.FIELDS} | {name: ssh[name] for name in catalog.SSH}
    return _object("What differs from a device.", {"base": base, **fields})


def _alternative(stage: str, shipped_alone: bool) -> dict[str, Any]:
    choices = stages.find(stage).choices()
    names: Iterable[str] = choices
    if stage == "compile" and shipped_alone:
        names = compilers.COMPILERS
    if list(choices) == [""]:
        return {"anyOf": [{"const": "none"}, _options(choices[""])]}
    options = {name: {"anyOf": [_options(choices[name]), {"type": "null"}]} for name in names}
    named = {**_object("An alternative with its options.", options), "minProperties": 1}
    return {"anyOf": [{"enum": list(names)}, named]}


def _options(kind: type[Options]) -> dict[str, Any]:
    """The options of an alternative. A list where a single value is due makes an alternative of each."""
    found = kind.model_json_schema()
    properties = {}
    for name, schema in found.get("properties", {}).items():
        told = {key: value for key, value in schema.items() if key != "title"}
        annotation = kind.model_fields[name].annotation
        if get_origin(annotation) not in (list, tuple, set, frozenset):
            default = {"default": told.pop("default")} if "default" in told else {}
            told = {**_one_or_many(told), **default}
        properties[name] = told
    about = "" if kind is Options else " ".join((kind.__doc__ or "").split())
    return {
        **_object(about, properties),
        **({"required": found["required"]} if "required" in found else {}),
    }
