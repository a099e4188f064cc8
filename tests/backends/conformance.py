"""What the suite runs over: every backend of edgeopt, and every one that an installed package publishes.

Artifacts are made by the compilers of the same names, once for all tests. A case is skipped where a library, a program
or a device is missing, in the words of the backend, and where the compiler objects to a model, in its words.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import example
import fashion
import numpy as np
import pytest
import targets
import torch
from torch import nn

from edgeopt import backends
from edgeopt.formats import ModelRef, exporting
from edgeopt.formats import torch as factories

# Made by the Edge TPU's own compiler, which is not here.
EDGE_TPU_PROGRAM = Path(__file__).parents[1] / "edgetpu" / "split_concat_edgetpu.tflite"
WIDE = 16384  # of an output: 64 KiB a sample


@dataclass(frozen=True)
class Subject:
    """A backend, and the options with which its compiler makes what it loads."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return "-".join((self.name, *(value for _, value in self.options)))

    @property
    def backend(self) -> Any:
        return backends.find(self.name)

    def compiled(self, model: str) -> fashion.Built:
        """The artifact of "small", "fashion" or "fashion int8"."""
        precision = "int8" if model == "fashion int8" else "fp32"
        if why := targets.lacks_for_compiling(self.name, precision, **dict(self.options)):
            pytest.skip(why)
        return _compiled(self, model)

    def loaded(self, model: str = "small") -> Any:
        """A session anew."""
        if lacking := targets.lacks(self.name):
            pytest.skip(lacking.message)
        artifact, folder = self.compiled(model)
        return self.backend.load(folder / artifact.main, artifact.runtime, 1)

    def a_file(self) -> tuple[Path, Mapping[str, Any]]:
        """A file that the backend loads where it can run, and its runtime settings."""
        if self.name == "edgetpu":
            return EDGE_TPU_PROGRAM, {"device": "usb"}
        artifact, folder = self.compiled("small")
        return folder / artifact.main, artifact.runtime


PUBLISHED = [name for name in example.published(backends.GROUP) if name not in backends.BACKENDS]
SUBJECTS = (*map(Subject, (*backends.names(), *PUBLISHED)), Subject("torch", (("mode", "aot"),)))


class Small(nn.Module):
    """Two inputs, one of them of integers; two outputs, one of them large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.dense, self.widen = nn.Embedding(10, 4), nn.Linear(4, 3), nn.Linear(4, WIDE)

    def forward(self, tokens: torch.Tensor, gain: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.table(tokens).mean(1)
        return {"scores": self.dense(found) * gain, "wide": self.widen(found)}


def feeds_of_small(count: int = 1, seed: int = 0) -> dict[str, Any]:
    noise = np.random.default_rng(seed)
    return {"tokens": noise.integers(0, 10, (count, 7)), "gain": noise.random((count, 1), np.float32)}


def outputs_of_small(feeds: Mapping[str, Any]) -> dict[str, Any]:
    """What torch computes."""
    with torch.no_grad():
        found = Small().eval()(*(torch.from_numpy(feeds[name]) for name in ("tokens", "gain")))
    return {name: value.numpy() for name, value in found.items()}


@functools.cache
def small() -> fashion.Built:
    """As an import leaves it: model.onnx and model.pt2 with a free batch."""
    folder = fashion.scratch() / "small"
    folder.mkdir()
    feeds = feeds_of_small(2)
    program, reason = exporting.trace(Small().eval(), [torch.from_numpy(value) for value in feeds.values()], {})
    assert reason is None
    made = exporting.produce(program, None, [*feeds], ["scores", "wide"], None, [], folder, lambda fraction, text: None)
    return fashion.artifact(folder, made), folder


@functools.cache
def scores_of_fashion(count: int) -> Any:
    """What torch computes of the sample's own weights on the first test images: float32 of shape (count, 10)."""
    module = factories.load(
        ModelRef(f"{fashion.SAMPLE / 'model.py'}:build", str(fashion.SAMPLE / "weights.safetensors"))
    )
    with torch.no_grad():
        return module(torch.from_numpy(fashion.images_and_labels(count)[0])).numpy()


@functools.cache
def _compiled(subject: Subject, model: str) -> fashion.Built:
    options = dict(subject.options)
    if model == "small":
        return targets.compiled(subject.name, small(), fashion.scratch() / f"small-{subject}", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converters' own imports
        return fashion.compiled(subject.name, model == "fashion int8", **options)
