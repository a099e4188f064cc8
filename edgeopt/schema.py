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
from edgeopt.profile import BATCHES
from edgeopt.recipe import LEAST_STEP_MEMORY_BYTES, METRICS, ROLES, MeasureOptions, unknown
from edgeopt.stages import Options
from edgeopt.target import Target

FOLDER = Path(__file__).parent / "schemas"
DRAFT = "http://json-schema.org/draft-07/schema#"
ABOUT: dict[str, str] = {
    "recipe": "a recipe, for editors and for `edgeopt recipe check`",
    "result": "choice.json, and what `convert --json` prints",
    "measurement": "a line of measurements.jsonl, and of `bench -o`",
    "check": "what `check --json` prints",
    "baseline": "the file of `edgeopt baseline`",
    "compare": "what `compare --json` prints",
}

_NUMBER = r"\s*[0-9]+(\.[0-9]+)?\s*"
_UNITS: dict[Callable[..., Any], tuple[str, str, str]] = {  # the pattern of the unit, what it measures, an example
    units.parse_time: ("(ns|us|µs|\u03bcs|ms|s|m|min|h)", "time: ns, us, ms, s, min, h", "5 ms"),
    units.parse_size: ("(B|kB|KB|MB|GB|KiB|MiB|GiB)", "size: B, KB, MB, GB, KiB, MiB, GiB", "180 MiB"),
    units.parse_fraction: ("%", "share: %", "1 %"),
    units.parse_rate: (r"(/\s*s|per\s*second|Hz)", "rate: /s", "100 /s"),
    units.parse_decibels: ("dB", "ratio: dB", "20 dB"),
    units.parse_power: ("(W|mW)", "power: W, mW", "25 W"),
}
_ROLES = {
    "train": "What training sees; also calibration where there is none.",
    "calibration": "What ranges of activations and statistics are taken from; without it 300 of the training samples.",
    "tuning": "What a step judges itself on; else the training samples, else those of calibration.",
    "validation": "What candidates are judged on, with `labels` beside the inputs for accuracy.",
    "timing": "Inputs for timing alone, where there is no other data: nothing is judged on them.",
}
_CHANNELS = "one number, or one for each channel."
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
            "model": {
                **_TEXT,
                "description": "A model: .onnx, .pt2, TorchScript, .keras, .h5, .tflite, OpenVINO's .xml, a SavedModel "
                "folder, or a torch factory, file.py:function or package.module:function.",
                "examples": ["model.onnx", "model.py:build"],
            },
            "weights": {
                **_TEXT,
                "description": "For a torch factory: .safetensors, or a checkpoint that loads with weights_only.",
                "examples": ["weights.safetensors"],
            },
            "data": _object("Samples by what they are for.", {role: _source(_ROLES[role]) for role in ROLES}),
            "preprocess": _object(
                "What is done to samples: transpose, then (x - mean) / std.",
                {
                    "mean": {**_numbers(), "description": f"Subtracted: {_CHANNELS}", "examples": [73]},
                    "std": {
                        **_numbers({"exclusiveMinimum": 0}),
                        "description": f"Then divided by: {_CHANNELS}",
                        "examples": [90],
                    },
                    "transpose": {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 0},
                        "minItems": 1,
                        "description": "First, a sample's own axes in another order: this one turns HWC into CHW.",
                        "examples": [[2, 0, 1]],
                    },
                },
            ),
            "metric": {
                "enum": list(METRICS),
                "description": "How right a candidate is: top1 and top5 with labels, agreement and sqnr with the "
                "original. Where left out, top1 with labels, else agreement.",
            },
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
                "default": "host",
                "anyOf": [{**_TEXT, "examples": [e.name for e in catalog.targets()]}, _target(shipped_alone)],
            },
            "budget": _object(
                "Limits that a candidate has to keep. Of latencies "
                + ", ".join(f"{n} is {units.format_time(ns)}" for n, ns in budget.LATENCY_CLASSES_NS.items())
                + ".",
                {
                    **{name: _limit(name) for name in budget.QUANTITIES},
                    "latency": {**_limit("latency p50"), "description": "At most, the p50."},
                },
            ),
            "prefer": {
                "description": "What decides among candidates inside the budgets, the first one first.",
                "default": "latency p50",
                **_one_or_many({"enum": list(budget.QUANTITIES)}),
            },
            "measure": _object(
                "How candidates are timed.",
                {
                    "rounds": {
                        "type": "integer",
                        "minimum": 3,
                        "default": MeasureOptions.rounds,
                        "description": "In each, every candidate runs one block.",
                    },
                    "block": {
                        **_quantity(units.parse_time),
                        "default": "100 ms",
                        "description": "How long a candidate runs at a time, and never under five calls.",
                    },
                    "batches": {
                        "anyOf": [_COUNT, {"type": "array", "items": _COUNT}],
                        "description": "Batch sizes of the winner's batch curve; else those of the target.",
                        "examples": [[1, 8, 32]],
                    },
                },
            ),
            "step time limit": {
                **_quantity(units.parse_time),
                "description": "After which a step has failed.",
                "default": "30 min",
            },
            "step memory limit": {
                **_quantity(units.parse_size),
                "description": "Beyond which a step's process has failed, at least "
                f"{units.format_size(LEAST_STEP_MEMORY_BYTES)}; four fifths of the machine's where left out.",
            },
            "time": {
                **_quantity(units.parse_time),
                "description": "For the whole run: the most promising first, what there is no time for is skipped.",
            },
        },
        "definitions": {name: _alternative(name, shipped_alone) for name in steps},
    }


