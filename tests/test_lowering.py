import fashion
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import lowering
from edgeopt.errors import StageError
from edgeopt.lowering.tflite import recognized, to_float

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


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def quantizers(model):
    """(scale, zero point) of every QuantizeLinear and DequantizeLinear, and whether it is a weight's."""
    known = constants(model)
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return [(known[node.input[1]], known[node.input[2]], node.input[0] in known) for node in nodes]


def sqnr_db(reference, found):
    return 10 * np.log10(np.square(reference).sum() / np.square(reference - found).sum())


def test_tensorrt_gets_symmetric_int8_alone(canonical):
    lowered = lowering.for_tensorrt(canonical)
    onnx.checker.check_model(lowered, full_check=True)
    assert any(zero_point.dtype == np.uint8 for _, zero_point, _ in quantizers(canonical))
    for scale, zero_point, is_weight in quantizers(lowered):
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert (scale.ndim == 1) is is_weight
    assert not any(t.data_type in (TensorProto.UINT8, TensorProto.INT32) for t in lowered.graph.initializer)
    assert not lowered.graph.value_info


def test_tensorrt_keeps_accuracy(canonical):
    feeds = {"image": fashion.images_and_labels()[0][:100]}
    before, after = run(canonical, feeds)[0], run(lowering.for_tensorrt(canonical), feeds)[0]
    assert (before.argmax(1) == after.argmax(1)).mean() >= 0.98
    assert sqnr_db(before, after) > 20


def test_tensorrt_leaves_the_given_model_untouched_and_lowers_once(canonical):
    before = canonical.SerializeToString(deterministic=True)
    once = lowering.for_tensorrt(canonical)
    assert canonical.SerializeToString(deterministic=True) == before
    assert lowering.for_tensorrt(once).SerializeToString(deterministic=True) == once.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize(
    ("zero_point", "steps"), [(np.uint8(0), 255), (np.int8(-128), 255), (np.uint8(100), 155), (np.int8(-28), 155)]
)
def test_an_activation_takes_the_larger_side_of_its_range(zero_point, steps):
    lowered = lowering.for_tensorrt(small_model("Relu", zero_point))
    scales = {float(scale) for scale, _, is_weight in quantizers(lowered) if not is_weight}
    assert scales == {float(np.float32(np.float32(0.02) * steps / 127))}


def test_what_is_symmetric_already_stays_as_it_is():
    model = small_model("Relu", np.int8(0))
    assert lowering.for_tensorrt(model).graph.node == model.graph.node


def test_tensorrt_gets_float_biases_again():
    model = small_model("Relu", np.uint8(0), bias=(0.12345, -0.2))
    integers = copy(model)
    lowering.quantize_biases(integers)
    lowered = lowering.for_tensorrt(integers)
    conv = next(node for node in lowered.graph.node if node.op_type == "Conv")
    assert np.allclose(constants(lowered)[conv.input[2]], [0.12345, -0.2], atol=2e-4)


def test_weights_with_zero_points_are_made_symmetric(images):
    model = small_model("Relu", np.int8(0))
    for tensor in model.graph.initializer:
        if tensor.name == "kernel_zero_point":
            tensor.CopyFrom(numpy_helper.from_array(np.array([10, -20], np.int8), tensor.name))
    lowered = lowering.for_tensorrt(model)
    assert all(not zero_point.any() for _, zero_point, _ in quantizers(lowered))
    before, after = (run(changed, {"image": images})[0] for changed in (model, lowered))
    assert np.abs(before - after).max() <= 1.01 * 0.02  # one quantum


def test_integers_of_the_network_itself_are_left():
    model = small_model("Relu", np.uint8(0))
    model.graph.output.append(helper.make_tensor_value_info("z_q", TensorProto.UINT8, ["batch", 2, 4, 4]))
    lowered = lowering.for_tensorrt(model)
    last = [node for node in lowered.graph.node if node.op_type == "QuantizeLinear"][-1]
    assert constants(lowered)[last.input[2]].dtype == np.uint8


def test_operators_that_compute_with_integers_are_refused(canonical):
    model = small_model("Relu", np.uint8(0))
    model.graph.node.append(helper.make_node("MatMulInteger", ["z_q", "z_q"], ["product"]))
    with pytest.raises(StageError, match="MatMulInteger"):
        lowering.for_tensorrt(model)


def test_a_quantized_model_is_taken_apart_into_floats_and_ranges(canonical):
    plain, ranges = to_float(canonical)
    onnx.checker.check_model(plain, full_check=True)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(types(plain))
    assert len(ranges.activations) == types(canonical).count("QuantizeLinear")
    assert len(ranges.weights) == 16
    feeds = {"image": fashion.images_and_labels()[0][:100]}
    before, after = run(canonical, feeds)[0], run(plain, feeds)[0]
    assert (before.argmax(1) == after.argmax(1)).mean() >= 0.98


@pytest.mark.parametrize(("zero_point", "low", "high"), [(np.uint8(0), 0, 5.1), (np.int8(0), -2.56, 2.54)])
def test_a_range_is_what_the_ends_of_the_type_stand_for(zero_point, low, high):
    _, ranges = to_float(small_model("Relu", zero_point))
    assert ranges.activations == {name: pytest.approx((low, high)) for name in ("image", "z")}
    largest = ranges.weights["kernel_dq_float"]
    assert largest.shape == (2, 1, 1, 1)
    assert np.allclose(largest.ravel(), [1.27, 2.54])


def test_tensors_are_recognized_by_their_values_in_any_layout():
    noise = np.random.default_rng(0)
    known = {name: noise.standard_normal((1, 3, 4, 5)).astype(np.float32) for name in "ab"}
    unknown = {"first": known["a"].transpose(0, 2, 3, 1), "flat": known["b"][0], "other": known["a"] * 1.1}
    assert recognized(unknown, known) == {"first": [("a", (0, 2, 3, 1))], "flat": [("b", ())]}
