"""What layers cost in 8 bits: their ranking, keeping some in float, outputs of unlike ranges, and the verb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import command
import fashion
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import plan, recipe
from edgeopt.errors import InputError, StageError
from edgeopt.formats import counting
from edgeopt.quantization import control, execution, outputs, sensitivity
from edgeopt.quantization.layers import QuantizedModel
from edgeopt.samples import Samples, adapt, restore, write_samples
from edgeopt.stages import StageJob, compile, quantize

SILENT = lambda fraction, text: None  # noqa: E731


def load(built: fashion.Built) -> Any:
    return onnx.load(str(built[1] / "model.onnx"))


@pytest.fixture(scope="module")
def original() -> Any:
    return load(fashion.source())


@pytest.fixture(scope="module")
def quantized() -> Any:
    return load(fashion.int8())


@pytest.fixture(scope="module")
def feeds(original: Any) -> execution.Batches:
    return execution.batches(original, Samples(fashion.calibration()))


@pytest.fixture(scope="module")
def reference(original: Any, feeds: execution.Batches) -> Any:
    return execution.outputs(original, feeds, 1)


def spoiled(model: Any, weight: str) -> Any:
    """A copy in which one layer's weights are -100, 0 or 100."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == weight:
            coarse = np.round(numpy_helper.to_array(tensor) / 100.0) * 100
            tensor.CopyFrom(numpy_helper.from_array(coarse.astype(np.int8), weight))
            return copy
    raise AssertionError(f"no initializer {weight}")


@pytest.fixture(scope="module")
def bad(quantized: Any) -> Any:
    """A quantized model of which one layer in the middle is much worse than all others."""
    return spoiled(quantized, BAD_WEIGHT)


BAD_LAYER = "stages.2.conv1"
BAD_WEIGHT = f"q_output_{BAD_LAYER}.weight_1"


def test_without_any_quantized_layer_it_is_the_original(
    original: Any, quantized: Any, feeds: Any, reference: Any
) -> None:
    model = QuantizedModel(quantized, original)
    floating = model.with_float({layer.name for layer in model.layers})
    assert not any(node.op_type.endswith("uantizeLinear") for node in floating.graph.node)
    assert np.array_equal(execution.outputs(floating, feeds, 1)[0], reference[0])


def test_layers_are_told_with_what_they_hold(original: Any, quantized: Any) -> None:
    layers = {layer.title: layer for layer in QuantizedModel(quantized, original).layers}
    assert len(layers) == fashion.int8()[0].details["quantized_operators"]
    assert (layers["fc"].operator, layers["fc"].parameters, layers["fc"].macs) == ("Gemm", 1290, 1280)


def test_a_layer_alone_keeps_its_own_quantizers_and_no_other(original: Any, quantized: Any) -> None:
    model = QuantizedModel(quantized, original)
    layer = next(layer for layer in model.layers if layer.title == BAD_LAYER)
    alone = model.with_only({layer.name})
    assert [node.op_type for node in alone.graph.node if node.op_type.endswith("uantizeLinear")] == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear",
    ]  # fmt: skip
    onnx.checker.check_model(alone, full_check=True)


def test_what_others_read_too_stays_quantized_for_them(original: Any, quantized: Any) -> None:
    """An Add and a convolution share the quantizer of a block's input."""
    model = QuantizedModel(quantized, original)
    writer = {name: node for node in quantized.graph.node for name in node.output}
    add = next(
        node for node in quantized.graph.node
        if node.op_type == "Add" and any(
            other is not node and name in other.input for name in node.input for other in quantized.graph.node
        )
    )  # fmt: skip
    floating = model.with_float({add.name})
    left = next(node for node in floating.graph.node if node.name == add.name)
    assert not any(name.startswith("dq_") for name in left.input)
    shared = {name for name in add.input if sum(name in node.input for node in quantized.graph.node) > 1}
    still = {name for node in floating.graph.node for name in node.output}
    assert shared <= still
    assert all(writer[name].op_type == "DequantizeLinear" for name in shared)


