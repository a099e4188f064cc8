"""What a model is for, guessed from the shapes of its inputs and outputs. Pure; a guess is for a person to mend.

It knows nothing of files, and nothing of the numbers in a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgeopt.artifact import Dimension, TensorSpec

IMAGE_SIDE = 224  # pixels, where an image model leaves them free: ImageNet's
SEQUENCE = 128  # steps or tokens, where a model leaves their number free
OTHER = 16  # any further free dimension
CHANNELS = (1, 3, 4)
MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Task:
    """`name` is classifier, detector, dense (a value for each pixel), sequence or other; `why` says what told it.
    `metric` is what judges it: with labels, and without."""

    name: str
    why: str
    metric: str
    metric_without_labels: str


def task(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Task:
    """What a model with these inputs and outputs most likely does."""
    shapes = [output.shape for output in outputs]
    image = any(layout(spec) for spec in inputs)
    first = shapes[0] if shapes else ()
    if len(first) == 2 and len(shapes) == 1 and _is_classes(first[1]):
        return Task("classifier", f"one output of {first[1]} scores a sample", "top1", "agreement")
    if image and (any(len(shape) == 3 for shape in shapes) or sum(_is_boxes(shape) for shape in shapes) >= 1):
        return Task("detector", "an image goes in, rows of boxes or scores come out", "sqnr", "sqnr")
    if image and any(len(shape) == 4 for shape in shapes):
        return Task("dense", "an image goes in, one comes out", "sqnr", "sqnr")
    if any(len(spec.shape) == 3 or _is_whole(spec) for spec in inputs):
        return Task("sequence", "steps or tokens go in", "sqnr", "sqnr")
    return Task("other", f"{len(outputs)} output(s) that are no class scores", "sqnr", "sqnr")


def layout(spec: TensorSpec) -> str | None:
    """ "NCHW" or "NHWC" for an image, None for what is none."""
    if len(spec.shape) != 4 or (_is_whole(spec) and spec.dtype not in ("uint8", "int8")):
        return None
    if spec.layout:
        return spec.layout
    first, last = spec.shape[1], spec.shape[3]
    if first in CHANNELS and not (last in CHANNELS and _less(last, first)):
        return "NCHW"
    if last in CHANNELS:
        return "NHWC"
    return "NCHW" if isinstance(first, int) and first <= 32 else None


def filled(spec: TensorSpec, given: Mapping[str, TensorSpec]) -> tuple[TensorSpec, tuple[int, ...]]:
    """The input with a size for each dimension, one sample at a time, and the axes whose size is a guess.

    `given` holds inputs with their whole shapes by name.
    """
    if spec.name in given:
        return replace(spec, shape=given[spec.name].shape), ()
    guessed = tuple(axis for axis, size in enumerate(spec.shape) if axis and not isinstance(size, int))
    shape = [size if isinstance(size, int) else _size(spec, axis) for axis, size in enumerate(spec.shape)]
    return replace(spec, shape=tuple(shape)), guessed


def transposed(sample: Sequence[int], wanted: Sequence[Dimension]) -> tuple[int, ...] | None:
    """The order of a sample's axes that makes it fit, where the channels are at its other end: (2, 0, 1) or (1, 2, 0).

    None where it fits as it is, or in neither order.
    """
    if len(sample) != 3 or _fits(sample, wanted):
        return None
    orders = ((2, 0, 1), (1, 2, 0))
    return next((order for order in orders if _fits([sample[axis] for axis in order], wanted)), None)


def of_images(sample: Sequence[int]) -> tuple[Dimension, ...]:
    """What a torch model takes where these are its samples: images have their channels in front."""
    if len(sample) == 3 and sample[2] in CHANNELS and sample[0] not in CHANNELS:
        return (sample[2], "height", "width")
    return tuple(sample)


def _fits(sample: Sequence[int], wanted: Sequence[Dimension]) -> bool:
    return len(sample) == len(wanted) and all(
        not isinstance(size, int) or size == given for size, given in zip(wanted, sample)
    )


def _size(spec: TensorSpec, axis: int) -> int:
    if axis == 0:
        return 1
    if kind := layout(spec):
        return 3 if axis == kind.index("C") else IMAGE_SIDE
    return SEQUENCE if axis == 1 and len(spec.shape) <= 3 else OTHER


def _is_whole(spec: TensorSpec) -> bool:
    return spec.dtype.startswith(("int", "uint"))


def _is_classes(size: Dimension) -> bool:
    return not isinstance(size, int) or 2 <= size <= MOST_CLASSES


def _is_boxes(shape: Sequence[Dimension]) -> bool:
    return len(shape) >= 2 and shape[-1] == 4


def _less(a: Dimension, b: Dimension) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a < b
