"""What the command line asks for, as a recipe: a file with flags over it, or a model with a level that ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeopt import catalog, yaml
from edgeopt.errors import InputError
from edgeopt.recipe import CALIBRATION_SAMPLES, Recipe, resolve

DEFAULT_LEVEL = "full"
TRAINING_SHARE = 80  # % of the samples of --data, where a level trains


def read_recipe(
    what: str,
    *,
    level: str | None,
    target: str | None,
    data: str | None,
    weights: str | None,
    budget: Sequence[str],
    time: str | None = None,
    base: Path,
) -> Recipe:
    """A recipe file, or a model with a level; flags that are given go over what the file says."""
    if what.endswith((".yaml", ".yml")):
        for flag, value, key in (
            ("--level", level, "steps"),
            ("--data", data, "data"),
            ("--weights", weights, "weights"),
        ):
            if value is not None:
                raise InputError(
                    f"{flag} is for a model without a recipe",
                    remedy=f"Leave {flag} out, and change `{key}:` in {what}.",
                )
        document = _with_flags(yaml.load(Path(what)), {"target": target, "time": time}, _limits(budget))
        return resolve(document, base=Path(what).resolve().parent, name=Path(what).stem)
    shipped = catalog.level(level or DEFAULT_LEVEL)
    written: dict[str, Any] = {
        "model": what,
        "weights": weights,
        "data": _roles(data, trains=any("distill" in step for step in shipped["steps"])) if data else None,
        "steps": shipped["steps"],
        "target": target,
        "time": time,
        "budget": {**shipped.get("budget", {}), **_limits(budget)} if data else _limits(budget),
    }
    written = {key: value for key, value in written.items() if value is not None}
    name = Path(what.rpartition(":")[0] or what).stem
    flags = {(key,): f"--{key}" for key in ("weights", "data", "target", "time", "budget")}
    document = yaml.Document("command line", written, flags=flags)
    return resolve(document, base=base, name=name, of_a_level=True)


def of_mapping(
    recipe: Mapping[str, Any], *, target: str | None, budget: Sequence[str], time: str | None, base: Path
) -> Recipe:
    """A recipe that is a mapping already, as its YAML would read; what else is given goes over what it says."""
    document = _with_flags(yaml.Document("recipe", dict(recipe)), {"target": target, "time": time}, _limits(budget))
    return resolve(document, base=base, name="recipe")


def _roles(data: str, *, trains: bool) -> dict[str, Any]:
    """What samples of unknown purpose are taken for. Those that train or calibrate a training never validate it."""
    if not trains:
        return {"calibration": {"from": data, "samples": CALIBRATION_SAMPLES}, "validation": data}
    return {
        "train": {"from": data, "part": f"first {TRAINING_SHARE} %"},
        "validation": {"from": data, "part": f"last {100 - TRAINING_SHARE} %"},
    }


def _with_flags(document: yaml.Document, keys: Mapping[str, str | None], limits: Mapping[str, str]) -> yaml.Document:
    """A recipe's document in which options of the command line stand over what the file says."""
    if not isinstance(document.value, dict):
        return document
    value, flags = dict(document.value), dict(document.flags)
    for key, text in keys.items():
        if text is not None:
            value[key] = text
            flags[key,] = f"--{key}"
    written = value.get("budget") or {}
    if limits and isinstance(written, dict):
        value["budget"] = {**written, **limits}
        flags.update({("budget", name): "--budget" for name in limits})
    return replace(document, value=value, flags=flags)


def _limits(budget: Sequence[str]) -> dict[str, str]:
    limits = {}
    for text in budget:
        name, equals, bound = text.partition("=")
        if not equals:
            raise InputError(f"--budget {text!r}: write it like --budget 'latency p95=5 ms'")
        limits[name.strip()] = bound.strip()
    return limits
