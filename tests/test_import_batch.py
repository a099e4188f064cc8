"""Models brought in from ONNX take any number of samples, attention too, and can be pruned where that is possible."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeopt.formats import onnx_to_torch
from edgeopt.pruning.channels import Call, Prunable, Ranking

pytest.importorskip("onnxslim")


class Block(nn.Module):
    """As in a vision transformer (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929)."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1) @ v
        x = x + self.out(seen.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch, self.first = nn.Conv2d(1, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 17, width) / 10)
        self.block, self.head = Block(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.block(x)[:, 0])


@pytest.fixture(scope="module")
def both(tmp_path_factory: Any) -> tuple[nn.Module, Path]:
    """(the model, its ONNX file with a free batch)"""
    torch.manual_seed(0)
    module = Transformer().eval()
    path = tmp_path_factory.mktemp("transformer") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its legacy exporter: the one that takes two seconds
        torch.onnx.export(
            module,
            (torch.randn(2, 1, 16, 16),),
            str(path),
            input_names=["x"],
            dynamo=False,
            dynamic_axes={"x": {0: "n"}},
        )
    return module, path


@pytest.mark.parametrize("count", [1, 5])
def test_an_imported_transformer_takes_any_batch(both: tuple[nn.Module, Path], count: int) -> None:
    x = torch.randn(count, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(onnx_to_torch.import_onnx(both[1])(x), both[0](x), atol=1e-5, rtol=1e-4)


def test_a_bias_that_is_added_apart_becomes_the_layers_own(both: tuple[nn.Module, Path]) -> None:
    found = onnx_to_torch.import_onnx(both[1])
    linear = [layer for layer in found.modules() if isinstance(layer, nn.Linear)]
    assert len(linear) == 5
    assert all(layer.bias is not None for layer in linear)


def test_the_hidden_channels_of_an_imported_transformer_are_pruned(both: tuple[nn.Module, Path]) -> None:
    module = onnx_to_torch.import_onnx(both[1])
    x = torch.randn(3, 1, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prunable = Prunable(module, Call([x], {}), (), 8)
        before = prunable.widths()
        prunable.prune(0.5, Ranking("l2", "local", 8, 0, lambda module: None))
    changed = {(before[name], width) for name, width in prunable.widths().items() if width != before[name]}
    assert changed == {(128, 64)}
    assert module(x).shape == (3, 10)
    assert len(prunable.explain(before)) == 5
