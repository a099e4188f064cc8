import contextlib
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import command
import fashion
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import isa
from edgeopt.compilers.openvino import write_ir
from edgeopt.errors import InputError, StageError
from edgeopt.quantization import equalization, posttraining, ranges, smoothing
from edgeopt.quantization.histograms import SIDE, Histogram
from edgeopt.recipe import Alternative
from edgeopt.samples import write_samples
from edgeopt.stages import quantize
from edgeopt.target import Target

ON_WEAKER_CPU = """
import sys
from pathlib import Path
import fashion
from edgeopt.backends import openvino
print(fashion.top1(openvino.load(Path(sys.argv[1]), {"precision": "f32"}, 1)))
"""


def session(path, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    source = path if isinstance(path, bytes) else str(path)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model():
    _, folder = fashion.int8()
    return onnx.load(str(folder / "model.onnx"))


def weights(model):
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays]
    return [tuple(arrays[name] for name in node.input) for node in nodes]


def test_weights_are_int8_symmetric_and_per_channel(model):
    found = weights(model)
    assert len(found) == 16
    for integers, scales, zero_points in found:
        assert integers.dtype == np.int8
        assert scales.shape == (integers.shape[0],)
        assert not zero_points.any()


def test_activations_have_one_scale(model):
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    assert all(not arrays[node.input[1]].dims for node in quantizers)


def test_every_operator_is_quantized():
    details = fashion.int8()[0].details
    assert (details["quantized_operators"], details["float_operators"]) == (23, {})


def test_full_bias_correction_works_where_both_sides_of_an_add_are_convolutions():
    details = fashion.int8()[0].details
    assert details["bias_correction"] == "full"
    assert "bias_correction_fell_back" not in details


def test_fast_bias_correction_takes_over_and_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "_sessions_without_fusion", contextlib.nullcontext)
    details = fashion.run_stage(quantize, "int8", fashion.source(), tmp_path / "out")[0].details
    if details["bias_correction"] == "full":
        pytest.skip("this onnxruntime no longer loses outputs where it fuses Conv and Add")
    assert details["bias_correction"] == "fast"
    assert "Failed to find node output" in details["bias_correction_fell_back"]


