"""Depth pruning: which parts of a network are residual blocks, and what is left without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import onnxruntime
import pytest
import torch
from test_prune import ONNX, TORCH, job
from torch import Tensor, nn

from edgeopt import modules
from edgeopt.errors import StageError
from edgeopt.formats import ModelRef
from edgeopt.formats import torch as torch_format
from edgeopt.formats.onnx_to_torch import import_onnx
from edgeopt.pruning import blocks
from edgeopt.report import cells
from edgeopt.stages import prune

IMAGES = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def call(module: Any) -> Any:
    return module(IMAGES)


class Residual(nn.Module):
    """x joined with f(x)."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.join = nn.Conv2d(4, 4, 3, padding=1), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.layer(x))


def found(*joins: Callable[[Tensor, Tensor], Tensor]) -> list[str]:
    return blocks.find(nn.Sequential(nn.Conv2d(1, 4, 3), *[Residual(join) for join in joins]), call)


def test_a_sum_with_what_came_in_is_a_residual_block() -> None:
    assert found(lambda x, y: x + y, lambda x, y: torch.relu(x + 0.5 * y)) == ["1", "2"]


@pytest.mark.parametrize(
    "join",
    [lambda x, y: y, lambda x, y: x * torch.sigmoid(y), lambda x, y: torch.cat([x, y])[:2], lambda x, y: y + y],
    ids=["no sum", "gate", "concatenation", "sum of others"],
)
def test_what_joins_otherwise_is_none(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert found(join) == []


def test_of_nested_ones_the_inner_are_found() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Residual(lambda x, y: x + y)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    assert blocks.find(nn.Sequential(nn.Conv2d(1, 4, 3), Outer()), call) == ["1.inner"]


def test_a_block_that_runs_twice_is_left_alone() -> None:
    block = Residual(lambda x, y: x + y)
    assert blocks.find(nn.Sequential(nn.Conv2d(1, 4, 3), block, nn.ReLU(), block), call) == []


def test_frozen_parameters_are_frozen_after() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), Residual(lambda x, y: x + y)).requires_grad_(False)
    assert blocks.find(network, call) == ["1"]
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_sample_has_four_as_a_module_and_as_onnx() -> None:
    module = torch_format.load(ModelRef(*TORCH))
    assert blocks.find(module, call) == ["stages.0", "stages.1", "stages.3", "stages.5"]
    graph = import_onnx(fashion.SAMPLE / "model.onnx")
    assert len(blocks.find(graph, lambda module: module(IMAGES[:1]))) == 4


def test_the_weakest_is_the_one_that_does_nothing() -> None:
    module = torch_format.load(ModelRef(*TORCH))
    with torch.no_grad():
        module.stages[3].bn2.weight.zero_()
        module.stages[3].bn2.bias.zero_()
    names = blocks.find(module, call)
    weakest, costs = blocks.weakest(module, names, lambda: [call], lambda trial: None)
    assert weakest == "stages.3"
    assert costs["stages.3"] < 1e-9 < min(cost for name, cost in costs.items() if name != "stages.3")


@pytest.mark.parametrize("source", [TORCH, ONNX], ids=["torch", "onnx"])
def test_without_blocks_the_model_is_smaller_and_goes_on(source: Any, tmp_path: Path) -> None:
    first = job(source, tmp_path / "a", blocks=2)
    produced = prune.run(first)
    assert len(produced.details["blocks"]) == 2
    assert produced.details["after"]["macs"] < 0.8 * produced.details["before"]["macs"]
    parent = (fashion.artifact(first.out, produced), first.out)
    second = job(source, tmp_path / "b", parent=parent, channels="50 %")
    narrow = prune.run(second)
    again = modules.load(job(source, tmp_path / "c", parent=(fashion.artifact(second.out, narrow), second.out)))
    session = onnxruntime.InferenceSession(str(second.out / narrow.main))
    with torch.no_grad():
        wanted = again(IMAGES[:1]).numpy()
    np.testing.assert_allclose(session.run(None, {"image": IMAGES[:1].numpy()})[0], wanted, rtol=1e-3, atol=1e-3)


def test_more_blocks_than_can_leave_are_refused_with_their_names(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"has 3 that can \(stages.0, stages.1, stages.3\)"):
        prune.run(job(TORCH, tmp_path / "out", blocks=4, ignore=("stages.5",)))


def test_the_report_names_them() -> None:
    found = {"id": "minus1block", "blocks": [["stages.1", 0.05]], "not_pruned": {"stages.5": "left out by ignore: .*5"}}
    assert cells.pruned_lines({"pruned": [found]}) == [
        "minus1block: without the residual blocks stages.1. Not pruned: stages.5: left out by ignore: .*5"
    ]
