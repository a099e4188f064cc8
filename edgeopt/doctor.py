"""What is usable here, and what to install for the rest.

A backend counts as usable when its runtime has really been imported, in a process of its own with a time limit. Of the
steps' tools only the presence is looked at, because importing them takes seconds each. Nothing is installed or changed.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import edgeopt
from edgeopt import backends, stages, store
from edgeopt.conditions import Machine
from edgeopt.errors import EdgeoptError
from edgeopt.kit import usable
from edgeopt.kit.usable import IMPORT_SECONDS, Backend
from edgeopt.measuring import machine

SCHEMA = 1
PROGRAMS: dict[str, str] = {
    "edgetpu_compiler": "compiles TFLite models for the Coral Edge TPU",
    "trtexec": "builds and measures TensorRT engines",
    "adb": "reaches Android devices",
    "ssh": "reaches other devices",
}


@dataclass(frozen=True)
class Step:
    """An alternative of a recipe's step. `tools` maps the distributions that it needs to their versions, None for those
    not installed; `reason` says why the step could not be asked what it needs."""

    tools: Mapping[str, str | None] = field(default_factory=dict)
    reason: str | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name, version in self.tools.items() if version is None)

    @property
    def usable(self) -> bool:
        return self.reason is None and not self.missing

    @property
    def install(self) -> str | None:
        return f"pip install {' '.join(self.missing)}" if self.missing else None

    def to_json(self) -> dict[str, Any]:
        return {
            "usable": self.usable,
            "tools": dict(self.tools),
            "missing": list(self.missing),
            "install": self.install,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Report:
    """What was found. `steps` are named as in a recipe ("quantize int8"), `programs` maps names to paths."""

    machine: Machine
    available_memory_bytes: int | None
    cache: Path
    cache_free_bytes: int | None
    backends: Mapping[str, Backend]
    steps: Mapping[str, Step]
    programs: Mapping[str, str | None]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "edgeopt": edgeopt.__version__,
            "machine": {
                **self.machine.to_json(),
                "available_memory_bytes": self.available_memory_bytes,
                "cache": str(self.cache),
                "cache_free_bytes": self.cache_free_bytes,
            },
            "backends": {name: backend.to_json() for name, backend in self.backends.items()},
            "steps": {name: step.to_json() for name, step in self.steps.items()},
            "programs": dict(self.programs),
        }


def examine() -> Report:
    """Look at everything. Takes as long as the slowest backend's import, `IMPORT_SECONDS` at the most."""
    names = usable.names()
    with ThreadPoolExecutor(len(names)) as pool:
        probed = dict(zip(names, pool.map(backend, names)))
    cache = store.default_root()
    return Report(
        machine=machine.fingerprint(),
        available_memory_bytes=machine.state().available_memory_bytes,
        cache=cache,
        cache_free_bytes=free_bytes(cache),
        backends=probed,
        steps=dict(steps()),
        programs=programs(),
    )


def backend(name: str) -> Backend:
    """Import one backend's runtime in a worker: `edgeopt.kit.usable.backend`."""
    return usable.backend(name, IMPORT_SECONDS)


def steps() -> Iterator[tuple[str, Step]]:
    """Every alternative of every stage that needs libraries, ours and other packages', by its name in a recipe."""
    published = importlib.metadata.entry_points(group="edgeopt.stages")
    for name in dict.fromkeys([*stages.STAGES, *(entry.name for entry in published)]):
        try:
            stage = stages.find(name)
            for choice, options in stage.choices().items():
                tools = stage.tools(choice, options.model_construct())
                if tools:
                    asked = getattr(stage, "programs", None)
                    absent = [one for one in (asked(choice) if asked else ()) if shutil.which(one) is None]
                    reason = f"{absent[0]} is not on the search path" if absent else None
                    yield f"{name} {choice}".strip(), Step({tool: backends.version(tool) for tool in tools}, reason)
        except (ImportError, EdgeoptError) as error:
            yield name, Step(reason=f"{type(error).__name__}: {error}")


def programs() -> dict[str, str | None]:
    """Where the search path has each of `PROGRAMS`, None for those it has not."""
    return {name: shutil.which(name) for name in PROGRAMS}


def free_bytes(folder: Path) -> int | None:
    """Free space on the disk that holds `folder`, or would if it were there. None where no parent can be read."""
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return None
