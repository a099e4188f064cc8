"""torch as a runtime: what it makes of a program, and what it refuses. How it runs is held by tests/backends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.artifact import Artifact
from edgeopt.backends import torch as backend
from edgeopt.compilers import torch as compiler
from edgeopt.errors import CorruptArtifact, InputError, MissingDependency, NoAccelerator, StageError
from edgeopt.formats import canonical, exporting
from edgeopt.stages import compile

Built = fashion.Built


class Two(nn.Module):
    """Two inputs, one of them integers; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.dense = nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.dense(self.table(tokens).mean(1)) * scale
        return {"scores": found, "total": found.sum(1, keepdim=True)}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def feeds() -> dict[str, Any]:
    noise = np.random.default_rng(1)
    return {"tokens": noise.integers(0, 10, (5, 7)), "scale": noise.random((5, 1), np.float32)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, feeds: dict[str, Any]) -> Built:
    """The import of `Two`: model.onnx and, beside it, model.pt2."""
    folder = tmp_path_factory.mktemp("two")
    torch.manual_seed(0)
    args = [torch.from_numpy(value) for value in feeds.values()]
    program, reason = exporting.trace(Two().eval(), args, {})
    assert reason is None
    made = exporting.produce(
        program, None, [*feeds], ["scores", "total"], None, [], folder, lambda fraction, text: None
    )
    return fashion.artifact(folder, made), folder


def compiled(parent: Built, out: Path, **options: Any) -> Built:
    return fashion.run_stage(compile, "torch", parent, out, **options)


@pytest.fixture(scope="module")
def eager(source: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return compiled(source, tmp_path_factory.mktemp("eager") / "out")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A model that came as ONNX."""
    return compiled(fashion.source(), tmp_path_factory.mktemp("imported") / "out")


def test_the_program_has_the_name_of_the_source_s(eager: Built) -> None:
    assert eager[0].main == exporting.PROGRAM


def test_the_compiler_tells_how_near_it_came(imported: Built) -> None:
    assert 0 <= imported[0].details["difference"] < 1e-5


@pytest.mark.parametrize("precision", ["int8", "int8-weights", "fp16"])
def test_a_model_in_another_precision_is_left_out_with_the_reason(precision: str) -> None:
    assert "torch runs the fp32 model" in str(compiler.objection(compiler.CompileOptions(), precision))


def test_a_program_of_another_network_is_caught(source: Built, tmp_path: Path) -> None:
    """The ONNX file and the program beside it must be the same model."""
    folder = tmp_path / "other"
    shutil.copytree(source[1], folder)
    torch.manual_seed(1)
    args = [torch.zeros((2, 7), dtype=torch.int64), torch.ones((2, 1))]
    torch.export.save(exporting.trace(Two().eval(), args, {})[0], str(folder / "model.pt2"))
    with pytest.raises(StageError, match="differ from those of the ONNX model"):
        compiled((source[0], folder), tmp_path / "out")


def test_a_missing_compiler_is_named(source: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(MissingDependency, match=r"needs a C\+\+ compiler") as caught:
        compiled(source, tmp_path / "out", mode="aot")
    assert "g++" in str(caught.value.remedy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what is said where there is no GPU")
def test_without_a_gpu_cuda_is_refused(source: Built, eager: Built, tmp_path: Path) -> None:
    with pytest.raises(NoAccelerator, match="cannot run on CUDA here"):
        compiled(source, tmp_path / "out", device="cuda")
    with pytest.raises(NoAccelerator):
        backend.load(eager[1] / eager[0].main, {**eager[0].runtime, "device": "cuda"}, 1)


def test_a_file_that_edgeopt_did_not_write_is_not_loaded(eager: Built, tmp_path: Path) -> None:
    other = tmp_path / "model.pt2"
    other.write_bytes((eager[1] / eager[0].main).read_bytes() + b"\0")
    with pytest.raises(CorruptArtifact, match="sha256"):
        backend.load(other, eager[0].runtime, 1)


def test_a_bare_program_is_not_loaded(eager: Built) -> None:
    with pytest.raises(InputError, match="loads only what edgeopt compiled"):
        backend.load(eager[1] / eager[0].main, {}, 1)


def test_the_threads_are_set(eager: Built) -> None:
    backend.load(eager[1] / eager[0].main, eager[0].runtime, 1)
    assert torch.get_num_threads() == 1


def test_the_batch_is_called_as_everywhere(eager: Built) -> None:
    artifact: Artifact = eager[0]
    assert [spec.shape[0] for spec in artifact.inputs] == [canonical.BATCH] * 2
    assert replace(artifact, parent=None).digest == artifact.digest