def test_qdq_is_taken_at_its_word(quantized: Any, feeds: Any) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(quantized.SerializeToString(), options, providers=["CPUExecutionProvider"])
    plain = np.concatenate([session.run(None, dict(feed))[0] for feed in feeds])
    (ratio,) = execution.snr_db([plain], execution.outputs(quantized, feeds, 1))
    assert ratio is None or ratio > 45, "only ties of rounding may differ"


def test_the_layer_that_is_bad_ranks_first(original: Any, bad: Any, feeds: Any, reference: Any) -> None:
    ranked = sensitivity.rank(QuantizedModel(bad, original), reference, feeds, 1, SILENT)
    assert ranked[0].layer.title == BAD_LAYER
    assert ranked[0].snr_db < ranked[1].snr_db - 6
    assert [r.snr_db for r in ranked] == sorted(r.snr_db for r in ranked)


def test_the_curve_says_what_the_worst_layers_in_float_gain(
    original: Any, bad: Any, feeds: Any, reference: Any
) -> None:
    model = QuantizedModel(bad, original)
    ranked = sensitivity.rank(model, reference, feeds, 1, SILENT)
    curve = sensitivity.curve(model, ranked, reference, feeds, 1, SILENT)
    assert list(curve) == sorted(curve)
    assert (min(curve), max(curve)) == (0, len(model.layers) - 1)
    assert curve[1] > curve[0] + 6, "the bad layer in float"
    assert curve[len(model.layers) - 1] == pytest.approx(ranked[-1].snr_db), "the last layer alone"


@pytest.mark.parametrize(("layers", "expected"), [(1, (0,)), (2, (0, 1)), (4, (0, 1, 2, 3))])
def test_the_curve_of_few_layers_has_few_points(layers: int, expected: tuple[int, ...]) -> None:
    assert sensitivity.points(layers) == expected


def test_a_model_inside_its_goal_is_left_alone(original: Any, quantized: Any) -> None:
    samples = Samples(fashion.calibration())
    found = control.keep_inside(quantized, original, samples, control.Goal(0.05, 20.0), 1, SILENT)
    assert found.model is quantized
    assert (found.kept, found.evaluations, found.metric) == ((), 1, "agreement")


def test_only_the_layer_that_costs_is_kept_in_float(original: Any, bad: Any, feeds: Any, reference: Any) -> None:
    samples = Samples(fashion.calibration())
    found = control.keep_inside(bad, original, samples, control.Goal(min_snr_db=25.0), 1, SILENT)
    assert [ranked.layer.title for ranked in found.kept] == [BAD_LAYER]
    assert found.before.snr_db < 25 <= found.after.snr_db
    (measured,) = execution.snr_db(reference, execution.outputs(found.model, feeds, 1))
    assert measured == pytest.approx(found.after.snr_db)
    told = found.details()
    assert told["evaluations"] == found.evaluations <= 8
    assert told["float_layers"][0]["title"] == BAD_LAYER


def test_with_labels_the_drop_is_of_accuracy(original: Any, quantized: Any, tmp_path: Path) -> None:
    ruined = spoiled(quantized, "q_output_fc.weight_1")
    images, labels = fashion.images_and_labels(200)
    write_samples(tmp_path, {"image": images}, labels, replace(fashion.PREPROCESS, mean=(), std=()))
    found = control.keep_inside(ruined, original, Samples(tmp_path), control.Goal(max_drop=0.5), 1, SILENT)
    assert found.metric == "top1"
    hits = [
        (execution.outputs(model, execution.batches(original, Samples(tmp_path)), 1)[0].argmax(1) == labels).mean()
        for model in (original, ruined)
    ]
    assert found.before.drop == pytest.approx(hits[0] - hits[1])


