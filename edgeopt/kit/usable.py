"""Which backends are usable here: those whose runtime has really been imported, in a process of its own.

Nothing is installed or changed.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from edgeopt import __version__, backends
from edgeopt.errors import EdgeoptError, WorkerCrashed
from edgeopt.measuring import machine
from edgeopt.worker import Limits, Worker

SCHEMA = 1
IMPORT_SECONDS = 60.0


@dataclass(frozen=True)
class Backend:
    """A backend. `missing` names what is not installed, `install` the command that brings it, `reason` what went wrong
    where all is installed and still it does not load. `devices` maps what the runtime can use to its capabilities."""

    usable: bool
    version: Optional[str] = None
    missing: Optional[str] = None
    install: Optional[str] = None
    reason: Optional[str] = None
    devices: Mapping[str, Tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> Dict[str, Any]:
        return {
            "usable": self.usable,
            "version": self.version,
            "missing": self.missing,
            "install": self.install,
            "reason": self.reason,
            "devices": {name: list(capabilities) for name, capabilities in self.devices.items()},
        }


def names() -> Tuple[str, ...]:
    """Every backend, ours and other packages'."""
    published: Any = importlib.metadata.entry_points()
    select = getattr(published, "select", None)  # Python 3.9 gives a plain dict of groups
    found = select(group=backends.GROUP) if select else published.get(backends.GROUP, ())
    return tuple(dict.fromkeys([*backends.names(), *(entry.name for entry in found)]))


def backend(name: str, seconds: float = IMPORT_SECONDS) -> Backend:
    """Import one backend's runtime in a worker. A crash, a hang or an error of the import is told as the `reason`."""
    known: Dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgeopt-doctor-") as folder:
        log = Path(folder) / "log"
        try:
            with Worker(
                "edgeopt.backends.probe:probe", {"backend": name}, log=log, limits=Limits(seconds=seconds)
            ) as worker:
                known = worker.receive()
                devices = worker.result()["devices"]
        except WorkerCrashed as error:
            return Backend(False, **known, reason=" ".join([error.message, *_last_line(log)]))
        except EdgeoptError as error:
            return Backend(False, **known, reason=error.message)
    usable = known["missing"] is None
    return Backend(usable, **known, devices={device: tuple(able) for device, able in devices.items()})


def examine() -> Dict[str, Any]:
    """The machine and its backends, as the kit's `doctor --json` prints them."""
    every = names()
    with ThreadPoolExecutor(len(every)) as pool:
        probed = dict(zip(every, pool.map(backend, every)))
    return {
        "schema": SCHEMA,
        "edgeopt": __version__,
        "machine": {
            **machine.fingerprint().to_json(),
            "available_memory_bytes": machine.state().available_memory_bytes,
        },
        "backends": {name: found.to_json() for name, found in probed.items()},
    }


def _last_line(log: Path) -> List[str]:
    """What the dying process said last, in parentheses; the traceback that Python's faulthandler adds is left out."""
    text = log.read_text(errors="replace") if log.exists() else ""
    said = [line.strip() for line in text.split("Fatal Python error")[0].splitlines() if line.strip()]
    return [f"({said[-1][:200]})"] if said else []
