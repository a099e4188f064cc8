"""Drawn lines of text, half of them upside down, as a text reader's direction classifier sees them. No labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEIGHT, WIDTH = 48, 192
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:-/&"


def line(random: np.random.Generator) -> Any:
    """One image: uint8 (48, 192, 3)."""
    ground, ink = random.integers(120, 256, 3), random.integers(0, 110, 3)
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(int(value) for value in ground))
    text = "".join(random.choice(list(LETTERS), int(random.integers(4, 22))))
    font = ImageFont.load_default(int(random.integers(16, 38)))
    place = (int(random.integers(0, 24)), int(random.integers(-2, 12)))
    ImageDraw.Draw(image).text(place, text, tuple(int(value) for value in ink), font)
    image = image.rotate(
        float(random.normal(0, 1.5)) + 180 * int(random.integers(2)), fillcolor=tuple(map(int, ground))
    )
    noisy = np.asarray(image, np.float32) + random.normal(0, random.uniform(0, 12), (HEIGHT, WIDTH, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def lines(seed: int, count: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {"x": np.stack([line(random) for _ in range(count)])}


def train() -> dict[str, Any]:
    return lines(0, 8000)


def validation() -> dict[str, Any]:
    return lines(1, 1000)
