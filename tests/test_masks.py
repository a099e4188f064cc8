"""Masked weights: which become zero, that training and quantizing leave them so, and what is told of them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from test_distill import FEW, distilled, imported, job, training
from torch import nn

from edgeopt import modules
from edgeopt.errors import StageError
from edgeopt.pruning import masks
from edgeopt.stages import prune, quantize


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 144, 8)
    )


def test_the_smallest_of_each_layer_become_zero() -> None:
    module = network()
    before = module[2].weight.detach().abs()
    chosen = masks.layers(module, ())
    masks.unstructured(chosen, 0.8, "local")
    assert masks.sparsity(chosen) == pytest.approx(dict.fromkeys(("0", "2", "5"), 0.8), abs=0.005)
    left = module[2].weight != 0
    assert before[left].min() >= before[~left].max()


def test_globally_the_smallest_of_all_become_zero_and_no_layer_is_emptied() -> None:
    module = network()
    with torch.no_grad():
        module[5].weight.mul_(1e-3)
    chosen = masks.layers(module, ())
    masks.unstructured(chosen, 0.5, "global")
    found = masks.sparsity(chosen)
    assert found["0"] == 0 and 0.4 < found["5"] <= 0.99


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_n_of_m_are_left_along_the_input_channels(n: int, m: int) -> None:
    module = network()
    left = masks.n_of_m(masks.layers(module, ()), n, m)
    assert left == {"0": f"its 1 input channels are not a multiple of {m}"}
    for weight in (module[2].weight, module[5].weight):
        groups = weight.detach().movedim(1, -1).reshape(-1, m)
        assert (groups.ne(0).sum(1) == n).all()


def test_of_a_transposed_convolution_the_inputs_are_the_first_axis() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, groups=2))
    assert masks.n_of_m(masks.layers(module, ()), 2, 4) == {}
    groups = module[0].weight.detach().view(2, 4, -1)
    assert (groups.ne(0).sum(1) == 2).all()


def test_ignored_layers_are_left_alone() -> None:
    assert list(masks.layers(network(), ("5", "0"))) == ["2"]
    with pytest.raises(StageError, match="no layer is named like '9'"):
        masks.layers(network(), ("9",))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_no_optimizer_moves_what_is_masked(optimizer: Any) -> None:
    module = network()
    chosen = masks.layers(module, ())
    masks.unstructured(chosen, 0.8, "local")
    before, found = masks.sparsity(chosen), masks.Masks.of(module, tuple(chosen))
    steps = optimizer(module.parameters(), lr=1e-2, weight_decay=0.05)
    with found.held(module):
        for _ in range(3):
            steps.zero_grad()
            module(torch.randn(4, 1, 16, 16)).square().mean().backward()
            steps.step()
        assert masks.sparsity(chosen) == before
    module(torch.randn(4, 1, 16, 16)).sum().backward()
    assert (module[2].weight.grad[module[2].weight == 0] != 0).any(), "held no longer"


# --- through the stages


@functools.cache
def masked(**options: Any) -> tuple[Any, Path]:
    out = fashion.scratch() / f"masked-{'-'.join(map(str, options.values())).replace(' ', '')}"
    made = prune.run(job(prune, imported(), out, training(), **options))
    return fashion.artifact(out, made), out


def zeros(folder: Path) -> dict[str, float]:
    """The fraction of zeros of each weight of the ONNX model that has at least two axes, quantized or not."""
    graph = onnx.load(str(folder / "model.onnx")).graph
    zero_points = {node.input[0]: node.input[2] for node in graph.node if node.op_type == "DequantizeLinear"}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for name, array in arrays.items():
        if array.ndim < 2 or array.size < 100:
            continue
        zero = arrays.get(zero_points.get(name, ""), np.zeros(1, array.dtype))
        assert (zero == 0).all(), f"{name} is not symmetric"
        found[name] = float((array == 0).mean())
    return found


def test_the_stage_reaches_the_sparsity_and_says_so() -> None:
    artifact, folder = masked(sparsity="80 %")
    details = artifact.details
    assert details["sparsity"]["stages.5.conv2"] == pytest.approx(0.8, abs=1e-4)
    assert details["zeros"] / details["zeros_of"] == pytest.approx(0.8, abs=0.001)
    assert "no runtime here is faster by zeros alone" in details["note"]
    assert all(share == pytest.approx(0.8, abs=0.01) for share in zeros(folder).values())
    assert len(zeros(folder)) == 16


def test_a_pattern_leaves_layers_that_it_does_not_fit_alone() -> None:
    artifact, folder = masked(pattern="2:4")
    assert artifact.details["not_pruned"] == {"stem": "its 1 input channels are not a multiple of 4"}
    assert sorted(zeros(folder).values())[0] < 0.01
    assert sorted(zeros(folder).values())[1:] == pytest.approx([0.5] * 15, abs=0.01)


@pytest.mark.parametrize("options", [{"sparsity": "80 %"}, {"pattern": "2:4"}], ids=str)
def test_distilling_keeps_the_mask(options: Any, tmp_path: Path) -> None:
    parent = masked(**options)
    before, after = (load_weights(p, tmp_path / str(i)) for i, p in enumerate([parent, distilled_of(parent, tmp_path)]))
    changed = 0
    for name, share in parent[0].details["sparsity"].items():
        left, right = (weights[f"{name}.weight"] for weights in (before, after))
        assert share > 0
        assert (right[left == 0] == 0).all(), name
        changed += int((right != left).sum())
    assert changed > 1000


def distilled_of(parent: Any, folder: Path) -> Any:
    return distilled(folder / "distilled", parent=parent, **FEW)


def load_weights(parent: Any, folder: Path) -> Any:
    return modules.load(job(prune, parent, folder, training(), channels="50 %")).state_dict()


OWN = """
import copy, torch

def train(model, teacher, data):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return model
"""


def test_a_loop_of_the_users_own_keeps_the_mask_too(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(OWN)
    parent = masked(sparsity="80 %")
    made = distilled(tmp_path / "out", parent=parent, finetune=f"{tmp_path / 'noisy.py'}:train")
    weight = load_weights(made, tmp_path / "next")["stages.5.conv2.weight"]
    assert float((weight == 0).double().mean()) == pytest.approx(0.8, abs=1e-4)
    assert not torch.equal(weight, load_weights(parent, tmp_path / "last")["stages.5.conv2.weight"])


def test_quantizing_keeps_zeros(tmp_path: Path) -> None:
    parent = masked(sparsity="80 %")
    int8 = fashion.run_stage(quantize, "int8", parent, tmp_path / "int8", bias_correction="fast")
    found = zeros(int8[1])
    assert len(found) == 16
    assert min(found.values()) >= 0.79


def test_channels_can_leave_after_weights_were_masked(tmp_path: Path) -> None:
    out = tmp_path / "narrow"
    produced = prune.run(job(prune, masked(sparsity="80 %"), out, training(), channels="50 %"))
    assert produced.details["channels"]["stages.5.conv2"] == [128, 64]
    assert fashion.artifact(out, produced).size_bytes > 0
