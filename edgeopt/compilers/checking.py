"""The outputs of a compiled float model beside those of the ONNX model that it was made of, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.artifact import TensorSpec
from edgeopt.backends import Session, onnxruntime
from edgeopt.errors import StageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

TOLERANCE = 1e-3  # of the largest magnitude of an output: other kernels round otherwise


def difference(
    source: Path, session: Session, name: str, inputs: Sequence[TensorSpec], batch: int, tolerance: float = TOLERANCE
) -> float:
    """The largest difference of an output of the `session` as a fraction of the largest magnitude.

    `inputs` are those of `source`, an ONNX file, `batch` stands for sizes that are free, `name` is that of the runtime.
    Raises StageError above `tolerance`, or where shapes differ.
    """
    import numpy as np

    feeds = examples(inputs, batch)
    expected = onnxruntime.load(source, {}, 1).run(feeds)
    found = session.run(feeds)
    worst = 0.0
    for output, wanted in expected.items():
        if found[output].shape != wanted.shape:
            raise StageError(f"output {output} is {list(found[output].shape)} in {name}, {list(wanted.shape)} in ONNX")
        if wanted.size:
            gap = np.abs(found[output].astype(np.float64) - wanted.astype(np.float64)).max()
            worst = max(worst, float(gap) / (float(np.abs(wanted).max()) or 1.0))
    if not worst <= tolerance:
        raise StageError(f"{name}'s outputs differ from those of the ONNX model by {worst:.1e} of their magnitude")
    return worst


def examples(inputs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """Feeds of the inputs' shapes: noise for floats, zeros for all else, which every model takes."""
    import numpy as np

    noise = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple(size if isinstance(size, int) else batch for size in spec.shape)
        floating = np.dtype(spec.dtype).kind == "f"
        found[spec.name] = (noise.standard_normal(shape) if floating else np.zeros(shape)).astype(spec.dtype)
    return found
