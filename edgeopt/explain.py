"""What the cache holds, and why a step would be built again: for `edgeopt cache`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgeopt import devices, pipeline, plan
from edgeopt.artifact import Artifact
from edgeopt.plan import IMPORT
from edgeopt.recipe import Recipe
from edgeopt.store import Entry, Store, default_root
from edgeopt.units import format_size

if TYPE_CHECKING:
    from rich.console import Console


def listing(store: Store) -> list[dict[str, Any]]:
    """Every entry, the last used first."""
    entries = sorted(store.entries(), key=lambda entry: entry.used, reverse=True)
    return [
        {
            "key": entry.key,
            "stage": entry.inputs["stage"],
            "choice": entry.inputs["choice"],
            "size_bytes": entry.size_bytes,
            "seconds": entry.seconds,
            "used": entry.used,
        }
        for entry in entries
    ]


def print_listing(found: list[dict[str, Any]], store: Store, console: Console) -> None:
    from rich.table import Table

    table = Table("step", "key", "size", "built in", "last used", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for entry in found:
        name = f"{entry['stage']} {entry['choice']}".strip()
        ago = _ago(time.time() - entry["used"])
        table.add_row(name, entry["key"][:12], format_size(entry["size_bytes"]), f"{entry['seconds']:.1f} s", ago)
    if found:
        console.print(table)
    total = sum(entry["size_bytes"] for entry in found)
    console.print(f"{len(found)} entries, {format_size(total)} in {store.root}", soft_wrap=True)


def explain(recipe: Recipe) -> list[dict[str, Any]]:
    """Each step of a recipe: {"id", "reused", "differences"}, the differences from the nearest stored entry.

    "differences" is None where nothing of the kind is stored, or where it waits for a step that is built first.
    """
    pipeline.check_inputs(recipe)
    made, store = plan.make(recipe), Store(default_root())
    target = devices.as_found(recipe.target, devices.find(recipe.target))
    found: list[dict[str, Any]] = []
    digests: dict[str, str] = {}
    for role, source in made.data.items():
        entry = pipeline.find_data(source, recipe, store)
        inputs = pipeline.data_inputs(source, recipe)
        found.append(_judged(f"data:{role}", _with_sources(inputs, source.location, store), entry, store))
        if entry:
            digests[role] = pipeline.prepared(entry).digest
    artifacts: dict[str, Artifact] = {}
    made_of: dict[str, Any] = {}
    example = pipeline.example_role(made)
    if example is None or example in digests:
        digest = digests.get(example) if example else None
        entry = pipeline.find_import(recipe, digest, store)
        inputs = pipeline.import_inputs(recipe, digest)
        found.append(_judged(IMPORT, _with_sources(inputs, recipe.model, store), entry, store))
        if entry:
            artifacts[IMPORT] = pipeline.built(entry).artifact
            made_of = pipeline.source_of(entry)
    else:
        found.append(_waiting(IMPORT, f"data:{example}"))
    searched = made.searches()
    for step in made.steps:
        absent = next((f"data:{role}" for role in step.roles if role not in digests), None)
        if step in searched:
            absent = f"the network that {step.label} asks for"  # which a run finds by measuring
        if step.parent not in artifacts or absent:
            found.append(_waiting(step.id, absent or step.parent))
            continue
        inputs = plan.step_inputs(step, artifacts[step.parent], {r: digests[r] for r in step.roles}, target, made_of)
        inputs = _with_sources(inputs, pipeline.code_of(step), store)
        entry = store.find(inputs)
        found.append(_judged(step.id, inputs, entry, store))
        if entry:
            artifacts[step.id] = pipeline.built(entry).artifact
    return found


def sentence(step: Mapping[str, Any]) -> str:
    """One step in words."""
    if step["reused"]:
        return f"{step['id']}: reused"
    if step["waits_for"]:
        return f"{step['id']}: will be known when {step['waits_for']} is built"
    if step["differences"] is None:
        return f"{step['id']}: to build, nothing of the kind is stored"
    changed = "; ".join(f"{d['what']} was {d['stored']}, is {d['now']}" for d in step["differences"])
    return f"{step['id']}: to build: {changed or 'a source file changed'}"


def _with_sources(inputs: dict[str, Any], location: str, store: Store) -> dict[str, Any]:
    """With the digests of the source files as they are now, where it is known which these are."""
    return dict(store.recalled(inputs, pipeline.place_of(location)) or inputs)


def _judged(name: str, inputs: Mapping[str, Any], entry: Entry | None, store: Store) -> dict[str, Any]:
    differences = None
    if entry is None and (nearest := store.nearest(inputs)) is not None:
        differences = list(_differences(nearest.inputs, inputs))
    return {"id": name, "reused": entry is not None, "differences": differences, "waits_for": None}


def _waiting(name: str, what: str) -> dict[str, Any]:
    return {"id": name, "reused": False, "differences": None, "waits_for": what}


def _differences(stored: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[dict[str, Any]]:
    for key in sorted(set(stored) | set(now)):
        if key == "sources" and key not in now:
            continue  # known only once the code has run; the sentence says so
        before, after = stored.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield {"what": f"{prefix}{key}", "stored": _short(before), "now": _short(after)}


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) and len(value) == 64 else value


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"
