"""What a recipe's steps do to a model: one file a stage, each with its own options and version.

A stage is a module with the names of the protocol `Stage`. Its alternatives ("int8", "openvino") are its choices; a
stage whose alternatives differ in options alone has the one choice "". `run` is called in a worker process of its own,
in an empty folder, and may import what it likes; the module itself imports no vendor library, because plans are made
from it.

To add one from another package, publish such a module as an entry point in the group `edgeopt.stages`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

from edgeopt.artifact import Artifact, TensorSpec, sha256_of_file
from edgeopt.errors import EdgeoptError, InputError
from edgeopt.target import Target

STAGES: dict[str, str] = {
    "prune": "edgeopt.stages.prune",
    "distill": "edgeopt.stages.distill",
    "quantize": "edgeopt.stages.quantize",
    "compile": "edgeopt.stages.compile",
}
PLANNED: dict[str, str] = {"keep": "edgeopt.stages.keep"}  # what plans may have, and no recipe


def _located(value: str, info: ValidationInfo) -> str:
    if not info.context:
        return value
    try:
        return str(info.context["locate"](value))
    except EdgeoptError as error:
        raise ValueError(error.message) from None


Location = Annotated[str, AfterValidator(_located)]  # of an option: a path or "file.py:function", absolute once read


class Options(BaseModel):
    """The base of every stage's options: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    always_named: ClassVar[tuple[str, ...]] = ()  # options in a candidate's name even at their defaults

    def told(self) -> Mapping[str, str]:
        """{option: what it adds to the name of a candidate where it is not at its default}, for options told otherwise
        than by name and value. Unlike values give unlike words."""
        return {}


@dataclass(frozen=True)
class StageJob:
    """One step to do.

    `parent` is the artifact to start from, in `parent_folder`. `lineage` maps the stages before this one ("import",
    "quantize") to the folders of what they made, so that a stage can go back to the float model. `samples` maps a role
    ("calibration") to a folder that `edgeopt.samples.Samples` reads. `progress(fraction, text)` tells how far the
    step is: a fraction of one, or None where it cannot be known. Files are written below `out`, which is empty.
    `model` and `weights` name the source as the recipe does, absolute, for stages that make its torch module again.
    `scratch` is a folder, not yet there, whose files outlive a worker that is killed: the same step done again finds
    them. They are gone once the step is done. `threads` is the step's share of the cores, None where nobody shared out.
    """

    choice: str
    options: Any
    parent: Artifact
    parent_folder: Path
    lineage: Mapping[str, Path]
    samples: Mapping[str, Path]
    target: Target
    out: Path
    progress: Callable[[float | None, str], None]
    model: str = ""
    weights: str | None = None
    scratch: Path | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Produced:
    """What a step wrote below its `out` folder. Fields as in `Artifact`.

    `sources` are the Python files that were found to decide it, where options named code of the user's.
    """

    format: str
    main: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    runtime: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    for_this_target: bool = False
    sources: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "main": self.main,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "precision": self.precision,
            "runtime": dict(self.runtime),
            "details": dict(self.details),
            "for_this_target": self.for_this_target,
            "sources": [str(path) for path in self.sources],
        }


@dataclass(frozen=True)
class Search:
    """What an alternative leaves to be found by measuring: how large a share it removes.

    With a `limit` (ns for the quantity "latency p50", bytes for "size"): the smallest share that keeps it. Without one
    a ladder: at most `rungs` of the shares that pay are built.
    """

    quantity: str | None = None
    limit: int | None = None
    rungs: int = 1


