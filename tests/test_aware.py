"""Quantization-aware training: fake quantizers against ONNX's own, and the stage on a network that rounding hurts."""

import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import fashion
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeopt import plan, recipe, yaml
from edgeopt.artifact import TensorSpec
from edgeopt.errors import RecipeError, StageError
from edgeopt.formats import onnx_quantizers
from edgeopt.formats.onnx_to_torch import import_quantized
from edgeopt.quantization import aware, execution
from edgeopt.samples import write_samples
from edgeopt.stages import StageJob, compile, quantize

torch.set_num_threads(1)  # fastest for so little work; and part of what a checkpoint is gone on with
SCALE, PER_CHANNEL = np.float32(0.1), np.array([0.5, 0.03, 2.0], np.float32)
HURT = {"overflow_fix": "enable", "ranges": "mean-min-max"}  # 7-bit weights, and activations that are cut
TRAINING = {"epochs": 3, "batch": 32, "learning_rate": 1e-2, "ema": 0.9, **HURT}


def values(shape=(4, 3, 50)):
    """Random numbers, halves of steps, and what no 8-bit integer holds."""
    drawn = 6 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    drawn[0] = (np.arange(50, dtype=np.float32) - 25.5) * PER_CHANNEL[:, None]
    drawn[1, :, :4] = [-1e9, 1e9, 0.0, -0.0]
    return drawn


