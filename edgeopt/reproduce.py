"""A run done again from its run.json, and held against it: what differs around it, and the digest of every step.

Everything is built anew, in a cache of its own beside the usual one: what is already stored would prove nothing. That
cache stays until the run is finished, so that an interrupted one goes on. Times are measured again, and not compared:
`edgeopt check` does that.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import __version__, devices, jsontext, run, yaml
from edgeopt.conditions import Machine
from edgeopt.errors import EdgeoptError, InputError, RegressionError
from edgeopt.nearby import nearby
from edgeopt.recipe import Recipe, resolve
from edgeopt.report.live import Display
from edgeopt.store import default_root
from edgeopt.text import plain

if TYPE_CHECKING:
    from rich.console import Console

LOCK = "run.json"
SCHEMA = 1
SHOWN = 12  # characters of a digest, for people


def read(path: Path) -> dict[str, Any]:
    """A run.json, or that of a run's folder. Raises InputError where it is none, or of an edgeopt that told less."""
    path = path / LOCK if path.is_dir() else path
    try:
        found = jsontext.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is not there", remedy=nearby(path, "Give the run.json of a run.")) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", remedy="Give the run.json of a run.") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("steps"), list):
        raise InputError("this is no run.json", where=str(path), remedy="Give the run.json of a run.")
    if not isinstance(found.get("recipe"), dict) or not found["recipe"].get("folder"):
        raise InputError(
            "it does not say which folder its recipe was in: an older edgeopt wrote it",
            where=str(path),
            remedy="Convert the recipe once more: that run can be reproduced.",
        )
    told = found["recipe"]
    whole = all(isinstance(told.get(key), str) for key in ("folder", "name")) and "document" in told
    if not whole or not all(isinstance(step, dict) for step in found["steps"]):
        raise InputError("this run.json is damaged", where=str(path), remedy="Give the run.json of a run.")
    return {**found, "place": str(path)}


def recipe_of(lock: Mapping[str, Any]) -> Recipe:
    """The recipe as it was, from the folder where it was. Raises RecipeError where this edgeopt refuses it."""
    told = lock["recipe"]
    document = yaml.Document(Path(lock["place"]).name, told["document"])
    return resolve(document, base=Path(told["folder"]), name=told["name"], of_a_level=bool(told.get("of_a_level")))


def surroundings(lock: Mapping[str, Any], recipe: Recipe) -> list[dict[str, Any]]:
    """What is not as it was, as far as can be told before anything is built: versions, and the machine."""
    found = _differences({"edgeopt": lock.get("edgeopt")}, {"edgeopt": __version__})
    tools: dict[str, Any] = {}
    for step in lock["steps"]:
        tools |= step.get("inputs", {}).get("tools", {})
    found += _differences(tools, {name: _version(name) for name in tools})
    if lock.get("machine"):
        before, now = Machine.from_json(lock["machine"]), devices.find(recipe.target).machine()
        if before.differences(now):
            found += _differences(before.to_json(), now.to_json(), "machine.")
    return found


def reproduce(lock: Mapping[str, Any], recipe: Recipe, *, output: Path | None, display: Display) -> dict[str, Any]:
    """Do the run again, and compare. The document: `surroundings`, `differences` of what went in, `steps` with both
    digests, `same`, `exit_code`.

    Raises what `edgeopt.run.convert` raises.
    """
    around = surroundings(lock, recipe)
    with _cache_of_its_own(lock):
        document = run.convert(recipe, output=output, remeasure=True, display=display)
    again = json.loads((Path(document["run"]) / LOCK).read_text(encoding="utf-8"))
    steps = _steps(lock, again)
    same = all(step["same"] for step in steps)
    return {
        "schema": SCHEMA,
        "reproduces": lock["place"],
        "run": document["run"],
        "same": same,
        "exit_code": 0 if same else RegressionError.exit_code,
        "surroundings": around,
        "differences": _data(lock, again) + _differences(lock.get("import") or {}, again["import"], "import."),
        "steps": steps,
        "winner": {"before": lock.get("winner"), "now": again["winner"]},
    }


def print_differences(found: Iterable[Mapping[str, Any]], console: Console) -> None:
    for one in found:
        console.print(plain(f"{one['what']} was {one['before']}, is {one['now']}"), markup=False, soft_wrap=True)


def print_document(document: Mapping[str, Any], console: Console) -> None:
    """What else went in, the table of steps, and the verdict."""
    from rich.table import Table
    from rich.text import Text

    print_differences(document["differences"], console)
    table = Table("step", "before", "now", "", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for step in document["steps"]:
        cells = [plain(step["id"]), *(str(step[key] or "not built")[:SHOWN] for key in ("before", "now"))]
        table.add_row(*map(Text, cells), "same" if step["same"] else "DIFFERENT")
    console.print(table)
    other = sum(not step["same"] for step in document["steps"])
    verdict = "every step has the same bytes" if not other else f"{other} of {len(document['steps'])} steps differ"
    console.print(f"{'Reproduced' if not other else 'Not reproduced'}: {verdict}.", markup=False, soft_wrap=True)
    console.print(plain(f"Run: {os.path.relpath(document['run'])}"), markup=False, soft_wrap=True)


def _steps(lock: Mapping[str, Any], again: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every step of either run: its digests, and which of its inputs differ."""
    before, now = ({step["id"]: step for step in found["steps"]} for found in (lock, again))
    found = []
    for name in dict.fromkeys([*before, *now]):
        one, other = before.get(name, {}), now.get(name, {})
        digests = one.get("artifact"), other.get("artifact")
        found.append(
            {
                "id": name,
                "before": digests[0],
                "now": digests[1],
                "same": digests[0] is not None and digests[0] == digests[1],
                "inputs": _differences(one.get("inputs", {}), other.get("inputs", {})) if one and other else [],
            }
        )
    return found


def _data(lock: Mapping[str, Any], again: Mapping[str, Any]) -> list[dict[str, Any]]:
    before, now = (
        {role: source.get("digest") for role, source in (found.get("data") or {}).items()} for found in (lock, again)
    )
    return _differences(before, now, "data.")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    """Each value that is not the same, by its path."""

    def walk(one: Mapping[str, Any], other: Mapping[str, Any], path: str) -> Iterator[dict[str, Any]]:
        for key in dict.fromkeys([*one, *other]):
            left, right = one.get(key), other.get(key)
            if isinstance(left, dict) and isinstance(right, dict):
                yield from walk(left, right, f"{path}{key}.")
            elif left != right:
                yield {"what": f"{path}{key}", "before": left, "now": right}

    return list(walk(before, now, prefix))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def _cache_of_its_own(lock: Mapping[str, Any]) -> Iterator[None]:
    """An empty cache for this run alone, gone when it is finished, and kept where it is interrupted or fails."""
    usual, chosen = default_root().absolute(), os.environ.get("EDGEOPT_CACHE")
    digest = hashlib.sha256(json.dumps(lock, sort_keys=True).encode()).hexdigest()[:SHOWN]
    own = usual.with_name(f"{usual.name}-reproduce-{digest}")
    os.environ["EDGEOPT_CACHE"] = str(own)
    try:
        yield
    except EdgeoptError as error:
        error.remedy = error.remedy or f"What was built is in {own}; the same command goes on from there."
        raise
    else:
        shutil.rmtree(own, ignore_errors=True)
    finally:
        if chosen is None:
            del os.environ["EDGEOPT_CACHE"]
        else:
            os.environ["EDGEOPT_CACHE"] = chosen
