"""Runtimes that load an artifact on the device and run it: one file each, vendor libraries inside functions.

A backend is a module with these names, held together by the protocol `Backend`:

    FORMAT          the artifact format it loads
    DISTRIBUTION    the PyPI distribution that brings the runtime, whose version stands in measurements
    IMPORTS         the modules that loading it imports
    load(...)       an artifact's main file to a `Session`

Four names are optional: `INSTALL`, the command that brings the runtime where it is not "pip install <DISTRIBUTION>";
`devices()`, which gives {name: [capabilities]} of what the runtime computes on, and raises what keeps it from running;
and `smallest(runtime, threads)`, a session of a model of next to nothing (one Relu of four floats) with those settings,
by which the cost of a call is measured; and `placement(main, runtime, threads, feeds)`, which loads the file as `load`
does and tells where each of its operators runs, as `edgeopt.placement.Placed` (a backend without it cannot tell):
`feeds` are for a runtime that tells it only of an inference.

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
    "ncnn": "edgeopt.backends.ncnn",
}

GROUP = "edgeopt.backends"
SMALLEST_ONNX = (  # one Relu of four floats, opset 13
    b'\x08\x07:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x04'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x04B\x04\n\x00\x10\r"
)

Feeds = Mapping[str, "np.ndarray[Any, Any]"]


class Bound(Protocol):
    """An inference whose buffers are in place. Calling it is one inference on what they hold."""

    def fill(self, feeds: Feeds) -> None:
        """Put other inputs of the same shapes and dtypes where the runtime reads them."""
        ...

    def __call__(self) -> object: ...

    def outputs(self) -> Dict[str, np.ndarray[Any, Any]]:
        """Copies of what the last call computed."""
        ...


class BoundRun:
    """An inference of a runtime that can bind nothing: each call runs its feeds anew."""

    def __init__(self, run: Callable[[Feeds], Dict[str, np.ndarray[Any, Any]]], feeds: Feeds) -> None:
        self._run = run
        self.fill(feeds)

    def fill(self, feeds: Feeds) -> None:
        self._feeds = feeds

    def __call__(self) -> None:
        self._outputs = self._run(self._feeds)

    def outputs(self) -> Dict[str, np.ndarray[Any, Any]]:
        return self._outputs


class Session(Protocol):
    """A loaded model, ready to run.

    `inputs` and `outputs` are in the runtime's own order, with its own names.
    """

    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]

    def run(self, feeds: Feeds) -> Dict[str, np.ndarray[Any, Any]]:
        """One inference. `feeds` maps each input's name to an array of its shape and dtype; the outputs are copies.

        Raises InputError for other feeds: see `check_feeds`.
        """
        ...

    def bind(self, feeds: Feeds) -> Bound:
        """Everything that can be done before an inference of inputs of these shapes, done; `feeds` fill it.

        One at a time: it holds until the session's next `run` or `bind`, which may take over its buffers.
        """
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


def check_feeds(feeds: Feeds, inputs: Sequence[TensorSpec]) -> None:
    """Raises InputError naming the input that is missing, not the model's, or of another shape or dtype than its own.

    A dimension that is free takes any size. Sessions ask this before their runtime is given anything: what runtimes do
    with wrong feeds goes from a cast that nobody sees to a crash.
    """
    for spec in inputs:
        if spec.name not in feeds:
            raise InputError(f"no values are given for the model's input {spec}")
        given = feeds[spec.name]
        fits = len(given.shape) == len(spec.shape) and all(
            isinstance(wanted, str) or wanted == size for wanted, size in zip(spec.shape, given.shape)
        )
        if not fits or given.dtype.name != spec.dtype:
            raise InputError(f"the model's input {spec} does not take {given.dtype}{list(given.shape)}")
    unknown = sorted(set(feeds) - {spec.name for spec in inputs})
    if unknown:
        known = ", ".join(spec.name for spec in inputs)
        raise InputError(f"the model has no input {', '.join(unknown)}", remedy=f"Its inputs: {known}.")


def version(distribution: str) -> Optional[str]:
    """The installed version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
