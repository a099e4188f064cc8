"""What is usable here, and what to install for the rest.

A backend counts as usable when its runtime has really been imported, in a process of its own with a time limit. Of the
steps' tools only the presence is looked at, because importing them takes seconds each. Nothing is installed or changed.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import edgeopt
from edgeopt import backends, stages, store
from edgeopt.bench import machine
from edgeopt.errors import EdgeoptError, WorkerCrashed
from edgeopt.measurement import Machine
from edgeopt.worker import Limits, Worker

SCHEMA = 1
IMPORT_SECONDS = 60.0
PROGRAMS: dict[str, str] = {
    "edgetpu_compiler": "compiles TFLite models for the Coral Edge TPU",
    "trtexec": "builds and measures TensorRT engines",
    "adb": "reaches Android devices",
    "ssh": "reaches other devices",
}


@dataclass(frozen=True)
class Backend:
    """A backend. `missing` names what is not installed, `install` the command that brings it, `reason` what went wrong
    where all is installed and still it does not load. `devices` maps what the runtime can use to its capabilities."""

    usable: bool
    version: str | None = None
    missing: str | None = None
    install: str | None = None
    reason: str | None = None
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "usable": self.usable,
            "version": self.version,
            "missing": self.missing,
            "install": self.install,
            "reason": self.reason,
            "devices": {name: list(capabilities) for name, capabilities in self.devices.items()},
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
    published = importlib.metadata.entry_points(group="edgeopt.backends")
    names = tuple(dict.fromkeys([*backends.names(), *(entry.name for entry in published)]))
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
    """Import one backend's runtime in a worker. A crash, a hang or an error of the import is told as the `reason`."""
    known: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgeopt-doctor-") as folder:
        log = Path(folder) / "log"
        try:
            with Worker(
                "edgeopt.backends.probe:probe", {"backend": name}, log=log, limits=Limits(seconds=IMPORT_SECONDS)
            ) as worker:
                known = worker.receive()
                devices = worker.result()["devices"]
        except WorkerCrashed as error:
            return Backend(False, **known, reason=" ".join([error.message, *_last_line(log)]))
        except EdgeoptError as error:
            return Backend(False, **known, reason=error.message)
    usable = known["missing"] is None
    return Backend(usable, **known, devices={device: tuple(able) for device, able in devices.items()})


def steps() -> Iterator[tuple[str, Step]]:
    """Every alternative of every stage that needs libraries, ours and other packages', by its name in a recipe."""
    published = importlib.metadata.entry_points(group="edgeopt.stages")
    for name in dict.fromkeys([*stages.STAGES, *(entry.name for entry in published)]):
        try:
            stage = stages.find(name)
            for choice, options in stage.choices().items():
                tools = stage.tools(choice, options.model_construct())
                if tools:
                    yield f"{name} {choice}".strip(), Step({tool: backends.version(tool) for tool in tools})
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


def _last_line(log: Path) -> list[str]:
    """What the dying process said last, in parentheses; the traceback that Python's faulthandler adds is left out."""
    text = log.read_text(errors="replace") if log.exists() else ""
    said = [line.strip() for line in text.split("Fatal Python error")[0].splitlines() if line.strip()]
    return [f"({said[-1][:200]})"] if said else []
