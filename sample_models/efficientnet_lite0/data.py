"""Crops of photographs that scikit-image and scikit-learn carry inside their wheels: nothing is downloaded.

Calibration and validation are drawn from different photographs. They have no labels: with them a model is judged by
how closely it follows the original one. What they show is not what ImageNet shows (a galaxy field, stained tissue), so
the original itself is unsure on many of them, and agreement on them is a harsher measure than on ImageNet.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 224
SMALLEST_CROP = 0.5  # of the photograph's shorter side
CALIBRATION = (
    "skimage/data/coffee.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "sklearn/datasets/images/flower.jpg",
)
VALIDATION = (
    "skimage/data/astronaut.png",
    "skimage/data/chelsea.png",
    "skimage/data/rocket.jpg",
    "skimage/data/retina.jpg",
    "sklearn/datasets/images/china.jpg",
)


def calibration() -> dict[str, np.ndarray]:
    """100 crops: {"image": (100, 224, 224, 3), uint8, RGB}."""
    return {"image": crops(CALIBRATION, 100, seed=0)}


def validation() -> dict[str, np.ndarray]:
    """200 crops of other photographs: {"image": (200, 224, 224, 3), uint8, RGB}."""
    return {"image": crops(VALIDATION, 200, seed=1)}


def crops(photographs: tuple[str, ...], count: int, seed: int) -> np.ndarray:
    """Squares of random size and place, every other one mirrored on average, from each photograph in turn."""
    generator = np.random.default_rng(seed)
    opened = [Image.open(path_of(name)).convert("RGB") for name in photographs]
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for index in range(count):
        photograph = opened[index % len(opened)]
        shorter = min(photograph.size)
        side = int(generator.integers(round(SMALLEST_CROP * shorter), shorter, endpoint=True))
        left, top = (int(generator.integers(0, length - side, endpoint=True)) for length in photograph.size)
        box = (left, top, left + side, top + side)
        pixels = np.asarray(photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))
        images[index] = pixels[:, ::-1] if generator.random() < 0.5 else pixels
    return images


def path_of(name: str) -> Path:
    """A file inside an installed package, found without importing the package."""
    package, _, inside = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the sample photographs need {package}: pip install 'edgeopt[samples]'")
    return Path(spec.submodule_search_locations[0]) / inside