def quantizing_model(path, scale, zero_point, **attributes):
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in (("s", scale), ("z", zero_point))]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 3, 50]) for name in "xy")
    graph = helper.make_graph(nodes, "quantizer", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


QUANTIZERS = {
    "int8": (SCALE, np.int8(0), {}),
    "uint8 with a zero point": (SCALE, np.uint8(77), {}),
    "int8 with a zero point": (SCALE, np.int8(-5), {}),
    "a scale for each channel": (PER_CHANNEL, np.zeros(3, np.int8), {"axis": 1}),
    "a zero point for each channel": (PER_CHANNEL, np.array([3, 200, 0], np.uint8), {"axis": -2}),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_fake_quantization_is_onnxs_bit_for_bit(tmp_path, name):
    scale, zero_point, attributes = QUANTIZERS[name]
    path = quantizing_model(tmp_path / "model.onnx", scale, zero_point, **attributes)
    (expected,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": values()})
    found = import_quantized(path)[0](torch.from_numpy(values())).numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_halves_go_to_even_integers():
    found = onnx_quantizers.quantize(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), torch.tensor(1.0), 0.0, -128, 127)
    assert found.tolist() == [0, 2, 2, 0, -2]


def test_gradients_pass_straight_inside_the_range_and_stop_outside():
    x = torch.tensor([-200.0, -128.4, -1.2, 0.0, 126.9, 127.6, 200.0], requires_grad=True)
    onnx_quantizers.fake_quantize(x, torch.tensor(1.0), 0.0, -128, 127).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0, 0]


def test_gradients_know_the_zero_point():
    x = torch.tensor([-11.0, -9.0, 244.0, 247.0], requires_grad=True)
    (3 * onnx_quantizers.fake_quantize(x, torch.tensor(1.0), 10.0, 0, 255)).sum().backward()
    assert x.grad.tolist() == [0, 3, 3, 0]


def test_autocast_does_not_touch_the_rounding():
    x = torch.linspace(-20, 20, 999).to(torch.bfloat16).requires_grad_()
    scale = torch.tensor(0.0371)
    with torch.autocast("cpu", torch.bfloat16):
        found = onnx_quantizers.fake_quantize(x, scale, 0.0, -128, 127)
    assert torch.equal(found, onnx_quantizers.fake_quantize(x.detach().float(), scale, 0.0, -128, 127))
    found.sum().backward()
    assert x.grad.dtype == torch.bfloat16


OPERATORS = {
    "Conv of groups, padded unevenly": ("Conv", (4, 6), (6, 2, 3, 3), 0, {"group": 2, "pads": [0, 1, 2, 1]}),
    "ConvTranspose": ("ConvTranspose", (4, 6), (4, 6, 3, 3), 1, {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
    "Gemm": ("Gemm", (8, 6), (6, 8), 0, {"transB": 1}),
    "Gemm, the weight as it is": ("Gemm", (8, 6), (8, 6), 1, {"alpha": 0.5}),
    "MatMul": ("MatMul", (8, 6), (8, 6), 1, {}),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_weight_behind_a_dequantizer_is_a_parameter_behind_a_quantizer(tmp_path, name):
    operator, (given, made), shape, axis, attributes = OPERATORS[name]
    draw = np.random.default_rng(0)
    arrays = {
        "w.int8": draw.integers(-100, 101, shape).astype(np.int8),
        "w.scale": draw.uniform(0.01, 0.1, made).astype(np.float32),
        "w.zero": np.zeros(made, np.int8),
        "x.scale": np.float32(0.03),
        "x.zero": np.uint8(120),
        "bias": draw.standard_normal(made).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x.scale", "x.zero"], ["x.q"]),
        helper.make_node("DequantizeLinear", ["x.q", "x.scale", "x.zero"], ["x.dq"]),
        helper.make_node("DequantizeLinear", ["w.int8", "w.scale", "w.zero"], ["w.dq"], axis=axis),
        helper.make_node(operator, ["x.dq", "w.dq", *([] if operator == "MatMul" else ["bias"])], ["y"], **attributes),
    ]
    feed = draw.standard_normal((1, given, 9, 7) if len(shape) == 4 else (1, given)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, feed.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in arrays.items() if key in str(nodes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    module, held = import_quantized(tmp_path / "model.onnx")
    (expected,) = execution.outputs(model, [{"x": feed}], 1)
    found = module(torch.from_numpy(feed))
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-4)
    found.square().sum().backward()
    weight = next(key for key, initializer in held.items() if initializer == "w.int8")
    assert module.get_parameter(weight).grad.abs().sum() > 0


# --- a small network whose channels have unlike ranges, which one scale for all of them hurts


def write_network(path):
    """Depthwise and pointwise convolutions: image float32[batch, 1, 28, 28] to scores float32[batch, 10].

    Every fourth channel of the first layers is 30 times as large as the rest, and made small again after them. The
    convolutions are random, the linear layer fits the labels of 2,000 images.
    """
    draw = np.random.default_rng(1)
    loud = np.where(np.arange(16) % 4 == 0, 30.0, 1.0)
    shapes = {"stem": (16, 1, 3, 3), "deep": (16, 1, 3, 3), "point": (24, 16, 1, 1), "fc": (10, 216)}
    w = {name: draw.standard_normal(s) * np.sqrt(2 / np.prod(s[1:])) for name, s in shapes.items()}
    w["stem"] *= loud[:, None, None, None]
    w["point"] /= loud[None, :, None, None]
    b = {name: 0.1 * draw.standard_normal(len(value)) for name, value in w.items()}
    b["stem"], b["deep"] = b["stem"] * loud, b["deep"] * loud

    def convolution(given, name, made, **attributes):
        return helper.make_node("Conv", [given, f"{name}.weight", f"{name}.bias"], [made], name=name, **attributes)

    nodes = [
        convolution("image", "stem", "c0", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        convolution("r0", "deep", "c1", pads=[1] * 4, strides=[2, 2], group=16),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        convolution("r1", "point", "c2"),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("AveragePool", ["r2"], ["p"], name="pool", kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["features"], name="flatten"),
        helper.make_node("Gemm", ["features", "fc.weight", "fc.bias"], ["scores"], name="fc", transB=1),
    ]

    def model(output, nodes):
        arrays = {**{f"{k}.weight": v for k, v in w.items()}, **{f"{k}.bias": v for k, v in b.items()}}
        graph = helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", None])],
            [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    images, labels = fashion.images_and_labels(2000)
    session = onnxruntime.InferenceSession(model("features", nodes[:-1]).SerializeToString())
    found = session.run(None, {"image": images})[0].astype(np.float64)
    found = np.concatenate([found, np.ones((len(found), 1))], 1)
    wanted = 8 * np.eye(10)[labels] - 4
    solved = np.linalg.solve(found.T @ found + 0.1 * np.eye(217), found.T @ wanted)
    w["fc"], b["fc"] = solved[:-1].T, solved[-1]
    whole = model("scores", nodes)
    whole.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 10
    onnx.checker.check_model(whole)
    onnx.save(whole, path)


@functools.cache
def parent():
    folder = fashion.scratch() / "hurt"
    folder.mkdir()
    write_network(folder / "model.onnx")
    specs = (TensorSpec("image", ("batch", 1, 28, 28), "float32"),), (TensorSpec("scores", ("batch", 10), "float32"),)
    return fashion.artifact(folder, fashion.Produced("onnx", "model.onnx", *specs, "fp32")), folder


@functools.cache
def training():
    folder = fashion.scratch() / "aware"
    folder.mkdir()
    with np.load(fashion.SAMPLE / "test.npz", allow_pickle=False) as arrays:
        chosen = slice(5000, 5600)
        labels = arrays["labels"][chosen].astype(np.int64)
        write_samples(folder, {"image": arrays["image"][chosen]}, labels, fashion.PREPROCESS)
    return folder


def job(out, choice="qat", **options):
    out.mkdir(parents=True)
    return StageJob(
        choice=choice,
        options=quantize.choices()[choice](**options),
        parent=parent()[0],
        parent_folder=parent()[1],
        lineage={"import": parent()[1]},
        samples={"train": training(), "calibration": fashion.calibration()},
        target=fashion.VNNI,
        out=out,
        progress=lambda fraction, text: None,
        scratch=out.parent / f"{out.name}-scratch",
        threads=1,
    )


def built(asked):
    return fashion.artifact(asked.out, quantize.run(asked)), asked.out


@functools.cache
def int8():
    return built(job(fashion.scratch() / "aware-int8", "int8", **HURT))


@functools.cache
def qat():
    return built(job(fashion.scratch() / "aware-qat", **TRAINING))


def scores(folder, images):
    model = onnx.load(str(folder / "model.onnx"))
    return execution.outputs(model, [{"image": images}], 1)[0]


def constants(folder):
    model = onnx.load(str(folder / "model.onnx"))
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def made_trainable():
    model = onnx.load(str(int8()[1] / "model.onnx"))
    return model, aware.trainable(model, int8()[1] / "model.onnx", onnx.load(str(parent()[1] / "model.onnx")))


def test_before_training_it_is_the_quantized_model_with_the_float_weights():
    model, student = made_trainable()
    assert (len(student.quantizers), student.from_float) == (4, 4)
    floats = constants(parent()[1])
    found = {student.initializers[name]: p.detach().numpy() for name, p in student.module.named_parameters()}
    assert any(np.array_equal(value, floats["deep.weight"]) for value in found.values())
    before = model.SerializeToString()
    aware.write(student, model)
    assert model.SerializeToString() == before


def test_training_recovers_on_held_out_samples_what_rounding_cost():
    held_out = qat()[0].details["held_out"]
    assert held_out["metric"] == "top1"
    assert held_out["loss_after"] < 0.9 * held_out["loss_before"]
    with np.load(fashion.SAMPLE / "test.npz", allow_pickle=False) as arrays:
        images, labels = fashion.PREPROCESS.apply(arrays["image"][2000:4000]), arrays["labels"][2000:4000]
    whole, rounded, trained = (
        (scores(folder, images).argmax(1) == labels).mean() for _, folder in (parent(), int8(), qat())
    )
    assert rounded < whole - 0.03
    assert trained > rounded + 0.01


def test_what_is_written_is_the_same_graph_with_other_numbers():
    before, after = (onnx.load(str(folder / "model.onnx")) for _, folder in (int8(), qat()))
    assert before.graph.node == after.graph.node
    assert (qat()[0].precision, qat()[0].inputs, qat()[0].outputs) == ("int8", parent()[0].inputs, parent()[0].outputs)
    left, right = constants(int8()[1]), constants(qat()[1])
    assert {k: (v.dtype, v.shape) for k, v in left.items()} == {k: (v.dtype, v.shape) for k, v in right.items()}
    changed = {name for name in left if not np.array_equal(left[name], right[name])}
    assert len([name for name in changed if right[name].dtype == np.int8]) == 4
    assert changed >= {"stem.bias", "deep.bias", "point.bias", "fc.bias"}


def test_weights_keep_to_the_range_that_they_had():
    """7 bits where the overflow fix is on; NNCF leaves depthwise convolutions their 8."""

    def widest(folder):
        return {
            n: int(np.abs(v.astype(int)).max()) for n, v in constants(folder).items() if v.dtype == np.int8 and v.ndim
        }

    before, after = widest(int8()[1]), widest(qat()[1])
    assert 64 in before.values()
    assert all(after[name] <= before[name] for name in before)


def test_the_model_written_computes_what_the_module_does():
    ratio = qat()[0].details["check_sqnr_db"]
    assert ratio is None or ratio > 40
    model, student = made_trainable()
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.mul_(0.9)
    aware.write(student, model)
    images, _ = fashion.images_and_labels(64)
    ratio = aware.check(model, student.module, [{"image": images}])
    assert ratio is None or ratio > 40


def test_a_model_that_computes_something_else_is_refused():
    model, student = made_trainable()
    with torch.no_grad():
        next(iter(student.module.parameters())).mul_(0.9)
    images, _ = fashion.images_and_labels(8)
    with pytest.raises(StageError, match="something else than the one trained"):
        aware.check(model, student.module, [{"image": images}])


def test_weights_that_were_masked_stay_zero():
    _, student = made_trainable()
    weight = student.module.get_parameter(next(iter(student.quantizers)))
    with torch.no_grad():
        weight.view(-1)[:7] = 0
    aware.hold_zeros(weight)
    weight.sum().backward()
    assert weight.grad.view(-1)[:7].tolist() == [0] * 7 and weight.grad.view(-1)[7] == 1


def test_every_compiler_takes_it(tmp_path):
    images, _ = fashion.images_and_labels(100)
    wanted = scores(qat()[1], images).argmax(1)
    for choice in ("onnxruntime", "openvino"):
        out = tmp_path / choice
        out.mkdir()
        asked = replace(job(tmp_path / f"{choice}-job"), choice=choice, options=compile.choices()[choice](), out=out)
        made = compile.run(replace(asked, parent=qat()[0], parent_folder=qat()[1]))
        from edgeopt import backends

        session = backends.find(choice).load(out / made.main, dict(made.runtime), 1)
        found = session.run({session.inputs[0].name: images})[session.outputs[0].name].argmax(1)
        assert (found == wanted).mean() > 0.9, choice


def test_the_same_samples_and_options_give_the_same_bytes(tmp_path):
    assert built(job(tmp_path / "again", **TRAINING))[0].digest == qat()[0].digest
    assert built(job(tmp_path / "other", **{**TRAINING, "seed": 1}))[0].digest != qat()[0].digest


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from pathlib import Path
import test_aware as t

def told(fraction, text):
    if text.startswith("epoch 2"):
        os.kill(os.getpid(), 9)

t.quantize.run(replace(t.job(Path(sys.argv[2]) / "out", **t.TRAINING), progress=told))
"""


def test_after_kill_9_it_goes_on_to_the_same_bytes(tmp_path, request):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(request.path.parent), str(tmp_path / "killed")]
    assert subprocess.run(command, check=False, env=dict(os.environ)).returncode == -signal.SIGKILL
    asked = job(tmp_path / "again", **TRAINING)
    made = fashion.artifact(asked.out, quantize.run(replace(asked, scratch=tmp_path / "killed" / "out-scratch")))
    assert made.details["resumed_after_epoch"] == 1
    assert made.digest == qat()[0].digest


def test_details_tell_what_was_done():
    details = qat()[0].details
    assert (details["epochs"], details["overflow_fix"], details["weights_from_float"]) == (3, True, 4)
    assert details["quantized_operators"] == int8()[0].details["quantized_operators"]
    assert details["teacher"]["model"] == "original"
    json.dumps(details)


RECIPE = """
model: model.onnx
data: {train: train.npz}
steps:
  - quantize: [none, int8, ASKED]
  - compile: [onnxruntime]
"""


def planned(asked):
    document = yaml.parse(RECIPE.replace("ASKED", asked), "recipe.yaml")
    return plan.make(recipe.resolve(document, base=Path("/nowhere"), name="recipe"))


def test_a_recipe_takes_it_beside_int8():
    made = planned("{qat: {epochs: 3, augment: flip_shift, ignore: [fc]}}")
    step = next(step for step in made.steps if step.choice == "qat")
    assert (step.roles, step.precision, step.options.epochs) == (("calibration", "train"), "int8", 3)
    assert any(candidate.id.startswith("qat-") for candidate in made.candidates)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("{qat: {epochs: 0}}", "epochs"),
        ("{qat: {learning_rate: -1}}", "learning_rate"),
        ("{qat: {overflow_fix: maybe}}", "overflow_fix"),
        ("{qat: {finetune: own.py:train}}", "finetune"),
        ("qta", "did you mean 'qat'"),
    ],
)
def test_wrong_options_are_the_recipes_mistakes(asked, message):
    with pytest.raises(RecipeError) as told:
        planned(asked)
    assert any(message in problem for problem in told.value.problems)


def test_int8_is_not_trained_again():
    assert quantize.objection("qat", quantize.choices()["qat"](), "int8")
