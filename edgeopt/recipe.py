"""The recipe: what to start from, the steps with their alternatives, the budgets. YAML in, `Recipe` out.

Every mistake is told at once, each with its line, and with the nearest known name where a name is wrong. Paths are
relative to the recipe's own folder. Reading a recipe imports no vendor library and opens no model or data file.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from edgeopt import stages, units, yaml
from edgeopt.budget import QUANTITIES, Budget, Limit
from edgeopt.catalog import target as find_target
from edgeopt.errors import EdgeoptError, InputError, RecipeError
from edgeopt.samples import Preprocess
from edgeopt.stages import Options
from edgeopt.target import Target

METRICS = ("top1", "top5", "agreement", "sqnr")
QUALITIES = ("accuracy drop", "fidelity", "sqnr")  # quantities that say how right a candidate is
ROLES = ("train", "calibration", "tuning", "validation", "timing")
TIMING = "timing"  # stands alone: inputs of the right shape that say nothing of how right a candidate is
CALIBRATION_SAMPLES = 300
LEAST_STEP_MEMORY_BYTES = 100 << 20
MOST_COMBINATIONS = 1000  # of the options of one alternative


@dataclass(frozen=True)
class DataSource:
    """Where samples come from: a .npz or .npy file, or a function, "file.py:function" or "package.module:function".

    `samples` of them are drawn without replacement by `seed`; None takes all, in order. `part` is what they are drawn
    from: (0.0, 0.8) is the first 80 % of all samples in an order shuffled once and for all, so that it and (0.8, 1.0)
    have none in common; None is all.
    """

    location: str
    samples: int | None = None
    seed: int = 0
    part: tuple[float, float] | None = None


@dataclass(frozen=True)
class Alternative:
    """One thing a step may do: a choice of its stage ("int8"), with options."""

    choice: str
    options: Options

    def label(self) -> str:
        """The choice with the options that differ from their defaults, "openvino-bf16": unlike for unlike options."""
        fields = type(self.options).model_fields
        defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
        named = self.options.always_named
        changed = [self._told(name, value) for name, value in self.options if value != defaults[name] or name in named]
        return "-".join(filter(None, [self.choice, *changed]))

    def _told(self, name: str, value: Any) -> str:
        """A word that one option alone may have stands for itself; other values go by their name."""
        if name in (own := self.options.told()):
            return own[name]
        text = str(value)
        short = re.sub(r"[^A-Za-z0-9.]+", "", text)
        owners = sum(value in get_args(f.annotation) for f in type(self.options).model_fields.values())
        if isinstance(value, bool):
            return name if value else f"no-{name}"
        if isinstance(value, str) and short == text and owners == 1:
            return text
        return (
            f"{name}-{short}"
            if short == text
            else f"{name}-{short[:20]}.{hashlib.sha256(text.encode()).hexdigest()[:6]}"
        )


@dataclass(frozen=True)
class RecipeStep:
    """A stage and its alternatives, each of which is tried."""

    stage: str
    alternatives: tuple[Alternative, ...]


@dataclass(frozen=True)
class MeasureOptions:
    """How candidates are timed: `rounds` of blocks of `block_ns`; `batches` are the sizes of the winner's batch curve,
    empty for no curve, None for those of the target."""

    rounds: int = 16
    block_ns: int = 100_000_000
    batches: tuple[int, ...] | None = None

    @property
    def seconds(self) -> float:
        """About what one candidate takes in a session: its blocks, and 1.5 s to be loaded and warm up. A network whose
        five calls take longer than a block takes longer."""
        return self.rounds * self.block_ns * 1.1e-9 + 1.5


@dataclass(frozen=True)
class Recipe:
    """A recipe with every path absolute and every value checked that can be checked without opening the model.

    `backends_optional` is true where the recipe did not name its backends itself: those not installed are left out.
    `steps_optional` is true where it named no step itself: alternatives that need what is not installed are left out.
    `seconds` is the limit on the whole run's wall time, None where there is none; `time` says how it was written:
    "--time 10m".
    `document` is the recipe as read, for `run.json`, and `folder` what its paths are relative to; `places` says where
    the model, the weights, the preprocessing and each role of the data are written, "recipe.yaml:2" or "--data", as far
    as that is known.
    """

    name: str
    model: str
    weights: str | None
    data: Mapping[str, DataSource]
    preprocess: Preprocess
    metric: str | None
    steps: tuple[RecipeStep, ...]
    target: Target
    budget: Budget
    measure: MeasureOptions = MeasureOptions()
    step_seconds: float = 1800.0
    step_memory_bytes: int | None = None
    backends_optional: bool = False
    steps_optional: bool = False
    seconds: float | None = None
    time: str | None = None
    folder: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)


def read(path: Path) -> Recipe:
    """A recipe file. Raises RecipeError with every mistake in it, or InputError where it is not YAML."""
    return resolve(yaml.load(path), base=path.resolve().parent, name=path.stem)


def resolve(document: yaml.Document, *, base: Path, name: str, of_a_level: bool = False) -> Recipe:
    """Check a parsed document. `base` is the folder that paths are relative to.

    `of_a_level` says that its steps are those of a level: nobody asked for one of them by name.
    """
    return _Reader(document, base).recipe(name, of_a_level)


class _Reader:
    """Walks a document once and collects problems instead of stopping at the first."""

    def __init__(self, document: yaml.Document, base: Path) -> None:
        self.document = document
        self.base = base
        self.problems: list[tuple[yaml.Place, str]] = []

    def recipe(self, name: str, of_a_level: bool) -> Recipe:
        top = self.document.value
        if not isinstance(top, dict):
            what = "this file is empty" if top is None else f"this is {_kind(top)}"
            raise RecipeError(
                [f"{self.document.name}: a recipe is a mapping with a model, data and steps; {what}"],
                remedy="Begin like `model: model.onnx`; `edgeopt recipes show fashion-mnist` prints an example.",
            )
        readers: dict[str, Callable[[Any, yaml.Place], Any]] = {
            "model": self._location,
            "weights": self._location,
            "data": self._data,
            "preprocess": self._preprocess,
            "metric": lambda value, place: self._one_of(value, METRICS, place),
            "steps": self._steps,
            "target": self._target,
            "budget": self._limits,
            "prefer": self._prefer,
            "measure": self._measure,
            "step time limit": self._duration,
            "step memory limit": self._memory,
            "time": self._duration,
        }
        found = {key: readers[key](top[key], (key,)) for key in self._known(top, readers, ())}
        if TIMING in (found.get("data") or {}):
            self._judged_by_nothing(found)
        if "model" not in top and not difflib.get_close_matches("model", top):
            self.problems.append(((), "a recipe needs a model: a file, or a torch factory such as model.py:build"))
        if self.problems:
            self._raise()
        seconds, whole = found.get("step time limit"), found.get("time")
        return Recipe(
            name=name,
            model=found["model"],
            weights=found.get("weights"),
            data=found.get("data") or {},
            preprocess=found.get("preprocess") or Preprocess(),
            metric=found.get("metric"),
            steps=found.get("steps") or (),
            target=found.get("target") or find_target("host"),
            budget=Budget(found.get("budget") or (), found.get("prefer") or ("latency p50",)),
            measure=found.get("measure") or MeasureOptions(),
            step_seconds=seconds / 1e9 if seconds else Recipe.step_seconds,
            step_memory_bytes=found.get("step memory limit"),
            backends_optional=of_a_level or all(s.stage != "compile" for s in found.get("steps") or ()),
            steps_optional=of_a_level,
            seconds=whole / 1e9 if whole else None,
            time=self._flag("time", top["time"]) if whole else None,
            folder=str(self.base),
            document=top,
            places={
                place[-1]: self.document.where(place)
                for place in [(key,) for key in ("model", "weights", "preprocess")] + [("data", role) for role in ROLES]
                if self.document.where(place) != self.document.name
            },
        )

    def _flag(self, key: str, value: Any) -> str:
        """A key of the recipe with its value, as it was written: "time: 10m" or "--time 10m"."""
        flag = self.document.flags.get((key,))
        return f"{flag} {value}" if flag else f"{key}: {value}"

    def _raise(self) -> None:
        seen = dict.fromkeys(
            f"{self.document.where(place)}: {message}"
            for place, message in sorted(self.problems, key=lambda p: self.document.lines.get(p[0], 0))
        )
        raise RecipeError(tuple(seen))

    def _wrong(self, place: yaml.Place, message: str) -> None:
        self.problems.append((place, message))

    def _known(self, value: Mapping[str, Any], known: Iterable[str], place: yaml.Place) -> Iterator[str]:
        """The keys of a mapping that are known; the others are problems."""
        for key in value:
            if key in known:
                yield key
            else:
                self._wrong((*place, key), unknown("key", key, known))

    def _mapping(self, value: Any, place: yaml.Place, what: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self._wrong(place, f"{what} is a mapping, not {_kind(value)}")
        return {}

    def _one_of(self, value: Any, names: Iterable[str], place: yaml.Place) -> str | None:
        if value in names:
            return str(value)
        self._wrong(place, unknown(str(place[-1]), value, names))
        return None

    def _quantity(self, parse: Callable[[object], Any], value: Any, place: yaml.Place) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            self._wrong(place, f"{place[-1]}: {error}")
            return None

    def _duration(self, value: Any, place: yaml.Place) -> int | None:
        """A time above zero, in nanoseconds."""
        found = self._quantity(units.parse_time, value, place)
        if found == 0:
            self._wrong(place, f"{place[-1]} is above zero")
        return found or None

    def _memory(self, value: Any, place: yaml.Place) -> int | None:
        """A size in bytes, no smaller than what a worker needs to start."""
        found: int | None = self._quantity(units.parse_size, value, place)
        if found is not None and found < LEAST_STEP_MEMORY_BYTES:
            self._wrong(place, f"{place[-1]} is at least {units.format_size(LEAST_STEP_MEMORY_BYTES)}")
        return found

    def _location(self, value: Any, place: yaml.Place) -> str:
        """A path made absolute; a function "file.py:function" too; "package.module:function" as it is."""
        if not isinstance(value, str) or not value:
            self._wrong(place, f"{place[-1]} is a path or file.py:function, not {_kind(value)}")
            return ""
        try:
            return locate(value, self.base)
        except EdgeoptError as error:
            self._wrong(place, error.message)
            return ""

    def _data(self, value: Any, place: yaml.Place) -> dict[str, DataSource]:
        value = self._mapping(value, place, "data")
        for role in value:
            if role not in ROLES:
                self._wrong((*place, role), unknown("key", role, ROLES))
        named = {role: value[role] for role in ROLES if role in value}
        sources: dict[str, DataSource] = {}
        for role, source in named.items():
            where = (*place, role)
            options = {"from": source} if isinstance(source, str) else source
            if not isinstance(options, dict):
                self._wrong(where, f"{role} is a file, a function or a mapping, not {_kind(source)}")
                continue
            known = dict.fromkeys(self._known(options, ("from", "samples", "seed", "part"), where))
            if options.get("from") is None:
                self._wrong(where, f"{role} needs `from`: a file, a function, or one of {', '.join(ROLES)}")
                continue
            for number in ("samples", "seed"):
                least = 1 if number == "samples" else 0
                if number in known and (not _is_integer(options[number]) or options[number] < least):
                    self._wrong((*where, number), f"{number} is a whole number of at least {least}")
            origin = self._origin(role, named, where)
            if origin is not None:
                location = self._location(origin, where)
                drawn = options.get("samples"), options.get("seed", DataSource.seed)
                sources[role] = DataSource(location, *drawn, self._part(role, named, place))
        if TIMING in named and len(named) > 1:
            self._wrong((*place, TIMING), "timing data is for recipes without other data: leave it out")
        if "calibration" not in sources and "train" in sources:
            sources["calibration"] = replace(sources["train"], samples=CALIBRATION_SAMPLES, seed=DataSource.seed)
        return sources

    def _part(self, role: str, named: Mapping[str, Any], place: yaml.Place) -> tuple[float, float] | None:
        """The part of all samples that a role has: its own, or that of the role which it is taken from."""
        for _ in ROLES:
            source = named.get(role)
            if isinstance(source, dict) and "part" in source:
                found: tuple[float, float] | None = self._quantity(_part, source["part"], (*place, role, "part"))
                return found
            role = str(source.get("from") if isinstance(source, dict) else source)
        return None

    def _origin(self, role: str, named: Mapping[str, Any], place: yaml.Place) -> Any:
        """What a role's data is taken from in the end: `from` may name another role. None where a mistake is told."""
        passed = [role]
        while True:
            source = named[passed[-1]]
            origin = source.get("from") if isinstance(source, dict) else source
            if origin not in ROLES:
                return origin if isinstance(origin, str) or passed == [role] else None
            if origin not in named:
                self._wrong(place, f"{role} is taken from {origin}, and there is no {origin} data")
                return None
            if origin in passed:
                self._wrong(place, f"{role} is taken from itself: {' from '.join([*passed, origin])}")
                return None
            passed.append(origin)

    def _judged_by_nothing(self, found: Mapping[str, Any]) -> None:
        """What asks how right a candidate is, where the data is for timing alone."""
        asked: list[yaml.Place] = [("metric",)] if found.get("metric") else []
        asked += [("budget", limit.quantity) for limit in found.get("budget") or () if limit.quantity in QUALITIES]
        asked += [("prefer",) for name in found.get("prefer") or () if name in QUALITIES]
        for place in asked:
            self._wrong(place, f"{place[-1]} needs real samples: the data is for timing alone")

    def _preprocess(self, value: Any, place: yaml.Place) -> Preprocess:
        value = self._mapping(value, place, "preprocess")
        found: dict[str, tuple[Any, ...]] = {}
        for key in self._known(value, ("transpose", "mean", "std"), place):
            numbers = value[key] if isinstance(value[key], list) else [value[key]]
            if not numbers or not all(_is_number(number) for number in numbers):
                self._wrong((*place, key), f"{key} is a number, or a list of numbers")
                continue
            if key == "transpose" and sorted(numbers) != list(range(len(numbers))):
                self._wrong((*place, key), "transpose is an order of a sample's axes, such as [2, 0, 1]")
            if key == "std" and any(number <= 0 for number in numbers):
                self._wrong((*place, key), "std is above zero")
            found[key] = tuple(int(n) if key == "transpose" else float(n) for n in numbers)
        return Preprocess(found.get("mean", ()), found.get("std", ()), found.get("transpose", ()))

    def _target(self, value: Any, place: yaml.Place) -> Target | None:
        try:
            if isinstance(value, str) and ("/" in value or value.endswith((".yaml", ".yml"))):
                return find_target(str(self.base / value))
            if isinstance(value, str):
                return find_target(value)
            if isinstance(value, dict):
                from edgeopt.catalog import target_from

                return target_from(value, base=str(value.get("base", "host")), where=self.document.where(place))
        except RecipeError as error:
            for problem in error.problems:
                self._wrong(place, problem)
            return None
        except InputError as error:
            there = f"{error.where}: " if error.where not in (None, self.document.where(place)) else ""
            remedy = f". {error.remedy}" if error.remedy and not error.message.endswith("?") else ""
            self._wrong(place, f"{there}{error.message}{remedy}")
            return None
        self._wrong(place, f"target is a name, a .yaml file or a mapping, not {_kind(value)}")
        return None

    def _limits(self, value: Any, place: yaml.Place) -> tuple[Limit, ...]:
        value = self._mapping(value, place, "budget")
        limits: list[Limit] = []
        for key, text in value.items():
            name = "latency p50" if key == "latency" else key
            if name not in QUANTITIES:
                self._wrong((*place, key), unknown("budget", key, (*QUANTITIES, "latency")))
                continue
            bound = self._quantity(QUANTITIES[name].parse, text, (*place, key))
            if any(limit.quantity == name for limit in limits):
                self._wrong((*place, key), f"{name} is limited twice")
            elif bound is not None:
                limits.append(Limit(name, bound))
        return tuple(limits)

    def _prefer(self, value: Any, place: yaml.Place) -> tuple[str, ...]:
        names = value if isinstance(value, list) else [value]
        if not names:
            self._wrong(place, f"prefer names at least one of {', '.join(QUANTITIES)}")
        for index, name in enumerate(names):
            if name not in tuple(QUANTITIES):
                where = (*place, index) if isinstance(value, list) else place
                self._wrong(where, unknown("quantity to prefer", name, QUANTITIES))
        return tuple(names)

    def _measure(self, value: Any, place: yaml.Place) -> MeasureOptions:
        value = self._mapping(value, place, "measure")
        rounds, block, batches = MeasureOptions.rounds, MeasureOptions.block_ns, MeasureOptions.batches
        for key in self._known(value, ("rounds", "block", "batches"), place):
            if key == "block":
                block = self._duration(value[key], (*place, key)) or block
            elif key == "batches":
                batches = self._batches(value[key], (*place, key))
            elif not _is_integer(value[key]) or value[key] < 3:
                self._wrong((*place, key), "rounds is a whole number of at least 3")
            else:
                rounds = value[key]
        return MeasureOptions(rounds, block, batches)

    def _batches(self, value: Any, place: yaml.Place) -> tuple[int, ...]:
        sizes = value if isinstance(value, list) else [value]
        if not all(_is_integer(size) and size >= 1 for size in sizes):
            self._wrong(place, "batches are whole numbers of at least 1: batches: [1, 8, 32]")
            return ()
        return tuple(sorted(set(sizes)))

    def _steps(self, value: Any, place: yaml.Place) -> tuple[RecipeStep, ...]:
        if not isinstance(value, list):
            self._wrong(place, f"steps is a list, not {_kind(value)}")
            return ()
        steps: list[RecipeStep] = []
        for index, item in enumerate(value):
            where = (*place, index)
            if not isinstance(item, dict) or len(item) != 1:
                self._wrong(where, "a step is one stage with its alternatives, such as `- quantize: [none, int8]`")
                continue
            ((name, alternatives),) = item.items()
            if name not in stages.STAGES and name not in _published("edgeopt.stages"):
                self._wrong(
                    (*where, name), unknown("stage", name, (*stages.STAGES, *sorted(_published("edgeopt.stages"))))
                )
                continue
            if any(step.stage == name for step in steps) and not stages.repeats(name):
                self._wrong((*where, name), f"the stage {name} is there twice: list its alternatives in one step")
            if steps and steps[-1].stage == "compile":
                self._wrong((*where, name), f"{name} comes after compile: compile is the last step")
            steps.append(RecipeStep(name, tuple(self._alternatives(name, alternatives, (*where, name)))))
        return tuple(steps)

    def _alternatives(self, stage: str, value: Any, place: yaml.Place) -> Iterator[Alternative]:
        choices = stages.find(stage).choices()
        if value is None or value == []:
            known = ", ".join(filter(None, choices)) or "its options"
            self._wrong(place, f"{stage} has no alternatives: name at least one of {known}")
            return
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            where = (*place, index) if isinstance(value, list) else place
            if list(choices) == [""]:
                if item == "none":
                    yield Alternative("none", Options())
                elif isinstance(item, dict):
                    yield from self._expanded("", item, choices[""], where)
                else:
                    options = ", ".join(choices[""].model_fields)
                    self._wrong(where, f"{stage} takes none, or a mapping of {options}; not {_kind(item)}")
            elif item == {}:
                self._wrong(where, f"an alternative is one of {', '.join(choices)}, not an empty mapping")
            elif isinstance(item, dict):
                for choice, options in item.items():
                    if choice not in choices:
                        self._wrong((*where, choice), unknown(f"alternative of {stage}", choice, choices))
                    else:
                        inner = (*where, choice)
                        yield from self._expanded(choice, {} if options is None else options, choices[choice], inner)
            elif item not in tuple(choices):
                self._wrong(where, unknown(f"alternative of {stage}", item, choices))
            else:
                yield from self._expanded(item, {}, choices[item], where)

    def _expanded(self, choice: str, options: Any, kind: type[Options], place: yaml.Place) -> Iterator[Alternative]:
        """One alternative for each combination of the options that are lists where a single value is due."""
        if not isinstance(options, dict):
            self._wrong(place, f"options are a mapping, not {_kind(options)}")
            return
        many = [
            [(key, item) for item in (value if isinstance(value, list) and not _takes_list(kind, key) else [value])]
            for key, value in options.items()
        ]
        for key, value in options.items():
            if value == [] and not _takes_list(kind, key):
                self._wrong((*place, key), f"{key} is an empty list: nothing to try")
        if math.prod(len(values) for values in many) > MOST_COMBINATIONS:
            self._wrong(place, f"these options make more than {MOST_COMBINATIONS} combinations")
            return
        for combination in itertools.product(*many):
            try:
                context = {"locate": lambda text: locate(text, self.base)}
                yield Alternative(choice, kind.model_validate(dict(combination), context=context))
            except ValidationError as error:
                for detail in error.errors(include_url=False):
                    self._wrong((*place, *detail["loc"]), _explain(detail, kind))


