"""The small jobs of a bench that load a model or its samples, each in a worker: a runtime may crash.

This module knows nothing of time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from edgeopt import backends
from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError
from edgeopt.samples import Preprocess, Samples, adapt, write_samples
from edgeopt.worker import Channel

RANDOM_SAMPLES = 4


def signature(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """Load `args["main"]` by `args["backend"]`; returns its inputs and outputs as JSON."""
    channel.progress(None, "reading the signature")
    session = backends.require(args["backend"]).load(Path(args["main"]), {}, 1)
    return {
        "inputs": [spec.to_json() for spec in session.inputs],
        "outputs": [spec.to_json() for spec in session.outputs],
    }


def fit(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """Whether the samples in the folder `args["samples"]` are what `args["inputs"]` take. Raises InputError."""
    channel.progress(None, "looking at the samples")
    specs = _specs(args)
    samples = Samples(Path(args["samples"]))
    adapt(samples.batch(0, _batch(specs)), specs)
    return {}


def draw(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """Write random samples for `args["inputs"]` as the folder `args["out"]`: normal, mean 0, deviation 1, seed 0.

    Raises InputError for inputs that random numbers say nothing about: integers, free dimensions.
    """
    import numpy as np

    channel.progress(None, "drawing inputs")
    specs = _specs(args)
    random = np.random.default_rng(0)
    arrays = {}
    for spec in specs:
        if np.dtype(spec.dtype).kind != "f":
            raise InputError(
                f"the input {spec} takes {spec.dtype}, and random integers may mean nothing to the model",
                remedy="Give real samples: --data samples.npz.",
            )
        free = [size for size in spec.shape[1:] if isinstance(size, str)]
        if free or not spec.shape:
            what = f"leaves {', '.join(free)} free" if free else "has no axis of samples"
            raise InputError(f"the input {spec} {what}", remedy="Give real samples: --data samples.npz.")
        shape = (RANDOM_SAMPLES * _batch(specs), *(size for size in spec.shape[1:] if isinstance(size, int)))
        arrays[spec.name] = random.standard_normal(shape).astype(spec.dtype)
    write_samples(Path(args["out"]), arrays, None, Preprocess())
    return {"count": RANDOM_SAMPLES}


def _specs(args: Mapping[str, Any]) -> List[TensorSpec]:
    return [TensorSpec.from_json(spec) for spec in args["inputs"]]


def _batch(specs: Sequence[TensorSpec]) -> int:
    """How many samples a call takes: the first dimension where it is a number, else one."""
    first = specs[0].shape[0] if specs and specs[0].shape else None
    return first if isinstance(first, int) else 1