class Stage(Protocol):
    """The module of a stage.

    Some names are optional. `USES_MODULE = True`: it makes the source's torch module again (`edgeopt.modules`), so that
    what the source is made of is among its inputs. `is_identity(choice, options)`: whether there is nothing to do.
    `RECOVERS = True`: it makes good what the steps before it cost, and has nothing to do where all of them had nothing
    to do, unless its option `always` is set. `REPEATS = True`: a recipe may have it again after other stages.
    `files(choice, options)`: the locations that its options name, whose content is among its inputs. And two that come
    together: `search(choice, options)`, what has to be found before it can be done, a `Search` or None; `at(choice,
    options, fraction)`, the options with which it removes that fraction. `probe(choice, options)`: the choice and
    options that cost least and give an artifact of the same speed and size, however wrong, for searches.
    """

    VERSION: int

    def choices(self) -> Mapping[str, type[Options]]:
        """The alternatives a recipe may name, each with the class of its options. "none" passes the model through."""
        ...

    def tools(self, choice: str, options: Any) -> Sequence[str]:
        """The distributions whose versions change the result."""
        ...

    def sample_roles(self, choice: str, options: Any, precision: str) -> Sequence[str]:
        """The data it reads, such as ("calibration",), when its parent computes in `precision`."""
        ...

    def objection(self, choice: str, options: Any, precision: str) -> str | None:
        """Why it makes no sense on a parent that computes in `precision`: that alternative is then left out."""
        ...

    def precision(self, choice: str, options: Any, precision: str) -> str:
        """What the result computes in when its parent computes in `precision`."""
        ...

    def run(self, job: StageJob) -> Produced:
        """Do the step. Raises StageError (UnsupportedOperator names the operator)."""
        ...


def uses_module(name: str) -> bool:
    """Whether a stage makes the source's torch module again."""
    return bool(getattr(find(name), "USES_MODULE", False))


def is_identity(name: str, choice: str, options: Any) -> bool:
    """Whether an alternative of a stage passes the model through: the choice "none", and what the stage says."""
    asked = getattr(find(name), "is_identity", None)
    return choice == "none" or (asked is not None and bool(asked(choice, options)))


def recovers(name: str, options: Any) -> bool:
    """Whether an alternative of a stage has nothing to do on a model that no step has changed."""
    return bool(getattr(find(name), "RECOVERS", False)) and not getattr(options, "always", False)


def search_of(name: str, choice: str, options: Any) -> Search | None:
    """What has to be found by measuring before an alternative of a stage can be done."""
    asked = getattr(find(name), "search", None)
    return None if asked is None or choice == "none" else cast("Search | None", asked(choice, options))


def at(name: str, choice: str, options: Any, fraction: float) -> Options:
    """The options with which a searched alternative removes a fraction."""
    return cast(Options, cast(Any, find(name)).at(choice, options, fraction))


def probe(name: str, choice: str, options: Any) -> tuple[str, Options]:
    """Choice and options for an artifact that is as fast and large as that of an alternative, and nothing more."""
    asked = getattr(find(name), "probe", None)
    return (choice, options) if asked is None else cast("tuple[str, Options]", asked(choice, options))


def repeats(name: str) -> bool:
    """Whether a recipe may have a stage more than once."""
    return bool(getattr(find(name), "REPEATS", False))


def files(name: str, choice: str, options: Any) -> Sequence[str]:
    """The locations, files or "file.py:function", that the options of a stage name."""
    asked = getattr(find(name), "files", None)
    return () if asked is None else tuple(asked(choice, options))


def digest(location: str) -> str:
    """The sha256 of the file that an option names; the name itself for "package.module:function".

    Raises InputError where there is no such file.
    """
    file, colon, function = location.rpartition(":")
    path = Path(file if colon and function.isidentifier() and file else location)
    if not path.suffix and not path.is_absolute():
        return location
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}", remedy="Paths in a recipe are relative to its own folder."
        ) from None


def find(name: str) -> Stage:
    """The module of a stage, ours or another package's."""
    module = STAGES.get(name) or PLANNED.get(name)
    if module is None:
        for entry in importlib.metadata.entry_points(group="edgeopt.stages"):
            if entry.name == name:
                return cast(Stage, entry.load())
        raise InputError(f"there is no stage {name!r}", remedy=f"Stages: {', '.join(STAGES)}.")
    return cast(Stage, importlib.import_module(module))