def locate(text: str, base: Path) -> str:
    """An absolute path for a path or "file.py:function"; "package.module:function" and absolute paths as they are."""
    file, colon, function = text.rpartition(":")
    if "\0" in text:
        raise InputError("a path cannot hold a null character")
    if colon and function.isidentifier() and file:
        if file.endswith(".py"):
            return f"{_absolute(base / file)}:{function}"
        if re.fullmatch(r"\w+(\.\w+)*", file):
            return text
    return str(_absolute(base / text))


def _absolute(path: Path) -> Path:
    """A link keeps its own name, which says the format: what it leads to may be called anything."""
    return path.parent.resolve() / path.name


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """ "unknown stage 'quantise', did you mean 'quantize'?" """
    names = [name for name in known if name]
    if not names:
        return f"unknown {what} {name!r}, there is none"
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(names)}"
    return f"unknown {what} {name!r}, {hint}"


def _explain(detail: Any, kind: type[Options]) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return unknown("option", name, kind.model_fields)
    message = detail["msg"].removeprefix("Value error, ")
    if not name:
        return str(message)  # of options that do not go together
    return f"{name}: {message[:1].lower()}{message[1:]}, not {detail['input']!r}"


def _takes_list(kind: type[Options], name: str) -> bool:
    found = kind.model_fields.get(name)
    return found is not None and get_origin(found.annotation) in (list, tuple, set, frozenset)


def _part(value: object) -> tuple[float, float]:
    """(0.0, 0.8) for "first 80 %", (0.8, 1.0) for "last 20 %"."""
    end, _, share = str(value).partition(" ")
    fraction = units.parse_fraction(share) if end in ("first", "last") else 0.0
    if not 0 < fraction < 1:
        raise ValueError(f"{value!r} is no part of the samples: write it like 'first 80 %' or 'last 20 %'")
    return (0.0, fraction) if end == "first" else (round(1 - fraction, 9), 1.0)


def _published(group: str) -> set[str]:
    import importlib.metadata

    return {entry.name for entry in importlib.metadata.entry_points(group=group)}


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: f"the text {value!r}", type(None): "nothing"}
    return names.get(type(value), f"{value!r}")
