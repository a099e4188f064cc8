"""What edgeopt ships as data: target devices, optimization levels and example recipes, by name.

A target is a YAML file with the fields of `edgeopt.target.Target` as people write them (`memory: 8 GiB`). One that
starts from a shipped target says `base: raspberry-pi-5` and what differs. A level is the steps and budget of a recipe
for models that come without one. This module knows nothing of what steps and budgets mean.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from edgeopt import backends, compilers, units, yaml
from edgeopt.errors import InputError, RecipeError
from edgeopt.target import Target

PACKAGE = Path(__file__).parent
ARCHITECTURES = ("x86_64", "aarch64")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
TIERS = ("cpu", "gpu", "npu")


class Entry(NamedTuple):
    """Something shipped. `about` is its description, for a recipe its first line of comment."""

    name: str
    path: Path
    about: str


def targets() -> tuple[Entry, ...]:
    """The shipped devices."""
    return _described(PACKAGE / "targets")


def levels() -> tuple[Entry, ...]:
    """The shipped optimization levels."""
    return _described(PACKAGE / "levels")


def recipes() -> tuple[Entry, ...]:
    """The shipped example recipes: beside the package in a checkout, inside it where it was installed from a wheel."""
    inside = PACKAGE / "recipes"
    folder = inside if inside.is_dir() else PACKAGE.parent / "recipes"
    return tuple(Entry(path.stem, path, _first_comment(path)) for path in sorted(folder.glob("*.yaml")))


def target(name_or_path: str) -> Target:
    """A device by its shipped name, or from a file of one's own. Raises InputError with file and line."""
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return read_target(Path(name_or_path))
    return read_target(_named(name_or_path, targets(), "target", "or give the path of a YAML file of your own").path)


def level(name: str) -> dict[str, Any]:
    """{"description": text, "steps": [...], "budget": {...}} as in a recipe. Raises InputError for an unknown name."""
    value: dict[str, Any] = yaml.load(_named(name, levels(), "level").path).value
    return value


def recipe(name: str) -> Path:
    """The file of a shipped recipe. Raises InputError for an unknown name."""
    return _named(name, recipes(), "recipe").path


def read_target(path: Path) -> Target:
    """The device in a YAML file, named after the file by default. Raises RecipeError: every mistake with its line."""
    document = yaml.load(path)
    if not isinstance(document.value, Mapping):
        raise InputError("a target is a mapping, such as 'memory: 8 GiB'", where=document.where(()))
    found, problems = _fields(document.value)
    if problems:
        raise RecipeError([f"{document.where((key,))}: {message}" for key, message in problems.items()])
    return Target(**{"name": path.stem, **found})


def target_from(written: Mapping[str, Any], *, base: str = "host", where: str | None = None) -> Target:
    """The device of a mapping inside another file: what differs from the shipped target `base`, whose name it keeps
    (one reached by SSH that is like no shipped one has the name of its host).

    Raises InputError with every mistake, at `where`.
    """
    found, problems = _fields({"base": base, **written})
    if problems:
        raise InputError("; ".join(problems.values()), where=where)
    if written.get("base", base) == "host" and "ssh" in found.get("reach", {}):
        there = found["reach"]["ssh"]
        found = {"name": there.rpartition("@")[2], **found, "description": f"Reached by SSH as {there}"}
    return Target(**{"name": base, **found})


def _fields(written: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The constructor's arguments that a mapping stands for, and a message for each key that is wrong."""
    found: dict[str, Any] = {}
    problems: dict[str, str] = {}
    reach: dict[str, Any] = {}
    for key, value in written.items():
        try:
            if key == "base":
                shipped = read_target(_named(_text(value), targets(), "target").path)
                found = {
                    **{one.name: getattr(shipped, one.name) for one in fields(shipped) if one.name != "name"},
                    **found,
                }
            elif key in FIELDS:
                name, parse = FIELDS[key]
                found[name] = parse(value)
            elif key in SSH:
                reach[key] = SSH[key](value)
            else:
                problems[key] = f"{key!r} is not a field of a target{_did_you_mean(key, ('base', *FIELDS, *SSH))}"
        except InputError as error:
            problems[key] = f"{key}: {error.message}"
        except ValueError as error:
            problems[key] = f"{key}: {error}"
    if "ssh" in written and "reach" in written:
        problems["reach"] = "reach: ssh says it already"
    elif reach and "ssh" not in written:
        problems[min(reach)] = f"{min(reach)}: needs ssh: user@host beside it"
    elif reach:
        found["reach"] = reach
    return found, problems


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not text")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a count: write a whole number above 0")
    return value


