"""Recipe x target -> plan: a tree of steps, in which what alternatives share stands once. Nothing is opened or run.

Every leaf is a candidate, and so is the untouched model on each backend. Alternatives that make no sense together
(bf16 after INT8) are left out with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeopt import backends, compilers, formats, stages
from edgeopt.artifact import Artifact
from edgeopt.errors import InputError, MissingDependency
from edgeopt.recipe import TIMING, Alternative, DataSource, Recipe, RecipeStep
from edgeopt.stages import Options
from edgeopt.target import Target

IMPORT = "import"
SOURCE_PRECISION = "fp32"


@dataclass(frozen=True)
class PlanStep:
    """One thing to build. `id` is the path of labels from the model to here; `parent` the id of what it starts from.

    `precision` is what its result computes in, `roles` the data it reads.
    """

    id: str
    parent: str
    stage: str
    choice: str
    options: Options
    label: str
    precision: str
    roles: tuple[str, ...]
    depth: int


@dataclass(frozen=True)
class Candidate:
    """A leaf: the artifact of `step`, run by `backend`. `labels` are the steps that made it, by stage; where a stage
    comes again, by "prune 2"."""

    id: str
    step: str
    backend: str
    labels: Mapping[str, str]
    untouched: bool

    @property
    def depth(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Plan:
    """What a run will do. `baseline` is the candidate that all are held against.

    `left_out` maps candidates that are not built to the reason.
    """

    recipe: Recipe
    data: Mapping[str, DataSource]
    steps: tuple[PlanStep, ...]
    candidates: tuple[Candidate, ...]
    baseline: str
    left_out: Mapping[str, str]

    @property
    def judges(self) -> bool:
        """Whether it is found out how right candidates are: not where the data is for timing alone."""
        return TIMING not in self.recipe.data

    def searches(self) -> tuple[PlanStep, ...]:
        """The steps of which something has to be found by measuring before they can be built."""
        return tuple(step for step in self.steps if stages.search_of(step.stage, step.choice, step.options))

    def below(self, step_id: str) -> tuple[Candidate, ...]:
        """The candidates that a step is on the way to."""
        return tuple(self._below.get(step_id, ()))

    @functools.cached_property
    def _below(self) -> dict[str, list[Candidate]]:
        found: dict[str, list[Candidate]] = {}
        for candidate in self.candidates:
            for step in self.lineage(self.step(candidate.step)):
                found.setdefault(step.id, []).append(candidate)
        return found

    @functools.cached_property
    def _by_id(self) -> dict[str, PlanStep]:
        return {step.id: step for step in self.steps}

    def step(self, step_id: str) -> PlanStep:
        return self._by_id[step_id]

    def lineage(self, step: PlanStep) -> tuple[PlanStep, ...]:
        """The steps from the model to this one, this one included."""
        before = () if step.parent == IMPORT else self.lineage(self.step(step.parent))
        return (*before, step)

    def tools(self) -> dict[str, str]:
        """Every distribution that building or running needs, with what needs it."""
        needed: dict[str, str] = {}
        for step in self.steps:
            for tool in stages.find(step.stage).tools(step.choice, step.options):
                needed.setdefault(tool, f"{step.stage}: {step.label}" if step.stage != "compile" else step.label)
        for candidate in self.candidates:
            needed.setdefault(backends.find(candidate.backend).DISTRIBUTION, candidate.backend)
        return needed


def make(recipe: Recipe, left_out: Mapping[str, str] | None = None) -> Plan:
    """The plan of a recipe. `left_out` is what was left out of the recipe itself, with the reasons.

    Raises InputError where data is missing that a step reads, MissingDependency where no backend is left that is
    installed.
    """
    left_out = dict(left_out or {})
    steps: dict[str, PlanStep] = {}
    candidates: dict[str, Candidate] = {}
    if runtime := formats.runtime_of(recipe.model):
        candidates = _as_it_is(recipe, runtime, steps, left_out)
        return _plan(recipe, steps, candidates, left_out)
    compile_step = _compile_step(recipe, left_out)
    transforms = [_usable(step, recipe, left_out) for step in recipe.steps if step.stage != "compile"]

    untouched = [_on(recipe.target, Alternative(a.choice, type(a.options)())) for a in compile_step.alternatives]
    leaves = [(IMPORT, SOURCE_PRECISION, alternative, True) for alternative in dict.fromkeys(untouched)]
    leaves += [
        (parent, precision, alternative, False)
        for parent, precision in _tree(transforms, steps, left_out)
        for alternative in (_on(recipe.target, alternative) for alternative in compile_step.alternatives)
    ]
    for parent, precision, alternative, is_untouched in leaves:
        step = _step("compile", alternative, parent, precision, steps, left_out)
        if step is None:
            continue
        labels = _labels(_path(steps, parent)) | {"compile": alternative.label()}
        name = "-".join(labels.values())
        if name in candidates and candidates[name].step != step.id:
            name = "-".join(f"{stage}={label}" for stage, label in labels.items())
        candidate = Candidate(name, step.id, alternative.choice, labels, is_untouched)
        candidates.setdefault(candidate.id, candidate)
    return _plan(recipe, steps, candidates, left_out)


def _plan(
    recipe: Recipe, steps: Mapping[str, PlanStep], candidates: Mapping[str, Candidate], left_out: Mapping[str, str]
) -> Plan:
    if not candidates:
        raise InputError("the recipe has no candidate left", remedy="; ".join(left_out.values()) or None)
    baseline = next((c.id for c in candidates.values() if c.untouched and c.backend == "onnxruntime"), None)
    return Plan(
        recipe,
        _data(recipe, steps.values()),
        tuple(steps.values()),
        tuple(candidates.values()),
        baseline or next(iter(candidates)),
        {key: reason for key, reason in left_out.items() if key not in candidates},
    )


def without_missing_tools(plan: Plan) -> None:
    """Raise MissingDependency for the first tool of the plan that is not installed here."""
    for tool, needed_by in plan.tools().items():
        if backends.version(tool) is None:
            raise MissingDependency(
                f"{needed_by} needs {tool}, which is not installed",
                remedy=f"Install it with: pip install {tool} (or take {needed_by.split(':')[0]} out of the recipe)",
            )


def ranks(plan: Plan, promise: Sequence[str]) -> dict[str, int]:
    """In which order the steps and candidates of a plan are begun where time is short, by id: the cheap ones first.

    The baseline, the untouched model on the other backends, what keeps the network as it is, what does not, and last
    what is trained; among those, in the order in which `promise` names labels of steps.
    """

    def cost(candidate: Candidate) -> tuple[int, ...]:
        way = plan.lineage(plan.step(candidate.step))
        most = max(2 if "train" in step.roles else int(stages.uses_module(step.stage)) for step in way)
        places = [promise.index(step.label) for step in way if step.label in promise]
        return (candidate.id != plan.baseline, not candidate.untouched, most, *(places or [len(promise)]))

    costs = {candidate.id: cost(candidate) for candidate in plan.candidates}
    order = {found: rank for rank, found in enumerate(sorted(set(costs.values())))}
    found = {name: order[key] for name, key in costs.items()}
    for step in plan.steps:
        found[step.id] = min((found[c.id] for c in plan.below(step.id)), default=len(order))
    return found


def step_inputs(
    step: PlanStep,
    parent: Artifact,
    sample_digests: Mapping[str, str],
    target: Target,
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that decides what a step makes: the store's key is the digest of this.

    `source` is what the import was made of: stages that make the source's torch module again depend on it.
    """
    stage = stages.find(step.stage)
    version = compilers.find(step.choice).VERSION if step.stage == "compile" else stage.VERSION
    files = [stages.digest(location) for location in stages.files(step.stage, step.choice, step.options)]
    return {
        "stage": step.stage,
        "choice": step.choice,
        "version": version,
        "options": step.options.model_dump(mode="json"),
        "parent": parent.digest,
        "samples": dict(sample_digests),
        "tools": {tool: backends.version(tool) for tool in stage.tools(step.choice, step.options)},
        "target": {"arch": target.arch, "isa": list(target.isa), "precisions": list(target.precisions)},
        **({"source": dict(source or {})} if stages.uses_module(step.stage) else {}),
        **({"files": files} if files else {}),
    }


