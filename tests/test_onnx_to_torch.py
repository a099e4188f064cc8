"""ONNX import, operator by operator and on whole models, against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxslim")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgeopt.errors import InputError, StageError, UnsupportedOperator  # noqa: E402
from edgeopt.formats.onnx_to_torch import import_onnx  # noqa: E402

FASHION_MNIST = Path(__file__).parents[1] / "sample_models" / "fashion_mnist" / "model.onnx"
INT64 = np.iinfo(np.int64)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def save(path: Path, operator: str, inputs: list, opset: int, outputs: int, attributes: dict) -> dict[str, np.ndarray]:
    """A model of one operator. The first input is fed, and those wrapped in a tuple; the others are constants."""
    feeds, constants, names = {}, [], []
    for position, value in enumerate(inputs):
        name = f"in{position}" if value is not None else ""
        if position == 0 or isinstance(value, tuple):
            feeds[name] = value[0] if isinstance(value, tuple) else value
        elif value is not None:
            constants.append(numpy_helper.from_array(value, name))
        names.append(name)
    made = [f"out{i}" for i in range(outputs)]
    node = helper.make_node(operator, names, made, name="it", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feeds.items()],
        [helper.make_empty_tensor_value_info(name) for name in made],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, path)
    return feeds


def check(path: Path, feeds: dict[str, np.ndarray], tolerance: float = 1e-4) -> torch.nn.Module:
    module = import_onnx(path)
    with torch.no_grad():
        found = module(*(torch.from_numpy(value) for value in feeds.values()))
    wanted = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(wanted)
    for value, right in zip(found, wanted):
        assert value.numpy().dtype == right.dtype
        np.testing.assert_allclose(value.numpy(), right, rtol=tolerance, atol=tolerance)
    return module


X = noise(1, 4, 9, 8)
POSITIVE = np.abs(X) + 0.1
ROWS = noise(2, 3, 6)
UNARY = "Abs Ceil Cos Erf Exp Floor Neg Sign Sin Identity"
ACTIVATIONS = "Relu Sigmoid Tanh Softplus Softsign LeakyRelu Elu Celu HardSigmoid"
CASES = {
    **{name: (name, [X], {}) for name in f"{UNARY} {ACTIVATIONS}".split()},
    **{name: (name, [POSITIVE], {}) for name in ("Log", "Sqrt", "Reciprocal")},
    **{
        name: (name, [np.clip(X, -0.9, 0.9)], {})
        for name in ["Acos", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh", "Tan"]
    },
    "Acosh": ("Acosh", [POSITIVE + 1], {}),
    "IsInf": ("IsInf", [np.array([1, np.inf, -np.inf, 0], np.float32)], {}),
    "CastLike": ("CastLike", [X, ints(1)], {"opset": 17}),
    "Swish": ("Swish", [X], {"opset": 24, "alpha": 1.5}),
    "Selu": ("Selu", [X], {}),
    "Selu 0.5": ("Selu", [X], {"alpha": 0.5, "gamma": 2.0}),
    "ThresholdedRelu": ("ThresholdedRelu", [X], {"alpha": 0.3}),
    "Shrink": ("Shrink", [X], {"lambd": 0.4, "bias": 0.1}),
    "Round": ("Round", [X * 3], {}),
    "HardSwish": ("HardSwish", [X], {}),
    "Mish": ("Mish", [X], {"opset": 18}),
    "Gelu": ("Gelu", [X], {"opset": 20}),
    "Gelu tanh": ("Gelu", [X], {"opset": 20, "approximate": "tanh"}),
    "LeakyRelu 0.2": ("LeakyRelu", [X], {"alpha": 0.2}),
    "HardSigmoid 1/6": ("HardSigmoid", [X * 4], {"alpha": 1 / 6}),
    "PRelu": ("PRelu", [X, noise(4, 1, 1)], {}),
    "PRelu shared": ("PRelu", [X, noise(1)], {}),
    "PRelu by element": ("PRelu", [X, noise(9, 8)], {}),
    "Clip 0 6": ("Clip", [X * 5, np.float32(0), np.float32(6)], {}),
    "Clip low": ("Clip", [X, np.float32(-0.5)], {}),
    "Clip high": ("Clip", [X, None, np.float32(0.5)], {}),
    "Clip attributes": ("Clip", [X], {"opset": 10, "min": -0.5, "max": 0.5}),
    **{
        name: (name, [X, (noise(1, 4, 9, 8, seed=1),)], {})
        for name in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum")
    },
    **{f"{name} number": (name, [X, np.float32(2)], {}) for name in ("Add", "Sub", "Mul", "Div", "Pow")},
    "Add by channel": ("Add", [X, noise(4, 1, 1)], {}),
    "Add grows": ("Add", [noise(3), noise(2, 3)], {}),
    "Add grows by one": ("Add", [noise(3), noise(1, 1)], {}),
    "Pow": ("Pow", [POSITIVE, (X,)], {}),
    "Mean": ("Mean", [X, (noise(1, 4, 9, 8, seed=1),), noise(1)], {}),
    "Div integers": ("Div", [ints(7, -7, 9), ints(2)], {}),
    "Mod": ("Mod", [ints(7, -7, 9), ints(4)], {}),
    "Mod fmod": ("Mod", [X, np.float32(0.7)], {"fmod": 1}),
    **{name: (name, [X, np.float32(0.1)], {}) for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")},
    "Equal": ("Equal", [ints(1, 2, 3), ints(1, 5, 3)], {}),
    "Not": ("Not", [X > 0], {}),
    **{name: (name, [X > 0, (X < 0.5,)], {}) for name in ("And", "Or", "Xor")},
    "Where": ("Where", [X > 0, (X,), np.float32(-1)], {}),
    "Cast": ("Cast", [X], {"to": TensorProto.INT32}),
    "Dropout": ("Dropout", [X], {}),
    "Softmax": ("Softmax", [X], {"axis": 1}),
    "Softmax of old": ("Softmax", [X], {"opset": 11, "axis": 1}),
    "LogSoftmax": ("LogSoftmax", [X], {}),
    "Conv": ("Conv", [X, noise(6, 4, 3, 3), noise(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "Conv without bias": ("Conv", [X, noise(6, 4, 1, 1)], {}),
    "Conv depthwise": ("Conv", [X, noise(4, 1, 3, 3)], {"group": 4, "dilations": [2, 1]}),
    "Conv uneven pads": ("Conv", [X, noise(6, 4, 3, 3)], {"pads": [0, 1, 1, 2]}),
    "Conv SAME_UPPER": ("Conv", [X, noise(6, 4, 4, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "Conv SAME_LOWER": ("Conv", [X, noise(6, 4, 4, 3)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "Conv VALID": ("Conv", [X, noise(6, 4, 4, 3)], {"auto_pad": "VALID"}),
    "Conv 1d": ("Conv", [noise(1, 4, 20), noise(6, 4, 5), noise(6)], {"pads": [2, 2]}),
    "Conv 3d": ("Conv", [noise(1, 2, 5, 6, 7), noise(3, 2, 3, 3, 3)], {}),
    "ConvTranspose": ("ConvTranspose", [X, noise(4, 3, 3, 3), noise(3)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "ConvTranspose groups": ("ConvTranspose", [X, noise(4, 2, 2, 2)], {"group": 2, "strides": [2, 2]}),
    "ConvTranspose extra": ("ConvTranspose", [X, noise(4, 3, 3, 3)], {"strides": [2, 2], "output_padding": [1, 1]}),
    "ConvTranspose uneven": ("ConvTranspose", [X, noise(4, 3, 3, 3)], {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    "ConvTranspose SAME": ("ConvTranspose", [X, noise(4, 3, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "MaxPool": ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "MaxPool ceil": ("MaxPool", [X], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "MaxPool uneven": ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "MaxPool SAME": ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "AveragePool": ("AveragePool", [X], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "AveragePool counted": ("AveragePool", [X], {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}),
    "AveragePool uneven": ("AveragePool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "AveragePool SAME": ("AveragePool", [X], {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "GlobalAveragePool": ("GlobalAveragePool", [X], {}),
    "GlobalMaxPool": ("GlobalMaxPool", [X], {}),
    "BatchNormalization": (
        "BatchNormalization",
        [X, noise(4), noise(4), noise(4), np.abs(noise(4))],
        {"epsilon": 1e-3},
    ),
    "BatchNormalization 1d": ("BatchNormalization", [noise(2, 6), noise(6), noise(6), noise(6), np.abs(noise(6))], {}),
    "LayerNormalization": ("LayerNormalization", [ROWS, noise(6), noise(6)], {}),
    "LayerNormalization 2 axes": ("LayerNormalization", [ROWS, noise(3, 6)], {"axis": 1}),
    "LayerNormalization broadcast": ("LayerNormalization", [ROWS, noise(6), noise(6)], {"axis": 1}),
    "InstanceNormalization": ("InstanceNormalization", [X, noise(4), noise(4)], {}),
    "GroupNormalization": ("GroupNormalization", [X, noise(4), noise(4)], {"opset": 21, "num_groups": 2}),
    "LRN": ("LRN", [X], {"size": 3, "alpha": 0.1}),
    "Gemm": ("Gemm", [noise(2, 5), noise(5, 7), noise(7)], {"alpha": 0.5, "beta": 2.0}),
    "Gemm transposed": ("Gemm", [noise(2, 5), noise(7, 5)], {"transB": 1}),
    "Gemm of two": ("Gemm", [noise(5, 2), (noise(5, 7),), noise(2, 1)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    "MatMul": ("MatMul", [ROWS, noise(6, 5)], {}),
    "MatMul of two": ("MatMul", [noise(2, 3, 4), (noise(2, 4, 5),)], {}),
    "Einsum": ("Einsum", [noise(2, 3, 4), (noise(2, 5, 4),)], {"equation": "bid,bjd->bij"}),
    "Reshape": ("Reshape", [X, ints(0, 2, -1, 8)], {}),
    "Reshape flat": ("Reshape", [X, ints(1, -1)], {}),
    "Flatten": ("Flatten", [X], {}),
    "Flatten axis": ("Flatten", [X], {"axis": 2}),
    "Squeeze": ("Squeeze", [noise(1, 3, 1, 2), ints(2)], {}),
    "Unsqueeze": ("Unsqueeze", [ROWS, ints(0, -1)], {}),
    "Transpose": ("Transpose", [X], {"perm": [0, 2, 3, 1]}),
    "Transpose default": ("Transpose", [ROWS], {}),
    "Concat": ("Concat", [X, (noise(1, 2, 9, 8),), noise(1, 1, 9, 8)], {"axis": 1}),
    "Split": ("Split", [X, ints(1, 3)], {"axis": 1, "outputs": 2}),
    "Split equal": ("Split", [X], {"opset": 18, "axis": -1, "num_outputs": 3, "outputs": 3}),
    "Slice": ("Slice", [X, ints(1, 0), ints(-1, INT64.max), ints(2, 3), ints(1, 2)], {}),
    "Slice backwards": ("Slice", [X, ints(-1, 6), ints(INT64.min, 1), ints(2, 3), ints(-1, -2)], {}),
    "Gather number": ("Gather", [X, np.array(-1, np.int64)], {"axis": 2}),
    "Gather list": ("Gather", [X, ints(2, 0, -1)], {"axis": 1}),
    "Gather table": ("Gather", [X, ints(2, 0, 1, 1).reshape(2, 2)], {"axis": 3}),
    "Gather at run time": ("Gather", [X, (ints(2, 0, -1),)], {"axis": 1}),
    "GatherElements": ("GatherElements", [ROWS, ints(0, -1, 2, 1).reshape(1, 2, 2)], {"axis": 2}),
    "GatherND": ("GatherND", [ROWS, ints(0, 1, 1, -1).reshape(2, 2)], {}),
    "GatherND whole": ("GatherND", [ROWS, ints(0, 2, 3, 1, -1, 0).reshape(1, 2, 3)], {}),
    "GatherND at run time": ("GatherND", [ROWS, (ints(1, 1, 0, -1).reshape(2, 2),)], {}),
    "ScatterND": ("ScatterND", [ROWS, ints(0, 1, 1, -1).reshape(2, 2), noise(2, 6)], {}),
    "ScatterND add": ("ScatterND", [ROWS, ints(0, 0).reshape(2, 1), noise(2, 3, 6)], {"reduction": "add"}),
    "ScatterElements": ("ScatterElements", [ROWS, ints(0, -1, 2, 1).reshape(1, 2, 2), noise(1, 2, 2)], {"axis": 2}),
    "ScatterElements add": (
        "ScatterElements",
        [ROWS, ints(0, 0).reshape(1, 2, 1), noise(1, 2, 1)],
        {"axis": 1, "reduction": "add"},
    ),
    "OneHot": ("OneHot", [ints(0, 2, -1, 7), np.array(4, np.int64), np.array([0, 1], np.float32)], {}),
    "OneHot axis": ("OneHot", [ints(0, 2).reshape(1, 2), ints(3), np.array([-1, 2], np.float32)], {"axis": 1}),
    "Pad": ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)], {}),
    "Pad channels": ("Pad", [X, ints(0, 2, 0, 0, 0, 1, 0, 0)], {}),
    "Pad axes": ("Pad", [X, ints(1, 2), None, ints(-1)], {"opset": 18}),
    "Pad reflect": ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    "Pad edge": ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    "Expand": ("Expand", [noise(3, 1), ints(2, 1, 6)], {}),
    "Tile": ("Tile", [ROWS, ints(1, 2, 3)], {}),
    "DepthToSpace DCR": ("DepthToSpace", [noise(1, 8, 2, 3)], {"blocksize": 2}),
    "DepthToSpace CRD": ("DepthToSpace", [noise(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": ("SpaceToDepth", [noise(1, 2, 4, 6)], {"blocksize": 2}),
    "Resize nearest": (
        "Resize",
        [X, None, np.array([1, 1, 2, 2], np.float32)],
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "Resize nearest half": ("Resize", [X, None, np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}),
    "Resize linear": ("Resize", [X, None, None, ints(1, 4, 13, 17)], {"mode": "linear"}),
    "Resize linear scales": ("Resize", [X, None, np.array([1, 1, 1.5, 0.6], np.float32)], {"mode": "linear"}),
    "Resize corners": (
        "Resize",
        [X, None, None, ints(1, 4, 13, 17)],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "Resize cubic": ("Resize", [X, None, None, ints(1, 4, 18, 16)], {"mode": "cubic"}),
    **{
        name: (name, [POSITIVE], {"opset": 13, "axes": [2, -1], "keepdims": 0})
        for name in (
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
        )
    },
    "ReduceLogSum": ("ReduceLogSum", [POSITIVE], {"axes": [1]}),
    "LpNormalization": ("LpNormalization", [X], {"axis": 1}),
    "LpNormalization 1": ("LpNormalization", [X], {"axis": -1, "p": 1}),
    "ReduceMean 18": ("ReduceMean", [X, ints(2, 3)], {"opset": 18}),
    "ReduceSum": ("ReduceSum", [X, ints(1)], {}),
    "ReduceSum of all": ("ReduceSum", [X], {"keepdims": 0}),
    "ReduceProd": ("ReduceProd", [X], {"axes": [1, 3]}),
    "ArgMax": ("ArgMax", [X], {"axis": 1, "keepdims": 0}),
    "ArgMin": ("ArgMin", [X], {"axis": -1}),
    "TopK": ("TopK", [X, ints(3)], {"axis": 1, "outputs": 2}),
    "CumSum": ("CumSum", [ROWS, np.array(1, np.int64)], {}),
    "Trilu": ("Trilu", [noise(4, 4), np.array(1, np.int64)], {"upper": 0}),
}


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "_"))
def test_operator_computes_what_onnxruntime_does(case: str, tmp_path: Path) -> None:
    operator, inputs, options = CASES[case]
    attributes = dict(options)
    opset, outputs = attributes.pop("opset", 17), attributes.pop("outputs", 1)
    feeds = save(tmp_path / "one.onnx", operator, inputs, opset, outputs, attributes)
    check(tmp_path / "one.onnx", feeds)


def test_every_operator_of_the_table_is_tested() -> None:
    from edgeopt.formats.onnx_operators import OPERATORS

    folded = {"Constant", "ConstantOfShape", "EyeLike", "Range", "Shape", "Size"}
    tested = {operator for operator, _, _ in CASES.values()}
    assert set(OPERATORS) - tested - folded == {"IsNaN", "Upsample"}


def test_embedding_takes_a_constant_table(tmp_path: Path) -> None:
    table = numpy_helper.from_array(noise(10, 4), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["out"])],
        "embedding",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 3, 4])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "embedding.onnx")
    module = check(tmp_path / "embedding.onnx", {"ids": ints(1, 9, 0).reshape(1, 3)})
    assert [type(layer).__name__ for layer in module.children()] == ["Embedding"]


@pytest.mark.skipif(not FASHION_MNIST.is_file(), reason="sample_models/fashion_mnist/model.onnx is not there")
@pytest.mark.parametrize("batch", [1, 3])
def test_fashion_mnist_is_exact_and_made_of_layers(batch: int) -> None:
    module = import_onnx(FASHION_MNIST, batch)
    image = noise(batch, 1, 28, 28)
    wanted = onnxruntime.InferenceSession(FASHION_MNIST).run(None, {"image": image})[0]
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(image)).numpy(), wanted, rtol=1e-4, atol=1e-4)
    layers = [type(layer).__name__ for layer in module.children()]
    assert layers.count("Conv2d") == 15
    assert layers.count("Linear") == 1


def test_batch_norm_after_a_convolution_stays_a_layer(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten())
    weights = [numpy_helper.from_array(value.numpy(), name) for name, value in net.state_dict().items()]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["a"]),
            helper.make_node(
                "BatchNormalization", ["a", "1.weight", "1.bias", "1.running_mean", "1.running_var"], ["b"]
            ),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("Flatten", ["c"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 144])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "net.onnx")
    module = check(tmp_path / "net.onnx", {"x": noise(1, 3, 8, 8)})
    assert [type(layer).__name__ for layer in module.children()] == ["Conv2d", "BatchNorm2d", "ReLU", "Flatten"]


def test_missing_operators_are_listed_together_with_their_number(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Det", ["x"], ["a"]),
            helper.make_node("Det", ["y"], ["b"]),
            helper.make_node("NonZero", ["b"], ["c"]),
        ],
        "unknown",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 3]) for name in "xy"],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1]), helper.make_empty_tensor_value_info("c")],
    )
    graph.output[1].CopyFrom(helper.make_tensor_value_info("c", TensorProto.INT64, [1, "n"]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "unknown.onnx")
    with pytest.raises(UnsupportedOperator, match=r"Det \(2\), NonZero \(1\)"):
        import_onnx(tmp_path / "unknown.onnx")


def test_a_free_dimension_that_is_not_the_batch_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "free",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length"])],
    )
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "f.onnx")
    with pytest.raises(StageError, match="length"):
        import_onnx(tmp_path / "f.onnx")


def test_a_file_that_is_not_onnx_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError):
        import_onnx(tmp_path / "x.onnx")
