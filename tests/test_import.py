"""The shipped sample brought in by a worker, as every plan does first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeopt import worker
from edgeopt.errors import InputError
from edgeopt.samples import Preprocess, write_samples
from edgeopt.stages import import_model

FASHION = Path(__file__).parent.parent / "sample_models" / "fashion_mnist"
MACS = 80_508_672


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    with np.load(FASHION / "test.npz") as data:
        write_samples(folder, {"image": data["image"][:16]}, data["labels"][:16], Preprocess((73.0,), (90.0,)))
    return folder


def call(function: str, folder: Path, **args: object) -> dict[str, object]:
    return worker.call(f"edgeopt.stages.import_model:{function}", args, log=folder / "log")


def test_torch_factory_and_its_weights(samples: Path, tmp_path: Path) -> None:
    result = call(
        "run",
        tmp_path,
        model=f"{FASHION}/model.py:build",
        weights=f"{FASHION}/weights.safetensors",
        samples=str(samples),
        out=str(tmp_path),
    )
    produced = result["produced"]
    assert produced["inputs"] == [{"name": "image", "shape": ["batch", 1, 28, 28], "dtype": "float32"}]
    assert produced["details"]["macs"] == MACS and produced["details"]["check"] < 1e-4
    assert result["sources"] == [f"{FASHION}/model.py"]
    assert {path.name for path in tmp_path.iterdir()} == {"log", "model.onnx", "model.pt2"}


def test_onnx_file(samples: Path, tmp_path: Path) -> None:
    result = call("run", tmp_path, model=f"{FASHION}/model.onnx", weights=None, samples=str(samples), out=str(tmp_path))
    assert result["produced"]["details"]["macs"] == MACS and result["sources"] == []


def test_inspect(tmp_path: Path) -> None:
    summary = call("inspect", tmp_path, model=f"{FASHION}/model.onnx", weights=None, samples=None)
    assert summary["macs"] == MACS and summary["precision"] == "fp32"


def test_errors_of_the_user_arrive_as_such(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no function 'bild'"):
        call("inspect", tmp_path, model=f"{FASHION}/model.py:bild", weights=None, samples=None)


def test_tools_are_named_without_importing_them() -> None:
    assert import_model.tools("net.onnx") == ("onnx",)
    assert "torch" in import_model.tools("net.py:build")
