"""Random changes of training images that leave their meaning: mirrored, moved, cropped.

On tensors, drawn by a generator. It knows nothing of models or labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeopt.errors import InputError

AUGMENTATIONS = ("none", "flip", "shift", "crop", "flip_shift")
SHIFT = 14  # images are moved by up to one part in so many of their size: 2 pixels of 28
SMALLEST_CROP = 0.7  # of an image's area


def augment(name: str, inputs: Sequence[Any], generator: Any) -> list[Any]:
    """The inputs with every image (a float tensor of shape (N, C, H, W)) changed at random, the same way for all.

    flip: mirrored left to right with probability 1/2. shift: moved by up to a 14th of its size each way, the border
    repeated. crop: a window of 70 to 100 % of its area, enlarged. Raises InputError where there is no image.
    """
    if name == "none":
        return list(inputs)
    images = [position for position, value in enumerate(inputs) if value.ndim == 4 and value.is_floating_point()]
    if not images:
        raise InputError(
            f"augment: {name} is for images, and the inputs are {', '.join(str(list(v.shape[1:])) for v in inputs)}",
            remedy="Set `augment: none`.",
        )
    changed = list(inputs)
    start = generator.get_state()
    for position in images:
        generator.set_state(start)
        value = changed[position]
        if name in ("flip", "flip_shift"):
            value = _flipped(value, generator)
        if name in ("shift", "flip_shift"):
            value = _shifted(value, generator)
        if name == "crop":
            value = _cropped(value, generator)
        changed[position] = value
    return changed


def _flipped(images: Any, generator: Any) -> Any:
    import torch

    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def _shifted(images: Any, generator: Any) -> Any:
    import torch

    count, _, height, width = images.shape
    rows, columns = [
        (torch.arange(size) + torch.randint(-most, most + 1, (count, 1), generator=generator)).clamp(0, size - 1)
        for size, most in ((height, max(1, height // SHIFT)), (width, max(1, width // SHIFT)))
    ]
    moved = images.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _cropped(images: Any, generator: Any) -> Any:
    import torch

    count = len(images)
    side = (SMALLEST_CROP + (1 - SMALLEST_CROP) * torch.rand(count, generator=generator)).sqrt()
    centre = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - side)[:, None]
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = side
    affine[:, :, 2] = centre
    grid = torch.nn.functional.affine_grid(affine, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
