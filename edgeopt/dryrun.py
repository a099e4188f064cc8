"""What a recipe would do, without doing it: the plan as a tree, what is in the cache, shapes, what is missing.

Imports no vendor library. Steps after one that is not in the cache are known to be built, because their inputs are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgeopt import backends, data, devices, pipeline, plan, stages
from edgeopt.artifact import Artifact
from edgeopt.budget import QUANTITIES
from edgeopt.errors import EdgeoptError, MissingDependency, TargetUnreachable
from edgeopt.pipeline import Prepared
from edgeopt.plan import IMPORT, Plan
from edgeopt.recipe import Recipe
from edgeopt.store import Store, default_root
from edgeopt.target import Target
from edgeopt.text import plain
from edgeopt.units import format_count, format_size

if TYPE_CHECKING:
    from rich.console import Console


def examine(recipe: Recipe) -> dict[str, Any]:
    """The plan as plain JSON. Raises InputError where the recipe or a file is wrong; missing tools are listed."""
    missing: list[dict[str, str]] = []
    try:
        pipeline.check_inputs(recipe)
    except EdgeoptError as error:
        if error.exit_code != 5:
            raise
        missing.append({"what": error.message, "remedy": error.remedy or ""})
    made = plan.make(recipe)
    for tool, needed_by in made.tools().items():
        if backends.version(tool) is None:
            missing.append({"what": f"{needed_by} needs {tool}", "remedy": f"pip install {tool}"})
    if not made.data:
        missing.append({"what": "samples to measure with", "remedy": "--data samples.npz"})
    target = recipe.target
    try:
        device = devices.find(recipe.target)
        target = devices.as_found(recipe.target, device)
        device.check(candidate.backend for candidate in made.candidates)
    except (TargetUnreachable, MissingDependency) as error:
        missing.append({"what": error.message, "remedy": error.remedy or ""})
    store = Store(default_root())
    found_data, digests = _data(made, store)
    steps, source = _steps(made, store, digests, target)
    return {
        "schema": 1,
        "recipe": recipe.name,
        "target": recipe.target.name,
        "model": recipe.model,
        "inputs": [spec.to_json() for spec in source.inputs] if source else None,
        "outputs": [spec.to_json() for spec in source.outputs] if source else None,
        "parameters": source.details.get("parameters") if source else None,
        "macs": source.details.get("macs") if source else None,
        "data": found_data,
        "steps": steps,
        "candidates": [
            {"id": c.id, "step": c.step, "backend": c.backend, "baseline": c.id == made.baseline}
            for c in made.candidates
        ],
        "left_out": dict(made.left_out),
        "budget": recipe.budget.to_json(),
        "time_limit": recipe.time,
        "time_limit_seconds": recipe.seconds,
        "missing": missing,
    }


def _data(made: Plan, store: Store) -> tuple[list[dict[str, Any]], dict[str, str]]:
    found, digests = [], {}
    for role, source in made.data.items():
        entry = pipeline.find_data(source, made.recipe, store)
        arrays = entry.meta["inputs"] if entry else data.peek(source.location)
        count = entry.meta["count"] if entry else None
        if entry:
            prepared: Prepared = pipeline.prepared(entry)
            digests[role] = prepared.digest
        found.append(
            {
                "role": role,
                "location": source.location,
                "samples": count or source.samples,
                "part": source.part[1] - source.part[0] if source.part else None,
                "arrays": arrays,
                "cached": entry is not None,
            }
        )
    return found, digests


def _steps(
    made: Plan, store: Store, digests: Mapping[str, str], target: Target
) -> tuple[list[dict[str, Any]], Artifact | None]:
    """Every step with whether it is in the cache, and the imported model where it is."""
    example = pipeline.example_role(made)
    known = example is None or example in digests
    entry = pipeline.find_import(made.recipe, digests.get(example) if example else None, store) if known else None
    artifacts: dict[str, Artifact] = {IMPORT: pipeline.built(entry).artifact} if entry else {}
    source = artifacts.get(IMPORT)
    made_of = pipeline.source_of(entry) if entry else {}
    steps: list[dict[str, Any]] = [
        {"id": IMPORT, "parent": None, "label": "import", "cached": entry is not None, "seconds": _seconds(entry)}
    ]
    searches = {s.id: stages.search_of(s.stage, s.choice, s.options) for s in made.searches()}
    for step in made.steps:
        found = None
        if step.parent in artifacts and all(role in digests for role in step.roles):
            found = pipeline.find_step(step, artifacts[step.parent], digests, target, store, made_of)
        if found:
            artifacts[step.id] = pipeline.built(found).artifact
        steps.append(
            {
                "id": step.id,
                "parent": step.parent,
                "stage": step.stage,
                "label": step.label,
                "precision": step.precision,
                "search": asdict(search) if (search := searches.get(step.id)) else None,
                "cached": found is not None,
                "seconds": _seconds(found),
                "size_bytes": artifacts[step.id].size_bytes if found else None,
            }
        )
    return steps, source


def _seconds(entry: Any) -> float | None:
    return entry.seconds if entry else None


def print_plan(found: Mapping[str, Any], console: Console) -> None:
    """The tree for a person."""
    from rich.text import Text
    from rich.tree import Tree

    baseline = next(c["step"] for c in found["candidates"] if c["baseline"])
    count = len(found["candidates"])
    title = Text.assemble((plain(found["recipe"]), "bold"), f" on {plain(found['target'])}: {count} candidates")
    root = Tree(title, guide_style="dim")
    branches = {None: root}
    for step in found["steps"]:
        line = Text(plain(step["label"]))
        if step["id"] == IMPORT:
            line.append(plain(_signature(found)), style="dim")
        if step["id"] == baseline:
            line.append("  baseline", style="bold")
        if step.get("search"):
            line.append(f"  {_sought(step['search'])}", style="cyan")
        elif step["cached"]:
            size = f", {format_size(step['size_bytes'])}" if step.get("size_bytes") else ""
            line.append(f"  cached{size}", style="green")
        else:
            line.append("  to build", style="yellow")
        branches[step["id"]] = branches[step["parent"]].add(line)
    console.print(root)
    for source in found["data"]:
        arrays = ", ".join(f"{name} {dtype}{shape}" for name, (shape, dtype) in (source["arrays"] or {}).items())
        part = f" of a part of {source['part'] * 100:g} % of its own" if source["part"] else ""
        samples = (f"{source['samples']} samples" if source["samples"] else "all samples") + part
        console.print(
            Text(plain(f"data {source['role']}: {samples}, {arrays or 'shapes known once it is made'}")), soft_wrap=True
        )
    for name, reason in found["left_out"].items():
        console.print(Text(plain(f"left out: {name}: {reason}")), style="dim", soft_wrap=True)
    limits = found["budget"]["limits"]
    if limits:
        told = ", ".join(f"{name} {QUANTITIES[name].format(bound)}" for name, bound in limits.items())
        console.print(Text(f"budget: {told}; prefer {', '.join(found['budget']['prefer'])}"), soft_wrap=True)
    if found["time_limit"]:
        told = f"{found['time_limit']}: the cheap and the promising first, measuring included; the rest is skipped"
        console.print(Text(told), soft_wrap=True)
    for item in found["missing"]:
        console.print(Text(plain(f"missing: {item['what']}. {item['remedy']}")), style="red", soft_wrap=True)


def _sought(search: Mapping[str, Any]) -> str:
    """What is found by measuring before anything is trained."""
    if search["limit"] is None:
        return f"to be found by measuring: the fractions that pay, {search['rungs']} at most"
    quantity = QUANTITIES[search["quantity"]]
    return f"to be found by measuring: the least for {quantity.name} ≤ {quantity.format(search['limit'])}"


def _signature(found: Mapping[str, Any]) -> str:
    if not found["inputs"]:
        return "  (shapes known once it is imported)"

    def told(specs: Any) -> str:
        return ", ".join(f"{s['name']} {s['dtype']}[{', '.join(map(str, s['shape']))}]" for s in specs)

    counts = [f"{format_count(found[key])} {key}" for key in ("parameters", "macs") if found[key]]
    return f"  {told(found['inputs'])} -> {told(found['outputs'])}" + (f"  {', '.join(counts)}" if counts else "")