def _as_it_is(
    recipe: Recipe, runtime: str, steps: dict[str, PlanStep], left_out: dict[str, str]
) -> dict[str, Candidate]:
    """The candidates of a model that one runtime runs as it is: itself, and what its own format allows to change."""
    file = recipe.model.rpartition("/")[2]
    only = f"{file} runs on {runtime} alone: there is no way from its format to ONNX, which this needs"
    asked: list[tuple[str | None, str]] = []  # labels of quantize, and the precision that it makes
    for step in recipe.steps:
        for alternative in step.alternatives if step.stage != "compile" else ():
            made = stages.find(step.stage).precision(alternative.choice, alternative.options, SOURCE_PRECISION)
            plain = not alternative.options.model_dump(exclude_defaults=True) and alternative.choice != "qat"
            if stages.is_identity(step.stage, alternative.choice, alternative.options):
                asked.append((None, "auto"))
            elif step.stage == "quantize" and plain and stages.find("keep").objection(runtime, _kept(made), "") is None:
                asked.append((alternative.label(), made))
            else:
                left_out[alternative.label() or step.stage] = only
    named = next((step.alternatives for step in recipe.steps if step.stage == "compile"), ())
    wanted = [(a.choice, a.label(), a.options.model_dump(exclude_defaults=True)) for a in named]
    candidates: dict[str, Candidate] = {}
    for choice, label, changed in wanted or [(name, name, {}) for name in recipe.target.backends]:
        if choice != runtime or changed.keys() - {"precision"}:
            left_out[label] = only
            continue
        for quantized, made in dict.fromkeys([(None, "auto"), *asked]):
            if quantized and changed:
                left_out[f"{quantized}-{label}"] = f"the model is quantized to {made}: {label} would undo it"
                continue
            options = _kept(changed.get("precision", "auto") if quantized is None else made)
            found = _step("keep", Alternative(runtime, options), IMPORT, SOURCE_PRECISION, steps, left_out)
            if found is not None:
                labels = {**({"quantize": quantized} if quantized else {}), "compile": label}
                name = "-".join(labels.values())
                candidates[name] = Candidate(name, found.id, runtime, labels, options.precision == "auto")
    if not candidates:
        raise InputError(only.partition(":")[0], remedy=f"Compile for it: `- compile: {runtime}`.")
    return candidates


