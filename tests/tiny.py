"""A convolutional network of a few thousand weights in the formats that a model may come in, and samples for it."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import fashion
import numpy as np

from edgeopt import formats
from edgeopt.formats import ModelRef
from edgeopt.samples import Preprocess, write_samples

SOURCES = ("torch", "onnx", "pt2", "torchscript")
INPUT, COUNT = (3, 12, 12), 48
NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Linear(64, 5)

    def forward(self, image):
        return self.head(self.body(self.stem(image)).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()
"""


def images(count: int = COUNT, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *INPUT)).astype(np.float32)


@functools.cache
def samples() -> Path:
    """A folder of images with labels."""
    folder = fashion.scratch() / "tiny-samples"
    folder.mkdir()
    write_samples(folder, {"image": images()}, np.arange(COUNT) % 5, Preprocess())
    return folder


@functools.cache
def outputs() -> np.ndarray:
    """What torch computes of the images: float32 of shape (48, 5)."""
    import torch

    with torch.no_grad():
        found: np.ndarray = _module()(torch.from_numpy(images())).numpy()
    return found


@functools.cache
def written(source: str) -> str:
    """The network in one of `SOURCES`, as a user names it."""
    import torch

    folder = fashion.scratch() / f"tiny-{source}"
    folder.mkdir()
    one = torch.from_numpy(images(2))
    if source == "onnx":  # as it comes from a program without batch norms
        return str(brought_in("torch")[1] / "model.onnx")
    if source == "torch":
        (folder / "tiny_net.py").write_text(NETWORK)
        return f"{folder / 'tiny_net.py'}:build"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about torch
        if source == "pt2":
            batch = torch.export.Dim("batch")
            torch.export.save(torch.export.export(_module(), (one,), dynamic_shapes=({0: batch},)), folder / "net.pt2")
            return str(folder / "net.pt2")
        torch.jit.trace(_module(), (one,)).save(str(folder / "net.pt"))
    return str(folder / "net.pt")


@functools.cache
def brought_in(source: str) -> fashion.Built:
    """The network as its import leaves it."""
    model, out = written(source), fashion.scratch() / f"tiny-{source}-import"
    out.mkdir()
    told = formats.bring_in(ModelRef(model), samples(), out, lambda fraction, text: None)
    return fashion.artifact(out, told.produced), out


def _module():
    from edgeopt.formats import torch as factories

    return factories.load(ModelRef(written("torch"))).eval()
