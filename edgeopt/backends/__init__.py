"""Runtimes that load an artifact on the device and run it: one file each, vendor libraries inside functions.

A backend is a module with these names, held together by the protocol `Backend`:

    FORMAT          the artifact format it loads
    DISTRIBUTION    the PyPI distribution that brings the runtime, whose version stands in measurements
    IMPORTS         the modules that loading it imports
    load(...)       an artifact's main file to a `Session`

Two names are optional: `INSTALL`, the command that brings the runtime where it is not "pip install <DISTRIBUTION>"; and
`devices()`, which gives {name: [capabilities]} of what the runtime computes on, and raises what keeps it from running.

To add one from another package, publish such a module as an entry point in the group `edgeopt.backends`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Protocol, Sequence, Tuple, cast

from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError, MissingDependency

if TYPE_CHECKING:
    import numpy as np

BACKENDS: Dict[str, str] = {
    "onnxruntime": "edgeopt.backends.onnxruntime",
    "openvino": "edgeopt.backends.openvino",
    "tflite": "edgeopt.backends.tflite",
    "edgetpu": "edgeopt.backends.edgetpu",
    "tensorrt": "edgeopt.backends.tensorrt",
    "torch": "edgeopt.backends.torch",
}

GROUP = "edgeopt.backends"

Feeds = Mapping[str, "np.ndarray[Any, Any]"]


class Session(Protocol):
    """A loaded model, ready to run.

    `inputs` and `outputs` are in the runtime's own order, with its own names.
    """

    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]

    def run(self, feeds: Feeds) -> Dict[str, np.ndarray[Any, Any]]:
        """One inference. `feeds` maps each input's name to an array of its shape and dtype; the outputs are copies."""
        ...

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """Everything that can be done before an inference, done. Each call of the result is one inference."""
        ...


class Backend(Protocol):
    """The module of a backend."""

    FORMAT: str
    DISTRIBUTION: str
    IMPORTS: Sequence[str]

    def load(self, main: Path, runtime: Mapping[str, Any], threads: int) -> Session:
        """Load the file `main`.

        `runtime` is the artifact's own settings ({"precision": "bf16"}), `threads` the number of intra-op threads.
        Raises MissingDependency, CorruptArtifact or UnsupportedOperator (naming the operator).
        """
        ...


@dataclass(frozen=True)
class Status:
    """Whether a backend is installed here: `missing` names what is not, `install` is the command that brings it."""

    usable: bool
    version: Optional[str]
    missing: Optional[str] = None
    install: Optional[str] = None


def names() -> Tuple[str, ...]:
    """Every backend that edgeopt brings, in the order in which they are shown."""
    return tuple(BACKENDS)


def find(name: str) -> Backend:
    """The module of a backend, ours or another package's. Imports no vendor library."""
    module = BACKENDS.get(name)
    if module is None:
        published: Any = importlib.metadata.entry_points()
        select = getattr(published, "select", None)  # Python 3.9 gives a plain dict of groups
        for entry in select(group=GROUP) if select else published.get(GROUP, ()):
            if entry.name == name:
                return cast(Backend, entry.load())
        raise InputError(f"there is no backend {name!r}", remedy=f"Backends: {', '.join(BACKENDS)}.")
    return cast(Backend, importlib.import_module(module))


def status(name: str) -> Status:
    """Looks for the backend's modules without importing them."""
    backend = find(name)
    for module in backend.IMPORTS:
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None:  # a mere folder of that name is a package without an origin
            return Status(False, None, missing=module, install=_install(backend))
    return Status(True, version(backend.DISTRIBUTION))


def _install(backend: Backend) -> str:
    return str(getattr(backend, "INSTALL", f"pip install {backend.DISTRIBUTION}"))


def require(name: str) -> Backend:
    """The backend's module, or MissingDependency with the line that installs what it lacks."""
    found = status(name)
    if not found.usable:
        raise MissingDependency(
            f"the backend {name} needs {found.missing}, which is not installed", remedy=f"Install it: {found.install}"
        )
    return find(name)


def version(distribution: str) -> Optional[str]:
    """The installed version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