def test_signature_is_kept_and_nothing_stale_is_left(model):
    assert [given.name for given in model.graph.input] == ["image"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [given.name for given in model.graph.output] == ["scores"]
    assert not model.graph.value_info


def test_accuracy_is_kept_without_any_lowering():
    images, labels = fashion.images_and_labels()
    hits = [
        (session(folder / "model.onnx").run(None, {"image": images})[0].argmax(1) == labels).mean()
        for _, folder in (fashion.source(), fashion.int8())
    ]
    assert hits[0] > 0.9
    assert hits[1] > hits[0] - 0.005


def test_overflow_fix_keeps_weights_to_7_bits_on_avx2():
    def widest(target):
        _, folder = fashion.int8(target)
        return max(
            int(np.abs(integers.astype(int)).max()) for integers, _, _ in weights(onnx.load(folder / "model.onnx"))
        )

    assert fashion.int8(fashion.AVX2)[0].details["overflow_fix"] is True
    assert widest(fashion.AVX2) <= 64 < widest(fashion.VNNI)


@pytest.mark.parametrize(
    ("level", "target"),
    [("AVX2", fashion.AVX2), ("AVX512_CORE", fashion.AVX2), ("AVX512_CORE_VNNI", fashion.VNNI)],
)
def test_accuracy_is_kept_on_weaker_cpus(level, target):
    _, folder = fashion.int8(target)
    main = fashion.scratch() / f"{level}.xml"
    write_ir(folder / "model.onnx", main, fp16_weights=False)
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": level, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", ON_WEAKER_CPU, str(main)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    images, labels = fashion.images_and_labels()
    floating = session(fashion.source()[1] / "model.onnx").run(None, {"image": images})[0]
    assert float(ran.stdout) > (floating.argmax(1) == labels).mean() - 0.01


@pytest.mark.parametrize(
    ("target", "fixed"),
    [
        (Target("vnni", arch="x86_64", isa=("avx512_vnni",)), False),
        (Target("amx", arch="x86_64", isa=("amx_int8",)), False),
        (Target("avx512", arch="x86_64", isa=("avx2", "avx512f")), True),
        (Target("unknown", arch="x86_64", reach={"ssh": "device"}), True),
        (Target("pi", arch="aarch64", isa=("asimd", "asimddp"), reach={"ssh": "pi"}), False),
    ],
)
def test_overflow_fix_follows_the_instruction_set(target, fixed):
    assert quantize.needs_overflow_fix(quantize.Int8Options(), target) is fixed


def test_overflow_fix_can_be_told():
    options = quantize.Int8Options(overflow_fix="disable")
    assert quantize.needs_overflow_fix(options, fashion.AVX2) is False


def test_ignored_nodes_stay_in_float(tmp_path):
    artifact, _ = fashion.run_stage(
        quantize,
        "int8",
        fashion.source(),
        tmp_path / "out",
        bias_correction="none",
        ignore=(".*linear",),
    )
    assert artifact.details["bias_correction"] == "none"
    assert "Gemm" in artifact.details["float_operators"]


def test_a_pattern_that_matches_nothing_is_the_users_mistake(tmp_path):
    with pytest.raises(InputError, match="no_such_node"):
        fashion.run_stage(quantize, "int8", fashion.source(), tmp_path / "out", ignore=("no_such_node",))


def test_no_calibration_samples_is_the_users_mistake(tmp_path, monkeypatch):
    write_samples(tmp_path, {"image": np.zeros((0, 1, 28, 28), np.uint8)}, None, fashion.PREPROCESS)
    monkeypatch.setattr(fashion, "calibration", lambda: tmp_path)
    with pytest.raises(InputError, match="calibration samples"):
        fashion.run_stage(quantize, "int8", fashion.source(), tmp_path / "out")


def test_progress_tells_how_many_samples_are_done(tmp_path):
    told = []
    fashion.run_stage(
        quantize,
        "int8",
        fashion.source(),
        tmp_path / "out",
        progress=lambda fraction, text: told.append(fraction),
        bias_correction="fast",
    )
    known = [fraction for fraction in told if fraction is not None]
    assert known[0] == 0
    assert max(known) == 63 / 64
    assert known == sorted(known)


def test_a_model_without_node_names_and_of_an_old_opset_is_quantized(tmp_path):
    artifact, folder = fashion.source()
    old = onnx.version_converter.convert_version(onnx.load(str(folder / "model.onnx")), 18)
    for node in old.graph.node:
        node.name = ""
    onnx.save(old, str(tmp_path / "model.onnx"))
    made, _ = fashion.run_stage(quantize, "int8", (artifact, tmp_path), tmp_path / "out", bias_correction="fast")
    assert made.details["quantized_operators"] == 23


def test_int8_is_not_quantized_again():
    assert quantize.objection("int8", quantize.Int8Options(), "int8")
    assert quantize.objection("int8", quantize.Int8Options(), "fp32") is None


def test_none_needs_nothing():
    options = quantize.choices()["none"]()
    assert quantize.tools("none", options) == ()
    assert quantize.sample_roles("none", options, "fp32") == ()


def test_instruction_sets_are_read_from_cpuinfo(tmp_path, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n")
    assert isa.instruction_sets(file) == ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    file.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert isa.instruction_sets(file) == ("asimd", "asimddp")
    assert isa.instruction_sets(tmp_path / "absent") == ()


def test_instruction_sets_honour_an_emulated_weaker_cpu(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text("flags\t\t: avx2 avx512f avx512_vnni amx_int8\n")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert isa.instruction_sets(file) == ("avx2",)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert "amx_int8" in isa.instruction_sets(file)


def test_what_a_target_says_of_itself_comes_first():
    assert isa.of_target(fashion.AVX2) == ("avx2",)
    assert isa.of_target(replace(fashion.AVX2, isa=(), reach={"ssh": "device"})) == ()


def histogram(*arrays):
    found = Histogram()
    for values in arrays:
        found.add(np.asarray(values, np.float32))
    return found


def test_a_histogram_does_not_depend_on_the_order_of_what_it_sees():
    values = np.random.default_rng(0).standard_normal(20_000) * np.repeat([1e-3, 1, 40, 7], 5000)
    parts = np.split(values, 4)
    once, upwards, downwards = histogram(values), histogram(*parts), histogram(*reversed(parts))
    for other in (upwards, downwards):
        assert other.width == once.width
        assert (other.counts == once.counts).all()
    assert once.counts.sum() == 20_000
    assert once.counts.shape == (2 * SIDE,)
    assert (once.low, once.high) == (np.float32(values.min()), np.float32(values.max()))


def test_a_histogram_tells_exact_zeros_apart_and_leaves_out_what_is_not_finite():
    found = histogram([0, 0, 1, -1, np.inf, np.nan])
    assert (found.zeros, found.counts.sum(), found.largest) == (2, 2, 1)


def test_a_percentile_is_that_of_all_magnitudes():
    values = np.random.default_rng(0).laplace(size=100_000).astype(np.float32)
    expected = np.quantile(np.abs(values), 0.99)
    assert ranges.from_histogram(histogram(values), "percentile", 99) == pytest.approx((-expected, expected), rel=2e-3)


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "relu6"])
def test_mse_finds_the_threshold_with_the_least_squared_error(kind):
    draw = np.random.default_rng(0)
    values = draw.laplace(size=100_000) if kind == "laplace" else draw.standard_normal(100_000) * 3
    values = np.clip(values, 0, 6 if kind == "relu6" else None) if kind.startswith("relu") else values
    signed = values.min() < 0

    def error(threshold):
        step = threshold / (127 if signed else 255)
        steps = np.clip(np.round(values / step), -128 if signed else 0, 127 if signed else 255)
        return np.square(values - steps * step).mean()

    low, high = ranges.from_histogram(histogram(values), "mse", 0)
    assert low == (-high if signed else 0)
    assert error(high) < 1.01 * min(error(np.abs(values).max() * share / 200) for share in range(40, 201))


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_an_outlier_is_clipped_and_a_uniform_distribution_is_not(method):
    uniform = np.random.default_rng(0).uniform(-1, 1, 100_000)
    assert ranges.from_histogram(histogram(uniform), method, 99.99)[1] > 0.99
    assert ranges.from_histogram(histogram(uniform, [100]), method, 99.99)[1] < 80


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse", "moving-average"])
def test_zeros_alone_have_a_range_of_zero(method):
    observer = ranges.observer(method, 99.99)
    observer.add(np.zeros(10, np.float32))
    assert observer.range() == (0, 0)


def test_a_moving_average_follows_the_samples():
    observer = ranges.observer("moving-average", 0)
    for largest in (1.0, 3.0):
        observer.add(np.array([0, largest], np.float32))
    assert observer.range() == pytest.approx((0, 1.1))


def tiny(folder):
    command.write_model(folder / "tiny.onnx")
    return quantize._prepared(onnx.load(str(folder / "tiny.onnx")))


def outputs_of(model, feeds):
    loaded = session(model.SerializeToString())
    return np.concatenate([loaded.run(None, feed)[0] for feed in feeds])


def settings(method="mean-min-max", bias_correction="fast"):
    return posttraining.Settings(method, 99.9, bias_correction, False, ())


def input_scale(model):
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    return float(arrays[node.input[1]])


def test_each_range_reaches_the_quantizers(tmp_path):
    images = np.random.default_rng(0).standard_normal((8, 1, 3, 16, 16)).astype(np.float32)
    images[3, 0, 0, 0, 0] = 40.0  # one outlier in one sample
    feeds = [{"x": image} for image in images]
    thresholds = {}
    for method in ("mean-min-max", "min-max", "moving-average", "percentile", "entropy", "mse"):
        made = posttraining.quantize(tiny(tmp_path), feeds, len(feeds), settings(method, "none"))
        thresholds[method] = 127 * input_scale(made)
    assert thresholds["min-max"] == pytest.approx(40)
    assert thresholds["mean-min-max"] == pytest.approx(np.abs(images).max((1, 2, 3, 4)).mean(), rel=1e-5)
    assert thresholds["percentile"] == pytest.approx(np.quantile(np.abs(images), 0.999), rel=0.01)
    assert len({round(threshold, 3) for threshold in thresholds.values()}) == 6
    assert all(thresholds[method] < 10 for method in ("moving-average", "percentile", "entropy"))
    assert thresholds["mse"] < 40


def test_bias_correction_reads_no_more_samples_than_fit():
    large, small = 4_816_896, 200_704  # bytes of the largest activations of EfficientNet-Lite0 and of Fashion-MNIST
    assert [posttraining.bias_samples(count, large) for count in (3, 100, 200, 1000)] == [1, 20, 20, 20]
    assert [posttraining.bias_samples(count, small) for count in (300, 10_000)] == [60, 334]


def sqnr(expected, got):
    return 10 * np.log10(np.square(expected).sum() / np.square(expected - got).sum())


def test_equalizing_keeps_the_function_and_evens_the_ranges():
    images, _ = fashion.images_and_labels(20)
    model = onnx.load(str(fashion.source()[1] / "model.onnx"))
    before = outputs_of(model, [{"image": images}])
    equalized = equalization.equalize(model)
    assert len(equalized.pairs) == 6
    assert outputs_of(model, [{"image": images}]) == pytest.approx(before, abs=1e-5)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    first, second = (arrays[nodes[name].input[1]] for name in equalized.pairs[0])
    assert np.abs(first).max((1, 2, 3)) == pytest.approx(np.abs(second).max((0, 2, 3)), rel=0.01)


def chain(activation, *, depthwise=False):
    """Two convolutions, or three with a depthwise one between, then Flatten and a linear layer."""
    draw = np.random.default_rng(0)
    scale = np.logspace(-1, 1, 8, dtype=np.float32)
    stored = {
        "w0": draw.standard_normal((8, 3, 3, 3)) * scale[:, None, None, None],
        "b0": draw.standard_normal(8),
        "w1": draw.standard_normal((8, 1 if depthwise else 8, 3, 3)),
        "b1": draw.standard_normal(8),
        "w2": draw.standard_normal((8 * 16, 5)),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    arguments = ["low", "high"] if activation == "Clip" else []
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="first", pads=[1] * 4),
        helper.make_node(activation, ["c0", *arguments], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="second", pads=[1] * 4, group=8 if depthwise else 1),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p1"], ["f1"]),
        helper.make_node("Gemm", ["f1", "w2"], ["y"], name="third"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("activation", "pairs"),
    [("Relu", [("first", "second"), ("second", "third")]), ("Clip", [("second", "third")])],
)
@pytest.mark.parametrize("depthwise", [False, True])
def test_equalizing_is_exact_through_depthwise_layers_pools_and_flatten_and_stops_at_relu6(
    activation, pairs, depthwise
):
    model = chain(activation, depthwise=depthwise)
    feeds = [{"x": np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)}]
    before = outputs_of(model, feeds)
    equalized = equalization.equalize(model)
    assert list(equalized.pairs) == pairs
    assert equalized.parted == ({"Clip": 1} if activation == "Clip" else {})
    assert outputs_of(model, feeds) == pytest.approx(before, rel=1e-4)