def _kept(precision: str) -> Any:
    from edgeopt.stages.keep import KeepOptions

    return KeepOptions.model_construct(precision=precision)


def _compile_step(recipe: Recipe, left_out: dict[str, str]) -> RecipeStep:
    """The recipe's compile step, or one alternative for each backend of the target that is installed."""
    named = next((step for step in recipe.steps if step.stage == "compile"), None)
    if named is not None:
        alternatives = named.alternatives
    else:
        choices = stages.find("compile").choices()
        alternatives = tuple(Alternative(name, choices[name]()) for name in recipe.target.backends if name in choices)
    if recipe.backends_optional:
        usable = []
        for alternative in alternatives:
            if missing := _missing(alternative):
                left_out[alternative.label()] = f"{missing} is not installed"
            else:
                usable.append(alternative)
        if alternatives and not usable:
            raise MissingDependency(
                f"no backend of the target {recipe.target.name} is installed here",
                remedy="Install one, for instance: pip install 'edgeopt[onnxruntime]' (edgeopt doctor tells more).",
            )
        alternatives = tuple(usable)
    return RecipeStep("compile", alternatives)


def _on(target: Target, alternative: Alternative) -> Alternative:
    """An alternative of the compile step, its options completed by the target's."""
    return replace(alternative, options=compilers.options_on(target, alternative.choice, alternative.options))


def _usable(step: RecipeStep, recipe: Recipe, left_out: dict[str, str]) -> RecipeStep:
    """A step without the alternatives that need what is not installed, where a level asked for it and nobody else."""
    if not recipe.steps_optional:
        return step
    usable = []
    for alternative in step.alternatives:
        tools = stages.find(step.stage).tools(alternative.choice, alternative.options)
        if missing := next((tool for tool in tools if backends.version(tool) is None), None):
            left_out[alternative.label() or step.stage] = f"{missing} is not installed"
        else:
            usable.append(alternative)
    return replace(step, alternatives=tuple(usable) or (Alternative("none", Options()),))


