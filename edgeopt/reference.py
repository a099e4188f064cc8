"""The recipe, key by key, as Markdown: drawn from the JSON Schema, so that editors and readers are told the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeopt import schema as schemas
from edgeopt.schema import units_beside

FILE = Path(__file__).parents[1] / "recipes" / "REFERENCE.md"  # in a checkout

INTRODUCTION = """\
# The recipe, key by key

Printed by `edgeopt schema recipe --markdown` from the schema that editors complete keys with.
A recipe is one YAML file; paths are relative to its own folder, and a quantity always has its unit.
Keys without a default may be left out, `model` alone may not.
"""
OF_STEPS = """\
An alternative is a name (`int8`), or a name with options (`{int8: {ranges: percentile}}`); the options of `prune` and
`distill`, which have no names, stand alone (`{channels: 30 %}`). `none` passes the model through. A list where an
option takes one value makes an alternative of each. All options may be left out.
"""
TITLES = ("key", "type", "unit", "default", "example", "meaning")
_EXAMPLE = re.compile(r"[0-9.]+ ?(%|dB|x|ms|[KMG]i?B)")
_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
}


def render(schema: Mapping[str, Any]) -> str:
    """The reference of the recipe's schema, that of `edgeopt.schema.recipe`."""
    top = schema["properties"]
    parts = [INTRODUCTION, _table(top, required=schema["required"])]
    data = top["data"]["properties"]
    source = next(one for one in next(iter(data.values()))["anyOf"] if one.get("type") == "object")
    parts += [f"## data\n\n{top['data']['description']}", _table(data)]
    parts += [f"Each is a location, or a mapping:\n\n{_table(source['properties'], required=source['required'])}"]
    for key in ("preprocess", "measure", "budget"):
        parts += [f"## {key}\n\n{top[key]['description']}", _table(top[key]["properties"])]
    device = next(one for one in top["target"]["anyOf"] if one.get("type") == "object")
    parts += [f"## target\n\n{top['target']['description']}", _table(device["properties"])]
    parts += [f"## steps\n\n{top['steps']['description']} {OF_STEPS}"]
    for stage, definition in schema["definitions"].items():
        for name, options in _alternatives(definition):
            title = f"{stage}: {name}" if name else stage
            parts += [f"### {title}\n\n{options.get('description', '')}".rstrip()]
            parts += [_table(options["properties"])] if options["properties"] else []
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def write() -> None:
    """Write the schema of recipes and its reference anew, after their code has changed."""
    schemas.write()
    FILE.write_text(render(schemas.recipe(shipped_alone=True)), encoding="utf-8")


def _alternatives(definition: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What a stage may be: names with the schemas of their options, or "" where it is told by options alone."""
    first, options = definition["anyOf"]
    if "const" in first:
        yield "", options
        return
    for name in first["enum"]:
        found = next(one for one in options["properties"][name]["anyOf"] if one.get("type") == "object")
        if name != "none":
            yield name, found


def _table(properties: Mapping[str, Any], required: list[str] | tuple[str, ...] = ()) -> str:
    rows = [_row(name, told, name in required) for name, told in properties.items()]
    shown = [place for place in range(len(TITLES)) if place in (0, 1, 5) or any(row[place] for row in rows)]
    lines = [[TITLES[place] for place in shown], ["---"] * len(shown)]
    lines += [[row[place] for place in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(name: str, told: Mapping[str, Any], required: bool) -> list[str]:
    kind, unit = _type(told)
    examples = _examples(told)
    if not unit and examples and (found := _EXAMPLE.fullmatch(str(examples[0]))):
        unit = units_beside(found[1])
    default = (
        "required" if required else _shown(told["default"]) if told.get("default") not in (None, "", [], ()) else ""
    )
    example = ", ".join(map(_shown, examples[:2]))
    return [f"`{name}`", kind, unit, default, example, str(told.get("description", ""))]


def _type(told: Mapping[str, Any]) -> tuple[str, str]:
    """What may be written, and in which unit."""
    if "anyOf" in told:
        kinds = [_type(one) for one in told["anyOf"] if one.get("type") != "null"]
        if len(kinds) == 2 and told["anyOf"][1].get("items") == told["anyOf"][0]:
            return kinds[0]  # or a list of such, which every option takes
        names = list(dict.fromkeys(kind for kind, _ in kinds))
        return " or ".join(names), next((unit for _, unit in kinds if unit), "")
    if "enum" in told:
        return ", ".join(_shown(value) for value in told["enum"]), ""
    if "title" in told:
        kind, _, unit = told["title"].partition(": ")
        return kind, unit
    if told.get("type") == "array":
        kind, unit = _type(told.get("items", {}))
        return f"list of {kind}", unit
    return f"{_KINDS.get(str(told.get('type')), 'anything')}{_bounds(told)}", ""


def _bounds(told: Mapping[str, Any]) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    told_bounds = [f"{word} {told[key]:g}" for key, word in words.items() if key in told]
    return f" {' '.join(told_bounds)}" if told_bounds else ""


def _examples(told: Mapping[str, Any]) -> list[Any]:
    if "examples" in told:
        return list(told["examples"])
    return next((found for one in told.get("anyOf", ()) if (found := _examples(one))), [])


def _shown(value: Any) -> str:
    """As a recipe has it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{text}`"