def units_beside(unit: str) -> str:
    """All units of what a unit measures: "ns, us, ms, s, min, h" of "ms"; itself where it stands alone."""
    known = [title.partition(": ")[2] for _, title, _ in _UNITS.values()]
    return next((units for units in known if unit in units.split(", ")), unit)


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
    unit, title, example = _UNITS[parse]
    return {"type": "string", "title": title, "pattern": f"^{_NUMBER}{unit}\\s*$", "examples": [example]}


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


def _source(about: str) -> dict[str, Any]:
    options = {
        "from": {
            **_TEXT,
            "description": "A .npz or .npy file, file.py:function that returns arrays, or another role.",
            "examples": ["train.npz", "train"],
        },
        "samples": {**_COUNT, "description": "How many, drawn by the seed; all where it is left out."},
        "seed": {"type": "integer", "minimum": 0, "default": 0, "description": "Of what is drawn."},
        "part": {
            "type": "string",
            "description": "What is drawn from, in an order shuffled once: first 80 % and last 20 % share no sample.",
            "pattern": f"^(first|last) {_NUMBER}%\\s*$",
            "examples": ["first 80 %", "last 20 %"],
        },
    }
    mapping = {**_object("Where samples come from.", options), "required": ["from"]}
    return {"description": about, "anyOf": [{**_TEXT, "examples": ["samples.npz"]}, mapping]}


def _target(shipped_alone: bool) -> dict[str, Any]:
    backends = [*compilers.COMPILERS] if shipped_alone else [*compilers.names()]
    known: dict[str, dict[str, Any]] = {
        "name": {**_TEXT, "description": "What reports call it."},
        "description": {**_TEXT, "description": "One line for `edgeopt targets list`."},
        "arch": {"enum": list(catalog.ARCHITECTURES), "description": "Of its processor; read off the machine."},
        "cores": {**_COUNT, "description": "Of its processor; read off the machine."},
        "memory": {**_quantity(units.parse_size), "description": "Of the device; read off the machine."},
        "storage": {**_quantity(units.parse_size), "description": "Of the device."},
        "accelerators": {"type": "array", "items": _TEXT, "description": "Chips beside the processor."},
        "precisions": {
            "type": "array",
            "items": {"enum": list(catalog.PRECISIONS)},
            "description": "What it computes fast in.",
        },
        "backends": {
            "type": "array",
            "items": {**_TEXT, "examples": backends},
            "description": "Runtimes that are there, the best one first: what a recipe without `compile` tries.",
        },
        "isa": {
            "type": "array",
            "items": _TEXT,
            "description": "Instruction sets that matter to quantization; read off the machine.",
            "examples": [["avx2", "avx512_vnni"]],
        },
        "power": {**_quantity(units.parse_power), "description": "Of the device at full speed."},
        "tier": {"enum": list(catalog.TIERS), "description": "What does the work."},
        "reach": {
            "type": "object",
            "description": "How it is reached; `ssh` below says it in short.",
            "examples": [{"local": True}, {"ssh": "user@host", "port": 22}],
        },
        "python": {**_TEXT, "description": "The interpreter that measures.", "examples": ["/usr/bin/python3"]},
        "threads": {**_COUNT, "default": Target.threads, "description": "Threads of inference."},
        "batches": {
            "type": "array",
            "items": _COUNT,
            "default": list(BATCHES),
            "description": "Batch sizes of the winner's batch curve.",
        },
        "runtimes": {
            "type": "object",
            "propertyNames": {"examples": backends},
            "additionalProperties": {"type": "object"},
            "description": "Options of compile steps, by runtime, for recipes that leave them open.",
            "examples": [{"openvino": {"hint": "throughput", "streams": 2}}],
        },
    }
    base = {"enum": [entry.name for entry in catalog.targets()], "description": "The device to start from."}
    ssh = {
        "ssh": {**_TEXT, "description": "Where it is measured, as ssh takes it.", "examples": ["pi@192.168.1.20"]},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535, "description": "Of the SSH server."},
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
            outside = {key: told.pop(key) for key in ("description", "default", "examples") if key in told}
            told = {**outside, **_one_or_many(told)}
        properties[name] = told
    about = "" if kind is Options else " ".join((kind.__doc__ or "").split())
    return {
        **_object(about, properties),
        **({"required": found["required"]} if "required" in found else {}),
    }