def test_equalizing_is_told(tmp_path):
    made, _ = fashion.run_stage(
        quantize, "int8", fashion.source(), tmp_path / "out", equalize=True, ranges="mse", bias_correction="fast"
    )
    assert len(made.details["equalized_pairs"]) == 6
    assert made.details["ranges"] == "mse"


def test_nothing_to_smooth_is_told(tmp_path):
    with pytest.raises(StageError, match="no LayerNormalization"):
        fashion.run_stage(quantize, "int8", fashion.source(), tmp_path / "out", smooth=0.9)


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """A transformer block whose normalizations have outlier channels, and samples."""
    import torch

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(32) for _ in range(2))
            self.qkv, self.out = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)
            self.up, self.down = torch.nn.Linear(32, 128), torch.nn.Linear(128, 32)
            for norm in self.norms:
                norm.weight.data[[3, 17]] = torch.tensor([40.0, 25.0])

        def forward(self, x):
            q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
            x = x + self.out((q @ k.transpose(-1, -2) / 32**0.5).softmax(-1) @ v)
            return x + self.down(torch.nn.functional.gelu(self.up(self.norms[1](x))))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(16, 12, 32)
    path = tmp_path_factory.mktemp("block") / "block.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter that torch calls legacy, and fast
        torch.onnx.export(Block().eval(), (x[:1],), path, input_names=["x"], dynamo=False, opset_version=17)
    torch.set_num_threads(threads)
    return quantize._prepared(onnx.load(str(path))), [{"x": one[None].numpy()} for one in x]


def test_smoothing_costs_no_operator_and_makes_outliers_cost_less(block):
    model, feeds = block
    smoothed, told = smoothing.smooth(model, feeds, len(feeds), 0.95)
    assert told == smoothing.Smoothed(folded=2, multiplied=0)
    assert sorted(node.op_type for node in smoothed.graph.node) == sorted(node.op_type for node in model.graph.node)
    expected = outputs_of(model, feeds)
    assert sqnr(expected, outputs_of(smoothed, feeds)) > 110
    with_, without = (
        sqnr(expected, outputs_of(posttraining.quantize(given, feeds, len(feeds), settings()), feeds))
        for given in (smoothed, model)
    )
    assert with_ > without + 2


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "int8"),
        ({"ranges": "min-max"}, "int8-min-max"),
        ({"ranges": "percentile"}, "int8-percentile"),
        ({"ranges": "percentile", "percentile": 99.9}, "int8-percentile-99.9"),
        ({"equalize": True}, "int8-equalize"),
        ({"smooth": 0.5}, "int8-smooth0.5"),
    ],
)
def test_options_show_in_the_name(options, name):
    assert Alternative("int8", quantize.Int8Options(**options)).label() == name
