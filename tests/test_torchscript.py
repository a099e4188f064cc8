"""TorchScript archives brought in: exact against torch, and refused where they are pickles or could touch files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from edgeopt import formats
from edgeopt.errors import EdgeoptError, InputError
from edgeopt.formats import ModelRef, torchscript
from edgeopt.samples import Preprocess, write_samples

IMAGES = np.random.default_rng(0).standard_normal((4, 3, 8, 8), np.float32)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(picture))).mean((2, 3)))


class OfTwo(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(20, 4)

    def forward(self, tokens: torch.Tensor, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.table(tokens).sum(1)
        return found + vector, found.mean(1)


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if bool(x.sum() > 0) else x - 1


class OfOne(torch.nn.Module):
    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return picture.reshape(1, 192)[:, :7]


class FromFile(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("/etc/hostname", size=1, dtype=torch.uint8)


def save(module: torch.nn.Module, path: Path, *traced: torch.Tensor) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(module.eval(), traced) if traced else torch.jit.script(module.eval())
        made.save(str(path))
    return path


def bring(model: Path, out: Path, feeds: dict[str, Any] | None) -> tuple[Any, Any]:
    """What the import told, and a session of the model."""
    samples = None
    if feeds is not None:
        samples = out / "samples"
        samples.mkdir(parents=True)
        write_samples(samples, feeds, None, Preprocess())
    made = out / "made"
    made.mkdir(parents=True)
    told = formats.importer(str(model)).to_onnx(ModelRef(str(model)), samples, made, lambda *_: None)
    return told.produced, onnxruntime.InferenceSession(made / "model.onnx")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ts", ".torchscript"])
def test_scripted(tmp_path, suffix):
    net = Net()
    told, session = bring(save(net, tmp_path / f"net{suffix}"), tmp_path, {"picture": IMAGES})
    assert [str(spec) for spec in told.inputs] == ["picture: float32[batch, 3, 8, 8]"]
    assert told.details["check"] < 1e-4
    with torch.no_grad():
        wanted = net(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(session.run(None, {"picture": IMAGES})[0], wanted, rtol=1e-4, atol=1e-4)


def test_traced_of_two_inputs_and_outputs(tmp_path):
    net, tokens = OfTwo(), np.arange(12).reshape(4, 3)
    vector = np.ones((4, 4), np.float32)
    path = save(net, tmp_path / "net.pt", torch.from_numpy(tokens), torch.from_numpy(vector))
    told, session = bring(path, tmp_path, {"vector": vector, "tokens": tokens})
    assert [spec.name for spec in told.inputs] == ["tokens", "vector"]
    assert told.inputs[0].dtype == "int64" and len(told.outputs) == 2
    with torch.no_grad():
        wanted = net(torch.from_numpy(tokens), torch.from_numpy(vector))
    for found, right in zip(session.run(None, {"tokens": tokens, "vector": vector}), wanted):
        np.testing.assert_allclose(found, right.numpy(), rtol=1e-4, atol=1e-4)


def test_a_branch_on_values_stays_one(tmp_path):
    _, session = bring(save(Branching(), tmp_path / "net.pt"), tmp_path, {"x": IMAGES})
    for sign in (1, -1):
        values = sign * np.abs(IMAGES)
        wanted = Branching()(torch.from_numpy(values)).numpy()
        np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: values})[0], wanted, atol=1e-6)


def test_a_module_of_one_sample_keeps_its_batch(tmp_path):
    told, _ = bring(save(OfOne(), tmp_path / "net.pt"), tmp_path, {"picture": IMAGES})
    assert told.inputs[0].shape == (1, 3, 8, 8) and "batch is fixed at 1" in told.details["notes"][0]


def test_same_bytes_again(tmp_path):
    path = save(Net(), tmp_path / "net.pt")
    for folder in ("a", "b"):
        bring(path, tmp_path / folder, {"picture": IMAGES})
    first, second = ((tmp_path / folder / "made" / "model.onnx").read_bytes() for folder in ("a", "b"))
    assert first == second


def test_inspect(tmp_path):
    summary = torchscript.inspect(ModelRef(str(save(Net(), tmp_path / "net.pt"))), None)
    assert (summary.parameters, summary.precision) == (112 + 8 + 25, "fp32")
    assert summary.operators["aten::batch_norm"] == 1


def test_samples_are_needed(tmp_path):
    with pytest.raises(InputError, match="does not tell the shapes"):
        bring(save(Net(), tmp_path / "net.pt"), tmp_path, None)


def test_too_many_samples_arrays(tmp_path):
    with pytest.raises(InputError, match=r"2 arrays, net\.pt takes 1: picture"):
        bring(save(Net(), tmp_path / "net.pt"), tmp_path, {"picture": IMAGES, "other": IMAGES})


@pytest.mark.parametrize("content", ["state", "module", "text", "program", "old"])
def test_what_is_no_torchscript(tmp_path, content):
    path, net = tmp_path / "net.pt", Net()
    if content == "text":
        path.write_text("hello")
    elif content == "program":
        torch.export.save(torch.export.export(net, (torch.zeros(1, 3, 8, 8),)), path.with_suffix(".pt2"))
        path.with_suffix(".pt2").rename(path)
    else:
        saved = net if content == "module" else net.state_dict()
        torch.save(saved, path, _use_new_zipfile_serialization=content != "old")
    words = {"text": "not TorchScript", "program": r"call it \.pt2"}.get(content, "a pickle, of weights or of a whole")
    with pytest.raises(InputError, match=words) as caught:
        torchscript.read(path)
    assert "model.py:build" in str(caught.value.remedy)


def test_code_that_touches_files_is_refused(tmp_path):
    with pytest.raises(InputError, match="its code has from_file"):
        torchscript.read(save(FromFile(), tmp_path / "net.pt"))


def test_what_the_exporter_lacks_is_told(tmp_path):
    class Strange(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svd(x)[1]

    with pytest.raises(EdgeoptError, match="cannot export this TorchScript"):
        bring(save(Strange(), tmp_path / "net.pt"), tmp_path, {"x": IMAGES})
