"""The Fashion-MNIST sample as Olive's data: what `run.py`'s configuration names."""

from pathlib import Path

import numpy as np
import torch
from olive.data.registry import Registry

SAMPLE = Path(__file__).parents[3] / "sample_models" / "fashion_mnist"


class Images(torch.utils.data.Dataset):
    """The first `count` of a part, preprocessed as the recipe says."""

    def __init__(self, part: str, count: int) -> None:
        with np.load(SAMPLE / f"{part}.npz") as arrays:
            self.images = (arrays["image"][:count].astype(np.float32) - 73) / 90
            self.labels = arrays["labels"][:count].astype(np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        return {"image": self.images[index]}, int(self.labels[index])


@Registry.register_dataset()
def fashion_mnist(part: str, count: int, **_: object) -> Images:
    return Images(part, count)


@Registry.register_post_process()
def best_class(scores: torch.Tensor, **_: object) -> torch.Tensor:
    return scores.argmax(-1)