def test_a_goal_out_of_reach_says_how_near_it_came(original: Any, quantized: Any) -> None:
    samples = Samples(fashion.calibration())
    with pytest.raises(StageError, match=r"at least 200 dB: with one of 23 layers quantized there is still .* dB"):
        control.keep_inside(quantized, original, samples, control.Goal(min_snr_db=200.0), 1, SILENT)


def job(tmp_path: Path, **options: Any) -> StageJob:
    artifact, folder = fashion.source()
    (tmp_path / "out").mkdir()
    return StageJob(
        choice="int8",
        options=quantize.Int8Options(**options),
        parent=artifact,
        parent_folder=folder,
        lineage={"import": folder},
        samples={"calibration": fashion.calibration(), "tuning": fashion.calibration()},
        target=fashion.VNNI,
        out=tmp_path / "out",
        progress=SILENT,
    )


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> fashion.Built:
    """INT8 with as many layers in float as 36 dB take."""
    work = job(tmp_path_factory.mktemp("controlled"), min_snr="36 dB")
    return fashion.artifact(work.out, quantize.run(work)), work.out


def test_the_stage_tells_what_it_kept_in_float(controlled: fashion.Built) -> None:
    details = controlled[0].details
    told = details["control"]
    kept = len(told["float_layers"])
    assert kept >= 1
    assert told["before"]["snr_db"] < 36 <= told["after"]["snr_db"]
    assert sum(details["float_operators"].values()) == kept
    assert details["quantized_operators"] + kept == told["layers"] == 23


def test_the_other_layers_are_fused_still_in_onnxruntime(controlled: fashion.Built, tmp_path: Path) -> None:
    """All but those in float and those right before them, which onnxruntime computes in float where nothing rounds."""
    told = controlled[0].details["control"]
    built = fashion.run_stage(compile, "onnxruntime", controlled, tmp_path / "ort")
    operators = fashion.placed(built, "onnxruntime").counts
    assert operators["QLinearConv"] >= 15 - 2 * len(told["float_layers"])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_it_computes_the_same_compiled(
    controlled: fashion.Built, runtime: str, feeds: Any, reference: Any, tmp_path: Path
) -> None:
    from edgeopt import backends

    artifact, folder = fashion.run_stage(compile, runtime, controlled, tmp_path / runtime)
    session = backends.require(runtime).load(folder / artifact.main, artifact.runtime, 1)
    found = np.concatenate([next(iter(session.run(dict(feed)).values())) for feed in feeds])
    (ratio,) = execution.snr_db(reference, [found])
    assert ratio > 35