def _one_of(known: Iterable[str]) -> Callable[[object], str]:
    names = tuple(known)

    def parse(value: object) -> str:
        if value not in names:
            raise ValueError(f"unknown {value!r}{_did_you_mean(str(value), names) or ', one of ' + ', '.join(names)}")
        return str(value)

    return parse


def _list_of(item: Callable[[object], Any]) -> Callable[[object], tuple[Any, ...]]:
    def parse(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is not a list: write it like [{value}]")
        return tuple(item(element) for element in value)

    return parse


def _reach(value: object) -> dict[str, Any]:
    if isinstance(value, dict):
        if value in ({}, {"local": True}):
            return value
        if "ssh" in value and value.keys() <= SSH.keys():
            return {key: SSH[key](told) for key, told in value.items()}
    raise ValueError(
        f"{value!r} is no way to reach it: write {{local: true}}, or {{ssh: user@host}} with port, key, known_hosts"
    )


def _host(value: object) -> str:
    """A host as `ssh` takes it: nothing that could be an option, or that a shell would read."""
    if not HOST.fullmatch(_text(value)):
        has_port = re.fullmatch(r"[^:]+:\d+", str(value))
        told = "write the port as port: 22" if has_port else "write user@host, or an alias"
        raise ValueError(f"{value!r} is no host: {told}")
    return str(value)


def _port(value: object) -> int:
    if _count(value) > 65535:
        raise ValueError(f"{value!r} is no port: they go up to 65535")
    return _count(value)


def _file(value: object) -> str:
    if not _text(value).startswith(("/", "~/")) or '"' in str(value):
        raise ValueError(f"{value!r} is not a whole path: begin with / or ~/")
    return str(value)


def _runtimes(value: object) -> dict[str, dict[str, Any]]:
    """Options of compile steps by runtime, checked as a recipe's are."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a mapping: write it like {{openvino: {{hint: throughput}}}}")
    for name, options in value.items():
        kind = compilers.find(_one_of(compilers.names())(name)).CompileOptions
        try:
            kind.model_validate(options)
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            option = ".".join(map(str, wrong["loc"]))
            if wrong["type"] == "extra_forbidden":
                raise ValueError(f"{name} has no option {option!r}{_did_you_mean(option, kind.model_fields)}") from None
            raise ValueError(f"{name}: {option}: {wrong['msg']}, not {wrong['input']!r}") from None
    return value


def _backend(value: object) -> str:
    published = importlib.metadata.entry_points(group="edgeopt.backends")
    return _one_of((*backends.names(), *(entry.name for entry in published)))(value)


HOST = re.compile(r"(?:\w[\w.-]*@)?(?:\w[\w.-]*|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+(?:%\w+)?)", re.ASCII)
SSH: dict[str, Callable[[object], Any]] = {"ssh": _host, "port": _port, "key": _file, "known_hosts": _file}
FIELDS: dict[str, tuple[str, Callable[[object], Any]]] = {
    "name": ("name", _text),
    "description": ("description", _text),
    "arch": ("arch", _one_of(ARCHITECTURES)),
    "cores": ("cores", _count),
    "memory": ("memory_bytes", units.parse_size),
    "storage": ("storage_bytes", units.parse_size),
    "accelerators": ("accelerators", _list_of(_text)),
    "precisions": ("precisions", _list_of(_one_of(PRECISIONS))),
    "backends": ("backends", _list_of(_backend)),
    "isa": ("isa", _list_of(_text)),
    "power": ("power_watts", units.parse_power),
    "tier": ("tier", _one_of(TIERS)),
    "reach": ("reach", _reach),
    "python": ("python", _text),
    "threads": ("threads", _count),
    "batches": ("batches", _list_of(_count)),
    "runtimes": ("runtimes", _runtimes),
}


def _described(folder: Path) -> tuple[Entry, ...]:
    paths = sorted(folder.glob("*.yaml"))
    return tuple(Entry(path.stem, path, str(yaml.load(path).value["description"])) for path in paths)


def _first_comment(path: Path) -> str:
    with open(path, encoding="utf-8") as file:
        first = file.readline().strip()
    return first.lstrip("# ") if first.startswith("#") else ""


def _named(name: str, entries: tuple[Entry, ...], what: str, otherwise: str = "") -> Entry:
    for entry in entries:
        if entry.name == name:
            return entry
    names = [entry.name for entry in entries]
    remedy = f"{what.capitalize()}s: {', '.join(names)}{'; ' + otherwise if otherwise else ''}."
    raise InputError(f"there is no {what} {name!r}{_did_you_mean(name, names)}", remedy=remedy)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""
