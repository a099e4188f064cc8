import fashion
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import lowering

PLAIN = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def run(model, feeds):
    """Every output, in onnxruntime without any optimization."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = PLAIN
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def copy(model):
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def types(model):
    return [node.op_type for node in model.graph.node]


def small_model(activation, zero_point, *, scale=0.02, bias=(0.1, -0.2), weight_scale=(0.01, 0.02), kernel=None):
    """image -> Q -> DQ -> 1x1 Conv of 2 channels -> Relu or Clip -> Q -> DQ -> scores"""
    kernel = np.array([[[[50]]], [[[-70]]]], np.int8) if kernel is None else kernel
    constants = {
        "scale": np.float32(scale),
        "zero_point": zero_point,
        "kernel": kernel,
        "kernel_scale": np.array(weight_scale, np.float32),
        "kernel_zero_point": np.zeros(2, np.int8),
        "bias": np.array(bias, np.float32),
        "zero": np.float32(0),
        "six": np.float32(6),
    }
    q, dq = ["scale", "zero_point"], "DequantizeLinear"
    nodes = [
        helper.make_node("QuantizeLinear", ["image", *q], ["image_q"]),
        helper.make_node(dq, ["image_q", *q], ["image_dq"]),
        helper.make_node(dq, ["kernel", "kernel_scale", "kernel_zero_point"], ["kernel_dq"], axis=0),
        helper.make_node("Conv", ["image_dq", "kernel_dq", "bias"], ["y"]),
        helper.make_node(activation, ["y", *(["zero", "six"] if activation == "Clip" else [])], ["z"]),
        helper.make_node("QuantizeLinear", ["z", *q], ["z_q"]),
        helper.make_node(dq, ["z_q", *q], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2, 4, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="module")
def canonical():
    _, folder = fashion.int8()
    return onnx.load(str(folder / "model.onnx"))


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(0, 3, (8, 1, 4, 4)).astype(np.float32)


def test_unsigned_activations_change_no_output(canonical):
    lowered = copy(canonical)
    lowering.make_activations_unsigned(lowered)
    feeds = {"image": fashion.images_and_labels()[0][:50]}
    assert np.array_equal(run(canonical, feeds)[0], run(lowered, feeds)[0])
    constants = {tensor.name: tensor.data_type for tensor in lowered.graph.initializer}
    quantizers = [node for node in lowered.graph.node if node.op_type == "QuantizeLinear"]
    assert {constants[node.input[2]] for node in quantizers} == {TensorProto.UINT8}


def test_folded_activations_change_no_output(canonical):
    lowered = copy(canonical)
    lowering.fold_activations(lowered)
    feeds = {"image": fashion.images_and_labels()[0][:50]}
    assert np.array_equal(run(canonical, feeds)[0], run(lowered, feeds)[0])
    assert types(canonical).count("Relu") == 13
    assert types(lowered).count("Relu") == 0


def test_recoding_is_exact_for_any_zero_point(images):
    model = small_model("Relu", np.int8(-37))
    lowered = copy(model)
    lowering.make_activations_unsigned(lowered)
    assert np.array_equal(run(model, {"image": images})[0], run(lowered, {"image": images})[0])


@pytest.mark.parametrize(
    ("activation", "zero_point", "scale", "folds"),
    [
        ("Relu", np.uint8(0), 0.02, True),
        ("Relu", np.int8(-128), 0.02, True),
        ("Relu", np.uint8(3), 0.02, False),
        ("Relu", np.int8(0), 0.02, False),
        ("Clip", np.uint8(0), 6 / 255, True),
        ("Clip", np.uint8(0), 4 / 255, True),
        ("Clip", np.uint8(0), 8 / 255, False),
    ],
)
def test_an_activation_is_folded_only_where_the_quantizer_does_the_same(activation, zero_point, scale, folds, images):
    model = small_model(activation, zero_point, scale=scale)
    lowered = copy(model)
    lowering.fold_activations(lowered)
    assert (activation not in types(lowered)) is folds
    assert np.array_equal(run(model, {"image": images})[0], run(lowered, {"image": images})[0])


def test_an_activation_with_a_float_reader_stays():
    model = small_model("Relu", np.uint8(0))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 2, 4, 4]))
    lowering.fold_activations(model)
    assert "Relu" in types(model)


def test_biases_move_by_half_a_step_at_most(images):
    model = small_model("Relu", np.uint8(0), bias=(0.12345, -0.2))
    lowered = copy(model)
    lowering.quantize_biases(lowered)
    for changed in (model, lowered):
        changed.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2, 4, 4]))
    before, after = (run(changed, {"image": images})[1] for changed in (model, lowered))
    difference = np.abs(before - after).max(axis=(0, 2, 3))
    assert difference.max() > 0
    assert (difference <= 0.02 * np.array([0.01, 0.02]) / 2 + 1e-6).all()


def test_a_channel_without_weights_keeps_its_bias(images):
    kernel = np.array([[[[50]]], [[[0]]]], np.int8)
    model = small_model("Relu", np.uint8(0), bias=(0.1, 1.5), weight_scale=(0.01, 1e-12), kernel=kernel)
    lowered = lowering.for_onnxruntime(model)
    assert types(lowered).count("DequantizeLinear") == types(model).count("DequantizeLinear") + 1
    before, after = (run(changed, {"image": images})[0] for changed in (model, lowered))
    assert np.array_equal(before[:, 1], after[:, 1])
    assert np.abs(before - after).max() < 1.01 * 0.02  # one quantum, where a sum lies halfway between two


def test_a_bias_that_fits_no_int32_stays_float(images):
    model = small_model("Relu", np.uint8(0), bias=(0.1, 1.5), weight_scale=(0.01, 1e-12))
    lowered = lowering.for_onnxruntime(model)
    assert "bias" in {name for node in lowered.graph.node for name in node.input}
    assert np.array_equal(run(model, {"image": images})[0], run(lowered, {"image": images})[0])


def test_the_lowered_model_is_valid_and_the_given_one_untouched(canonical):
    before = canonical.SerializeToString(deterministic=True)
    lowered = lowering.for_onnxruntime(canonical)
    onnx.checker.check_model(lowered, full_check=True)
    assert canonical.SerializeToString(deterministic=True) == before


def test_lowering_again_changes_nothing(canonical):
    once = lowering.for_onnxruntime(canonical)
    assert lowering.for_onnxruntime(once).SerializeToString(deterministic=True) == once.SerializeToString(
        deterministic=True
    )


def test_lowering_keeps_every_decision(canonical):
    feeds = {"image": fashion.images_and_labels()[0][:200]}
    before, after = run(canonical, feeds)[0], run(lowering.for_onnxruntime(canonical), feeds)[0]
    assert (before.argmax(1) == after.argmax(1)).mean() >= 0.995
    assert np.abs(before - after).max() < 0.02 * np.abs(before).max()