def test_class_scores_are_needed_for_a_drop(tmp_path: Path) -> None:
    command.write_model(tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    model.graph.node[-2].op_type = "Identity"  # instead of Flatten: pooled maps are no class scores
    del model.graph.node[-1]
    model.graph.node[-1].output[0] = "scores"
    del model.graph.output[0].type.tensor_type.shape.dim[1:]
    command.write_samples(tmp_path / "x.npz", 0)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        write_samples(tmp_path, {"x": arrays["x"]}, None, replace(fashion.PREPROCESS, mean=(), std=()))
    with pytest.raises(InputError, match="max_drop needs class scores") as caught:
        control.keep_inside(model, model, Samples(tmp_path), control.Goal(max_drop=0.01), 1, SILENT)
    assert "min_snr" in str(caught.value.remedy)


def planned(tmp_path: Path, data: str) -> plan.Plan:
    steps = "steps: [{quantize: {int8: {max_drop: 1 %}}}, {compile: onnxruntime}]"
    (tmp_path / "recipe.yaml").write_text(f"model: model.onnx\ndata: {data}\n{steps}\n")
    return plan.make(recipe.read(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize(
    ("data", "location", "samples"),
    [
        ("{calibration: c.npz, tuning: t.npz, validation: v.npz}", "t.npz", None),
        ("{train: a.npz, validation: v.npz}", "a.npz", 1000),
        ("{calibration: c.npz, validation: v.npz}", "c.npz", None),
    ],
)
def test_a_step_never_judges_itself_on_what_validates(
    data: str, location: str, samples: int | None, tmp_path: Path
) -> None:
    tuning = planned(tmp_path, data).data["tuning"]
    assert (tuning.location, tuning.samples) == (f"{tmp_path}/{location}", samples)


def test_without_a_goal_no_tuning_data_is_read() -> None:
    assert quantize.sample_roles("int8", quantize.Int8Options(), "fp32") == ("calibration",)


def test_a_goal_is_in_the_name_of_the_candidate() -> None:
    named = recipe.Alternative("int8", quantize.Int8Options(max_drop="1 %", min_snr="20 dB"))
    assert named.label() == "int8-drop1-snr20"


@pytest.mark.parametrize("option", [{"max_drop": 0.01}, {"max_drop": "1 dB"}, {"min_snr": "20"}])
def test_a_goal_needs_its_unit(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="write it like"):
        quantize.Int8Options(**option)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx, image float32[batch, 3, 32, 32] to output0 [batch, 9, 64], and samples.

    One convolution gives boxes (4 channels, a hundred times larger) and scores (5), which are scaled to pixels.
    """
    import torch

    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)

    class Detector(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.ReLU())
            self.head = torch.nn.Conv2d(16, 9, 3, 2, 1)

        def forward(self, image: Any) -> Any:
            return self.head(self.body(image)).flatten(2) * 1.5

    network = Detector().eval()
    with torch.no_grad():
        network.head.weight[:4] *= 100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter that torch calls legacy, and fast
        torch.onnx.export(
            network, (torch.zeros(1, 3, 32, 32),), str(folder / "model.onnx"), dynamo=False, opset_version=17,
            input_names=["image"], output_names=["output0"],
            dynamic_axes={"image": {0: "batch"}, "output0": {0: "batch"}},
        )  # fmt: skip
    images = np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32)
    write_samples(folder, {"image": images}, None, replace(fashion.PREPROCESS, mean=(), std=()))
    return folder


def ratios(folder: Path, model: Any) -> tuple[float, float]:
    """dB of the boxes and of the scores."""
    original = onnx.load(str(folder / "model.onnx"))
    feeds = execution.batches(original, Samples(folder))
    wanted, found = execution.outputs(original, feeds, 1)[0], execution.outputs(model, feeds, 1)[0]
    boxes, scores = execution.snr_db([wanted[:, :4], wanted[:, 4:]], [found[:, :4], found[:, 4:]])
    assert boxes is not None
    assert scores is not None
    return boxes, scores


def test_boxes_do_not_ruin_the_scores_beside_them(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = fashion.source()
    work = replace(job(tmp_path), parent=artifact, parent_folder=detector, lineage={"import": detector})
    work = replace(work, samples={"calibration": detector})
    produced = quantize.run(work)
    boxes, scores = ratios(detector, onnx.load(str(work.out / "model.onnx")))
    (told,) = produced.details["mixed_outputs"]
    assert told["output"] == "output0"
    assert told["ranges"][0] > 50 * told["ranges"][1]
    assert "kept in float" in told["told"]
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "separated", lambda quantized, original, feeds: (quantized, ()))
        quantize.run(work)
    boxes_before, scores_before = ratios(detector, onnx.load(str(work.out / "model.onnx")))
    assert scores_before < 10
    assert scores > 25
    assert boxes >= boxes_before - 1


def joined(path: Path) -> tuple[Any, Any]:
    """Two convolutions, one a hundred times the other, joined: in float, and with one quantizer behind the Concat."""
    draw = np.random.default_rng(0)
    arrays = {
        "large": draw.standard_normal((4, 3, 1, 1)).astype(np.float32) * 100,
        "small": draw.standard_normal((5, 3, 1, 1)).astype(np.float32),
        "offset": np.ones((1, 9, 1, 1), np.float32),
    }
    scales = {name: np.abs(arrays[name]).max() / 127 for name in ("large", "small")}
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    output = helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 9, 8, 8])
    nodes = [
        helper.make_node("Conv", ["image", "large"], ["boxes"], "boxes"),
        helper.make_node("Conv", ["image", "small"], ["scores"], "scores"),
        helper.make_node("Concat", ["boxes", "scores"], ["both"], "concat", axis=1),
        helper.make_node("Add", ["both", "offset"], ["output0"], "add"),
    ]
    versions = {"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 9}
    stored = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    original = helper.make_model(helper.make_graph(nodes, "g", [image], [output], stored), **versions)
    images = draw.standard_normal((20, 3, 8, 8)).astype(np.float32)
    write_samples(path, {"image": images}, None, replace(fashion.PREPROCESS, mean=(), std=()))
    onnx.save(original, str(path / "model.onnx"))
    more = {"step": np.float32(8.0), "fine": np.float32(4 / 127), "zero": np.int8(0)}
    for name, scale in scales.items():
        more |= {f"{name}_q": np.round(arrays[name] / scale).astype(np.int8), f"{name}_s": np.float32(scale)}

    def pair(name: str, scale: str) -> list[Any]:
        return [
            helper.make_node("QuantizeLinear", [name, scale, "zero"], [f"{name}_i"], f"q_{name}"),
            helper.make_node("DequantizeLinear", [f"{name}_i", scale, "zero"], [f"{name}_d"], f"d_{name}"),
        ]

    weights = [
        helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", "zero"], [f"{name}_d"], f"d_{name}")
        for name in scales
    ]
    nodes = [
        *pair("image", "fine"),
        *weights,
        helper.make_node("Conv", ["image_d", "large_d"], ["boxes"], "boxes"),
        helper.make_node("Conv", ["image_d", "small_d"], ["scores"], "scores"),
        helper.make_node("Concat", ["boxes", "scores"], ["both"], "concat", axis=1),
        *pair("both", "step"),
        helper.make_node("Add", ["both_d", "offset"], ["output0"], "add"),
    ]
    stored += [numpy_helper.from_array(np.asarray(value), name) for name, value in more.items()]
    return original, helper.make_model(helper.make_graph(nodes, "g", [image], [output], stored), **versions)


def test_joined_heads_get_a_scale_each_before_a_concat_in_float(tmp_path: Path) -> None:
    original, quantized = joined(tmp_path)
    feeds = execution.batches(original, Samples(tmp_path))
    made, (mixed,) = outputs.separated(quantized, original, feeds)
    onnx.checker.check_model(made, full_check=True)
    assert str(mixed).startswith("output 'output0' mixes ranges ")
    assert str(mixed).endswith(": kept in float behind the concat")
    assert ratios(tmp_path, quantized)[1] < 5
    assert min(ratios(tmp_path, made)) > 25
    writers = {name: node for node in made.graph.node for name in node.output}
    concat = next(node for node in made.graph.node if node.op_type == "Concat")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    steps = [float(constants[writers[name].input[1]]) for name in concat.input]
    assert steps[0] > 50 * steps[1]
    assert writers["output0"].input[0] == concat.output[0]


@pytest.mark.parametrize("kind", ["joined heads", "one head"])
def test_boxes_do_not_ruin_the_scores_in_tflite(kind: str, detector: Path, tmp_path: Path) -> None:
    """LiteRT's quantizer gives all that a CONCATENATION joins one scale."""
    from edgeopt.backends import tflite

    folder = detector
    if kind == "joined heads":
        (folder := tmp_path / "joined").mkdir()
        joined(folder)
    graph = onnx.load(str(folder / "model.onnx")).graph
    signature = {"inputs": counting.signature(graph.input), "outputs": counting.signature(graph.output)}
    work = replace(job(tmp_path), parent=replace(fashion.source()[0], **signature), parent_folder=folder)
    work = replace(work, lineage={"import": folder}, samples={"calibration": folder})
    parent = fashion.artifact(work.out, quantize.run(work))
    (tmp_path / "tflite").mkdir()
    options = compile.choices()["tflite"]()
    work = replace(
        work, choice="tflite", options=options, parent=parent, parent_folder=work.out, out=tmp_path / "tflite"
    )
    produced = compile.run(work)
    session = tflite.load(work.out / produced.main, {}, 1)
    original, found = onnx.load(str(folder / "model.onnx")), []
    feeds = replace(execution.batches(original, Samples(folder)), size=1)
    for feed in feeds:
        found += restore(session.run(adapt(feed, produced.inputs)), produced.outputs)
    wanted = execution.outputs(original, feeds, 1)[0]
    (scores,) = execution.snr_db([wanted[:, 4:]], [np.concatenate(found)[:, 4:]])
    assert scores is not None
    assert scores > 25


def test_an_output_of_one_range_is_left_alone(original: Any, quantized: Any, feeds: Any) -> None:
    assert outputs.separated(quantized, original, feeds) == (quantized, ())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small model with samples and a recipe, and a cache in which it is quantized and ranked already."""
    folder = command.project(tmp_path_factory.mktemp("project") / "work")
    cache = folder.parent / "cache"
    first = command.edgeopt(folder, cache, "sensitivity", "recipe.yaml")
    assert first["reused"] is False
    return folder, cache


def test_the_verb_ranks_the_layers_of_a_recipe(project: tuple[Path, Path]) -> None:
    found = command.edgeopt(*project, "sensitivity", "recipe.yaml")
    assert found["schema"] == 1
    assert found["reused"] is True
    assert found["samples"] == 50
    assert {layer["operator"] for layer in found["layers"]} >= {"Conv", "Gemm"}
    found_ratios = [layer["snr_db"] for layer in found["layers"]]
    assert found_ratios == sorted(found_ratios)
    assert found["curve"][0] == {"float_layers": 0, "snr_db": found["snr_db"]}
    assert found["snr_db"] < found_ratios[0]


def test_the_verb_takes_what_convert_has_quantized(project: tuple[Path, Path]) -> None:
    folder, cache = project
    before = command.stored(cache)
    command.edgeopt(folder, cache, "sensitivity", "model.onnx", "--data", "calibration.npz", "--samples", "8")
    stages = [
        json.loads((cache / "entries" / key / "entry.json").read_text())["inputs"]["stage"]
        for key in command.stored(cache).keys() - before.keys()
    ]
    assert sorted(stages) == ["data", "sensitivity"], "one more count of samples, the same samples: model and int8 stay"


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_the_plot_stands_alone(project: tuple[Path, Path], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"plot{suffix}"
    found = command.edgeopt(*project, "sensitivity", "recipe.yaml", "-o", str(path))
    text = path.read_text()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    drawing = text[text.index("<svg") : text.index("</svg>") + len("</svg>")]
    words = " ".join(
        node.text or "" for node in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")
    )
    assert all(layer["title"] in words for layer in found["layers"])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_table_names_the_worst_layer_first(project: tuple[Path, Path]) -> None:
    folder, cache = project
    ended = subprocess.run(
        [sys.executable, "-m", "edgeopt", "sensitivity", "recipe.yaml"],
        cwd=folder,
        env={**os.environ, "EDGEOPT_CACHE": str(cache), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = command.edgeopt(folder, cache, "sensitivity", "recipe.yaml")
    lines = ended.stdout.splitlines()
    assert f"{found['snr_db']:.1f} dB with all {len(found['layers'])} layers in int8" in lines[0]
    assert lines[2].startswith(found["layers"][0]["title"])


def test_no_vendor_library_is_loaded_in_the_commands_process(project: tuple[Path, Path]) -> None:
    from test_layers import VENDORS

    code = (
        "import sys; from edgeopt.__main__ import main; "
        "code = main(['sensitivity', 'recipe.yaml', '--quiet']); "
        "print(code, *{name.partition('.')[0] for name in sys.modules})"
    )
    folder, cache = project
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "EDGEOPT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    exit_code, *packages = ended.stdout.split()
    assert exit_code == "0"
    assert not set(packages) & set(VENDORS)