def _missing(alternative: Alternative) -> str | None:
    tools = [*compilers.find(alternative.choice).tools(alternative.options)]
    tools.append(backends.find(alternative.choice).DISTRIBUTION)
    return next((tool for tool in tools if backends.version(tool) is None), None)


def _tree(transforms: list[RecipeStep], steps: dict[str, PlanStep], left_out: dict[str, str]) -> list[tuple[str, str]]:
    """Every (step id, precision) that the transforms lead to, the steps on the way added to `steps`."""
    tips = [(IMPORT, SOURCE_PRECISION)]
    for position, transform in enumerate(transforms):
        grown: dict[tuple[str, str], None] = {}
        idle: dict[str, str] = {}
        for parent, precision in tips:
            for alternative in transform.alternatives:
                unchanged = position > 0 and parent == IMPORT
                if stages.is_identity(transform.stage, alternative.choice, alternative.options):
                    grown[parent, precision] = None
                    if alternative.choice != "none":
                        idle[alternative.label()] = "there is nothing to do: it leaves the model as it is"
                elif unchanged and stages.recovers(transform.stage, alternative.options):
                    grown[parent, precision] = None
                    idle[alternative.label()] = "there is nothing to make good: no step before it changes the model"
                elif step := _step(transform.stage, alternative, parent, precision, steps, left_out):
                    grown[step.id, step.precision] = None
        if grown.keys() <= set(tips):  # no alternative does anything: that was not asked for knowingly
            left_out.update(idle)
        tips = list(grown)
    return tips


def _step(
    stage_name: str,
    alternative: Alternative,
    parent: str,
    precision: str,
    steps: dict[str, PlanStep],
    left_out: dict[str, str],
) -> PlanStep | None:
    stage = stages.find(stage_name)
    choice, options = alternative.choice, alternative.options
    label = alternative.label() or stage_name
    before = [step.label for step in _path(steps, parent)]
    if reason := stage.objection(choice, options, precision):
        left_out["-".join([*before, label])] = reason
        return None
    step = PlanStep(
        id=f"{parent}/{stage_name}={label}",
        parent=parent,
        stage=stage_name,
        choice=choice,
        options=options,
        label=label,
        precision=stage.precision(choice, options, precision),
        roles=tuple(stage.sample_roles(choice, options, precision)),
        depth=len(before) + 1,
    )
    return steps.setdefault(step.id, step)


def _labels(path: Iterable[PlanStep]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for step in path:
        times = 1 + sum(name.partition(" ")[0] == step.stage for name in labels)
        labels[step.stage if times == 1 else f"{step.stage} {times}"] = step.label
    return labels


def _path(steps: Mapping[str, PlanStep], step_id: str) -> list[PlanStep]:
    if step_id == IMPORT:
        return []
    return [*_path(steps, steps[step_id].parent), steps[step_id]]


def _data(recipe: Recipe, steps: Iterable[PlanStep]) -> dict[str, DataSource]:
    """The data that will be read: what steps need, what validates (or only times), and an example for the import."""
    needed: dict[str, PlanStep] = {}
    for step in steps:
        for role in step.roles:
            needed.setdefault(role, step)
    given = _with_tuning(recipe.data) if "tuning" in needed else recipe.data
    for role, step in needed.items():
        if role not in given:
            raise InputError(
                f"{step.stage}: {step.label} reads {role} data, and the recipe has none",
                remedy=f"Add it under data, such as `{role}: samples.npz`, or give --data samples.npz.",
            )
    chosen = {role: given[role] for role in needed}
    if "validation" in recipe.data:
        chosen["validation"] = recipe.data["validation"]
    elif TIMING in recipe.data:
        chosen["validation"] = recipe.data[TIMING]
    elif recipe.data:
        role = "train" if "train" in recipe.data else "calibration"
        chosen["validation"] = replace(recipe.data[role], samples=recipe.data[role].samples or 1000)
    return chosen


def _with_tuning(data: Mapping[str, DataSource]) -> dict[str, DataSource]:
    """The data with the role "tuning", on which a step may judge its own result: never what validates."""
    role = next((role for role in ("tuning", "train", "calibration") if role in data), None)
    if role is None:
        return dict(data)
    taken = data[role] if role != "train" else replace(data[role], samples=data[role].samples or 1000)
    return {**data, "tuning": taken}
