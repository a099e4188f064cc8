"""ONNX models of many kinds, brought in, compiled and run by every backend: the outputs are the original's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import onnx
import onnx.reference
import pytest
import targets
from conformance import SUBJECTS
from onnx import TensorProto, helper, numpy_helper

from edgeopt import formats
from edgeopt.errors import InputError
from edgeopt.formats import ModelRef
from edgeopt.samples import Preprocess, Samples, write_samples

NOISE = np.random.default_rng(0)
COUNT = 4
NEWEST = "newest opset"
NAMES = [subject.name for subject in SUBJECTS if not subject.options]


def floats(*shape: int) -> np.ndarray:
    return NOISE.standard_normal((COUNT, *shape)).astype(np.float32)


def graph(
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, list[Any]],
    weights: dict[str, np.ndarray],
    opset: int = 17,
) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    version = helper.make_opsetid("", opset)
    return helper.make_model(made, opset_imports=[version], ir_version=helper.find_min_ir_version_for([version]))


def weight(*shape: int) -> np.ndarray:
    return NOISE.standard_normal(shape).astype(np.float32)


def two() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    nodes = [
        helper.make_node("MatMul", ["left", "w"], ["a"]),
        helper.make_node("Add", ["a", "right"], ["sum"]),
        helper.make_node("Relu", ["a"], ["own"]),
    ]
    inputs = {"left": (TensorProto.FLOAT, ["n", 6]), "right": (TensorProto.FLOAT, ["n", 3])}
    model = graph(nodes, inputs, {"sum": ["n", 3], "own": ["n", 3]}, {"w": weight(6, 3)})
    return model, {"left": floats(6), "right": floats(3)}


def tokens() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["found"]),
        helper.make_node("ReduceMean", ["found"], ["y"], axes=[1], keepdims=0),
    ]
    inputs = {"tokens": (TensorProto.INT64, ["n", 5])}
    return graph(nodes, inputs, {"y": ["n", 8]}, {"table": weight(20, 8)}), {
        "tokens": NOISE.integers(0, 20, (COUNT, 5))
    }


def of_bytes() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    nodes = [
        helper.make_node("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "scale"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "w"], ["y"]),
    ]
    inputs = {"pixels": (TensorProto.UINT8, ["n", 3, 6, 6])}
    weights = {"scale": np.float32(1 / 255), "w": weight(4, 3, 3, 3)}
    return graph(nodes, inputs, {"y": ["n", 4, 4, 4]}, weights), {
        "pixels": NOISE.integers(0, 256, (COUNT, 3, 6, 6)).astype(np.uint8)
    }


def free_axis() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A free length, which becomes that of the samples."""
    nodes = [
        helper.make_node("MatMul", ["steps", "w"], ["a"]),
        helper.make_node("Softmax", ["a"], ["p"], axis=-1),
        helper.make_node("ReduceMax", ["p"], ["y"], axes=[1], keepdims=0),
    ]
    inputs = {"steps": (TensorProto.FLOAT, ["n", "length", 6])}
    return graph(nodes, inputs, {"y": ["n", 3]}, {"w": weight(6, 3)}), {"steps": floats(7, 6)}


def scalar() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One number for each sample, and an output of one number."""
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["a"]),
        helper.make_node("ReduceSum", ["a", "axis"], ["y"], keepdims=0),
    ]
    inputs = {"x": (TensorProto.FLOAT, ["n", 4]), "gain": (TensorProto.FLOAT, ["n", 1])}
    return graph(nodes, inputs, {"y": ["n"]}, {"axis": np.array([1])}), {"x": floats(4), "gain": floats(1)}


def convolution(opset: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    clip: dict[str, Any] = {"low": np.float32(0), "high": np.float32(6)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        helper.make_node("Clip", ["c", "low", "high"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Softmax", ["f"], ["y"], axis=1),
    ]
    inputs = {"x": (TensorProto.FLOAT, ["n", 3, 8, 8])}
    return graph(nodes, inputs, {"y": ["n", 5]}, {"w": weight(5, 3, 3, 3), "b": weight(5), **clip}, opset), {
        "x": floats(3, 8, 8)
    }


MODELS: dict[str, Callable[[], tuple[onnx.ModelProto, dict[str, np.ndarray]]]] = {
    "two inputs and outputs": two,
    "int64 tokens": tokens,
    "uint8 pixels": of_bytes,
    "free axis": free_axis,
    "scalars": scalar,
    "opset 11": lambda: convolution(11),
    NEWEST: lambda: convolution(onnx.defs.onnx_opset_version()),
}


@pytest.fixture(scope="module", params=MODELS, ids=lambda name: name.replace(" ", "_"))
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, fashion.Built, list[Any]]:
    """A model brought in: the folder of its samples, its artifact, and the original's outputs for one."""
    root = tmp_path_factory.mktemp("model")
    model, feeds = MODELS[request.param]()
    onnx.checker.check_model(model)
    onnx.save(model, root / "source.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    for name in ("samples", "import"):
        (root / name).mkdir()
    write_samples(root / "samples", feeds, None, Preprocess())
    told = formats.bring_in(ModelRef(str(root / "source.onnx")), root / "samples", root / "import", lambda *_: None)
    if request.param == NEWEST:  # onnxruntime comes after the newest opset: the source itself cannot be run
        assert told.produced.details["opset"] == 21
    else:
        assert told.produced.details["check"] < 1e-4
    assert (root / "weights.bin").is_file() == bool(told.sources)
    built = (fashion.artifact(root / "import", told.produced), root / "import")
    reference = onnx.reference.ReferenceEvaluator(onnx.load(root / "source.onnx"))
    return root, built, reference.run(None, {name: value[:1] for name, value in feeds.items()})


@pytest.mark.parametrize("name", NAMES)
def test_every_runtime_computes_the_original_s_outputs(source, name, tmp_path):
    root, built, wanted = source
    targets.check(name, built, tmp_path / "out", Samples(root / "samples").batch(0, 1), wanted)


def test_an_input_without_dimensions_says_what_to_do(tmp_path):
    nodes = [helper.make_node("Mul", ["x", "gain"], ["y"])]
    inputs = {"x": (TensorProto.FLOAT, ["n", 4]), "gain": (TensorProto.FLOAT, [])}
    onnx.save(graph(nodes, inputs, {"y": ["n", 4]}, {}), tmp_path / "m.onnx")
    for name in ("samples", "out"):
        (tmp_path / name).mkdir()
    write_samples(tmp_path / "samples", {"x": floats(4), "gain": floats()}, None, Preprocess())
    with pytest.raises(InputError, match="does not fit the input 'gain'") as caught:
        formats.bring_in(ModelRef(str(tmp_path / "m.onnx")), tmp_path / "samples", tmp_path / "out", lambda *_: None)
    assert "the shape [batch, 1]" in str(caught.value.remedy)


def test_a_free_axis_is_that_of_the_samples(tmp_path):
    model, feeds = free_axis()
    onnx.save(model, tmp_path / "m.onnx")
    for name in ("samples", "out"):
        (tmp_path / name).mkdir()
    write_samples(tmp_path / "samples", feeds, None, Preprocess())
    told = formats.bring_in(ModelRef(str(tmp_path / "m.onnx")), tmp_path / "samples", tmp_path / "out", lambda *_: None)
    assert told.produced.inputs[0].shape == ("batch", 7, 6)
    assert "the free dimension length is 7" in told.produced.details["notes"][0]
