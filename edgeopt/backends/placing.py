"""Where the operators of a file run, asked of a backend. As a job for a worker: loading a model may crash a runtime.

This module knows nothing of what was expected of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Tuple

from edgeopt import backends
from edgeopt.artifact import TensorSpec
from edgeopt.errors import EdgeoptError, InputError
from edgeopt.placement import Placement, grouped
from edgeopt.samples import Samples, adapt
from edgeopt.text import first_line
from edgeopt.worker import Channel

if TYPE_CHECKING:
    import numpy as np

    Feeds = Mapping[str, "np.ndarray[Any, Any]"]


def tell(name: str, main: Path, runtime: Mapping[str, Any], threads: int, feeds: Feeds) -> Placement:
    """What the backend `name` tells of the file `main`; without operators where it cannot."""
    tells = getattr(backends.require(name), "placement", None)
    if tells is None:
        return Placement(reason=f"{name} does not tell")
    try:
        return Placement(grouped(tells(main, runtime, threads, feeds)))
    except (EdgeoptError, OSError) as error:
        return Placement(reason=first_line(error))


def run(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """The job. `args`: backend, main (path), runtime, samples (a folder, or None for zeros). Returns a `Placement` as
    JSON."""
    channel.progress(None, "asking the runtime where operators run")
    name, main, runtime = args["backend"], Path(args["main"]), args["runtime"]
    try:
        inputs = backends.require(name).load(main, runtime, 1).inputs
        feeds = adapt(Samples(Path(args["samples"])).batch(0, 1), inputs) if args["samples"] else _zeros(inputs)
    except EdgeoptError as error:
        return Placement(reason=first_line(error)).to_json()
    return tell(name, main, runtime, 1, feeds).to_json()


def _zeros(inputs: Tuple[TensorSpec, ...]) -> Feeds:
    """One sample of zeros. Raises InputError where a size other than the batch is free."""
    import numpy as np

    for spec in inputs:
        if any(isinstance(size, str) for size in spec.shape[1:]):
            raise InputError(f"the size of the input {spec} is free: --data gives it")
    return {spec.name: np.zeros([1 if isinstance(s, str) else s for s in spec.shape], spec.dtype) for spec in inputs}
