"""Two models side by side: differences of outputs, where inside they come about, tolerances, and the verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fashion
import linear
import numpy as np
import onnx
import pytest
from test_schemas import mistakes
from test_sensitivity import BAD_WEIGHT, spoiled

from edgeopt import differences, layerwise, tracing
from edgeopt.__main__ import main
from edgeopt.errors import InputError
from edgeopt.samples import write_samples
from edgeopt.tracing import Operation


class Silent:
    def progress(self, fraction: Any, text: str) -> None:
        pass


# Outputs


def test_the_differences_of_an_output_are_those_of_the_definitions() -> None:
    wanted, found = np.float32([[3, 4], [0, -5]]), np.float32([[3, 4.5], [0, -4]])
    told = differences.of_output(wanted, found)
    assert (told["max_abs"], told["mean_abs"], told["relative"]) == (1.0, 0.375, 0.2)
    assert told["sqnr_db"] == pytest.approx(10 * np.log10(50 / 1.25))
    assert told["cosine"] == pytest.approx((9 + 18 + 20) / np.sqrt(50 * (9 + 4.5**2 + 16)))
    assert told["fidelity"]["value"] == 1.0
    assert not told["exact"]


def test_equal_outputs_are_exact() -> None:
    told = differences.of_output(np.ones((3, 1, 2)), np.ones((3, 1, 2)))
    assert told["exact"]
    assert (told["sqnr_db"], told["max_abs"], told["fidelity"]) == (None, 0.0, None)


def test_of_several_outputs_the_worst_is_held_against_a_tolerance() -> None:
    near, far = (differences.of_output(np.ones((2, 2, 1)), np.full((2, 2, 1), value)) for value in (1.001, 1.1))
    (tolerance,) = differences.tolerances(["sqnr: 30 dB"])
    assert tolerance.judged(differences.values([near], None))["passed"]
    judged = tolerance.judged(differences.values([near, far], None))
    assert (judged["passed"], judged["told"]) == (False, "sqnr 20.0 dB < 30.0 dB")


def test_no_difference_at_all_keeps_every_tolerance() -> None:
    values = differences.values([differences.of_output(np.eye(3), np.eye(3))], 0.0)
    texts = ["sqnr: 300 dB", "fidelity: 100 %", "max abs: 0", "relative: 0 %", "accuracy drop: 0 %"]
    assert all(one.judged(values)["passed"] for one in differences.tolerances(texts))


def test_a_tolerance_on_what_is_not_there_is_an_error() -> None:
    (tolerance,) = differences.tolerances(["fidelity = 98 %"])
    with pytest.raises(InputError, match="nothing to hold it against"):
        tolerance.judged(differences.values([differences.of_output(np.ones((2, 3, 4)), np.ones((2, 3, 4)))], None))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sqnr", "write it like"),
        ("sqrn: 30 dB", "did you mean 'sqnr'"),
        ("sqnr: 30", "no unit"),
        ("max abs: small", "not a number"),
    ],
)
def test_a_wrong_tolerance_is_told(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        differences.tolerances([text])


# Layers


def side(main: Path, format: str, inputs: Any) -> dict[str, Any]:
    samples = str(fashion.calibration())
    return {"format": format, "main": str(main), "runtime": {}, "inputs": inputs, "samples": samples}


def layers_of(a: fashion.Built, b: fashion.Built, main: Path | None = None) -> dict[str, Any]:
    """`main` stands for the file of b."""
    sides = [side(folder / one.main, one.format, [spec.to_json() for spec in one.inputs]) for one, folder in (a, b)]
    sides[1]["main"] = str(main) if main else sides[1]["main"]
    return layerwise.run({"a": sides[0], "b": sides[1], "count": 8, "threads": 1}, Silent())  # type: ignore[arg-type]


def test_the_layer_that_was_spoiled_adds_most_noise(tmp_path: Path) -> None:
    onnx.save(spoiled(onnx.load(str(fashion.int8()[1] / "model.onnx")), BAD_WEIGHT), str(tmp_path / "bad.onnx"))
    found = layers_of(fashion.source(), fashion.int8(), tmp_path / "bad.onnx")
    worst = next(one for one in found["layers"] if one["tensor"] == found["worst"])
    assert (worst["title"], worst["operator"]) == ("stages.2.conv1", "Conv")
    assert worst["share"] > 0.3
    assert sum(one["share"] for one in found["layers"]) == pytest.approx(1)
    titles = [one["title"] for one in found["layers"]]
    assert (titles[0], titles[-1]) == ("stem", "fc"), "in the order of the graph"


def test_the_layers_of_openvino_are_found_by_the_names_of_onnx() -> None:
    found = layers_of(fashion.int8(), fashion.compiled("openvino", of_int8=True))
    assert (found["matched_by"], len(found["layers"]), found["of"]) == ("name", 23, 23)
    assert all(one["sqnr_db"] is None or one["sqnr_db"] > 40 for one in found["layers"]), "the same integers"


def test_a_model_beside_itself_adds_no_noise() -> None:
    found = layers_of(fashion.source(), fashion.source())
    assert found["worst"] is None
    assert {one["sqnr_db"] for one in found["layers"]} == {None}


def test_tensors_without_names_in_common_are_matched_by_what_they_hold() -> None:
    draw = np.random.default_rng(0)
    ours = [{name: draw.standard_normal((1, 4, 3)) for name in "abc"} for _ in range(2)]
    theirs = [{name.upper(): run[name] + 0.1 * draw.standard_normal((1, 4, 3)) for name in "cab"} for run in ours]
    theirs = [{**run, "new": draw.standard_normal((1, 4, 3))} for run in theirs]
    assert layerwise.alike(ours, theirs) == {"a": "A", "b": "B", "c": "C"}


def test_what_only_passes_noise_on_adds_none() -> None:
    conv = Operation("c", "Conv", "conv", ("x", "w"), passes=False)
    relu = Operation("r", "Relu", "relu", ("c",), passes=True)
    last = Operation("y", "Gemm", "fc", ("r",), passes=False)
    layers = layerwise.chain([conv, relu, last], {"r": "R", "y": "Y"})
    assert [(one.operation.title, one.tensor, one.before) for one in layers] == [("conv", "r", ()), ("fc", "y", (0,))]
    told = layerwise._told(layers, {0, 1}, [1.0, 1.0], [0.01, 0.012])
    assert [one["added"] for one in told] == pytest.approx([0.01, 0.002])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tflite"])
def test_a_trace_gives_what_the_model_gives(backend: str, tmp_path: Path) -> None:
    made = linear.bundle(tmp_path / "bundle", backend)
    trace = tracing.find(made.artifact.format).trace(made.main, {}, 1)
    found = trace.run({trace.inputs[0].name: linear.PREPROCESS.apply(linear.RAW[:1])})
    np.testing.assert_allclose(found[trace.operations[-1].tensor], linear.SCORES[:1], rtol=1e-5)
    assert not trace.operations[-1].passes


@pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`")  # ai-edge-quantizer's own
def test_integers_in_tflite_are_told_as_real_numbers(tmp_path: Path) -> None:
    from edgeopt.formats import tflite
    from edgeopt.quantization import litert

    linear.save_tflite(tmp_path / "float.tflite")
    (tmp_path / "float.tflite").write_bytes(tflite.signed(tmp_path / "float.tflite", "serving_default"))
    feed = {"x": linear.PREPROCESS.apply(linear.RAW[:1])}
    ranges = {name: {"min": np.float32([-9]), "max": np.float32([9])} for name in ("x", "y")}
    (tmp_path / "int8.tflite").write_bytes(litert.to_int8(tmp_path / "float.tflite", ranges))
    found = tracing.find("tflite").trace(tmp_path / "int8.tflite", {}, 1).run(feed)
    product = next(value for name, value in found.items() if name.startswith("y"))
    np.testing.assert_allclose(product, linear.SCORES[:1], atol=0.2)


# The command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model as it is, as another one, and samples with labels."""
    linear.save_onnx(tmp_path / "model.onnx")
    other = onnx.load(str(tmp_path / "model.onnx"))
    weight = onnx.numpy_helper.to_array(other.graph.initializer[0])
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.round(weight * 8) / 8, "w"))
    onnx.save(other, str(tmp_path / "coarse.onnx"))
    linear.save_data(tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compared(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main(["compare", *arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert not mistakes("compare", found)
    return found


def test_two_models_on_samples_with_labels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", "data.npz", "--mean", "128", "--std", "64", "--tolerance", "sqnr: 60 dB"]
    found = compared(capsys, "model.onnx", "coarse.onnx", *given, code=7)
    assert found["samples"]["source"] == "data"
    assert 20 < found["outputs"][0]["sqnr_db"] < 40
    assert found["accuracy"]["a"] == 1.0
    assert found["accuracy"]["drop"] == 1.0 - found["accuracy"]["b"]
    assert [one["title"] for one in found["layers"]["layers"]] == ["y"]
    assert found["operators"] == {}
    assert found["latency"]["speedup"]["verdict"] in ("faster", "slower", "tie", "inconclusive")
    assert [one["passed"] for one in found["tolerances"]] == [False]


def test_a_bundle_lends_its_golden_samples_and_its_preprocessing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linear.bundle(here / "best", "openvino")
    found = compared(capsys, "model.onnx", "best", "--no-latency", "--tolerance", "relative: 0.1 %")
    assert (found["samples"]["source"], found["samples"]["count"]) == ("golden", 4)
    assert found["outputs"][0]["max_abs"] < 1e-4
    assert found["latency"] is None
    assert "the bundle's preprocessing" in found["notes"][0]


def test_random_numbers_have_to_be_asked_for_and_are_labelled(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "model.onnx", "coarse.onnx"]) == 2
    assert "--random" in capsys.readouterr().err
    assert main(["compare", "model.onnx", "coarse.onnx", "--random", "--no-latency"]) == 0
    assert "RANDOM NUMBERS" in capsys.readouterr().out


def test_models_of_different_signatures_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = onnx.load("model.onnx")
    graph.graph.output.append(onnx.helper.make_tensor_value_info("f", onnx.TensorProto.FLOAT, ["batch", 8]))
    onnx.save(graph, "two.onnx")
    assert main(["compare", "model.onnx", "two.onnx", "--random", "--no-latency"]) == 2
    assert "model.onnx has 1 outputs (y), two.onnx 2 (y, f)" in capsys.readouterr().err


def test_a_torch_factory_is_compared_with_what_was_made_of_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import torch\n\ndef build():\n    net = torch.nn.Linear(8, 4, bias=False)\n    net.weight.data[:] = "
    (here / "net.py").write_text(f"{code}torch.tensor({linear.WEIGHT.T.tolist()})\n    return net\n")
    assert main(["compare", "net.py:build", "model.onnx", "--data", "data.npz"]) == 2
    assert "--mean and --std" in capsys.readouterr().err
    given = ["--data", "data.npz", "--mean", "128", "--no-latency"]
    found = compared(capsys, "net.py:build", "model.onnx", *given)
    assert found["a"]["name"] == "net.py:build"
    assert found["outputs"][0]["relative"] < 1e-5
    assert "outputs are matched by their order" in " ".join(found["notes"])


def test_images_are_turned_for_a_bare_model_that_wants_channels_last(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnx import TensorProto, helper

    for name, shape, moves in (("first", ["n", 2, 5, 7], False), ("last", ["n", 5, 7, 2], True)):
        nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])] if moves else []
        nodes.append(helper.make_node("Relu", ["t" if moves else "x"], ["y"]))
        values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        values.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 5, 7]))
        graph = helper.make_graph(nodes, "g", values[:1], values[1:])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(made, str(here / f"{name}.onnx"))
    np.save(here / "images.npy", np.random.default_rng(0).standard_normal((3, 2, 5, 7)).astype(np.float32))
    found = compared(capsys, "first.onnx", "last.onnx", "--data", "images.npy", "--no-latency")
    assert found["outputs"][0]["exact"]


def test_feeds_of_two_fixed_batches_cannot_be_shared(tmp_path: Path) -> None:
    write_samples(tmp_path, {"x": linear.RAW}, None, linear.PREPROCESS)
    sides = [{"samples": str(tmp_path), "inputs": [{"name": "x", "shape": [n, 8], "dtype": "float32"}]} for n in (2, 3)]
    with pytest.raises(Exception, match="one takes 2 samples at once, the other 3"):
        layerwise._Feeds({"a": sides[0], "b": sides[1], "count": 8})
