"""`edgeopt init`: what it guesses, what it writes, and that it runs as it is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import command
import fashion
import linear
import numpy as np
import pytest

from edgeopt import guess, recipe, starter, yaml
from edgeopt.__main__ import main
from edgeopt.artifact import TensorSpec
from edgeopt.errors import RecipeError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a cache of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "cache"))
    return folder


def init(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict:
    found = main(["init", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert found == code, err
    return json.loads(out)


def convert(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """A run of what `init` wrote, after `recipe check` has passed it."""
    assert main(["recipe", "check", arguments[0]]) == 0
    capsys.readouterr()
    code = main(["convert", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, f"{err}\n{out[-2000:]}"
    return json.loads(out)


def test_an_onnx_file_with_samples_is_quantized_and_judged(here, capsys):
    command.project(here)
    told = init(capsys, "model.onnx", "--data", "calibration.npz", "-o", "mine.yaml")
    assert told["task"]["name"] == "classifier" and told["data_file"] is None
    assert told["inputs"][0]["shape"][1:] == [3, 16, 16]
    assert main(["convert", "mine.yaml", "--dry-run", "--json"]) == 0
    planned = {candidate["id"] for candidate in json.loads(capsys.readouterr().out)["candidates"]}
    assert {"int8-onnxruntime", "onnxruntime", "openvino"} < planned
    found = convert(capsys, "mine.yaml", "--time", "10s")
    original = found["candidates"][0]
    assert original["id"] == "onnxruntime" and original["quality"]["metric"] == "agreement"
    assert original["status"] in ("chosen", "inside"), "the budgets leave room for the original"


def test_without_samples_times_alone_are_measured(here, capsys):
    linear.save_tflite(here / "net.tflite")
    told = init(capsys, "net.tflite")
    assert Path(told["data_file"]).name == "net_data.py"
    assert {limit.quantity for limit in recipe.read(Path("net.yaml")).budget.limits} >= {"peak memory", "size"}
    found = convert(capsys, "net.yaml")
    assert found["winner"] == "tflite" and found["candidates"][0]["quality"] is None
    assert any("how right" in warning for warning in found["warnings"])


def test_a_torch_factory_needs_a_shape_or_samples(here, capsys):
    told = init(capsys, f"{fashion.SAMPLE}/model.py:build", code=2)
    assert "--shape" in told["error"]["remedy"]
    assert not list(here.iterdir())


def test_a_torch_factory_runs_with_a_shape(here, capsys):
    weights = str(fashion.SAMPLE / "weights.safetensors")
    told = init(capsys, f"{fashion.SAMPLE}/model.py:build", "--weights", weights, "--shape", "image=1,1,28,28")
    assert told["outputs"][0]["shape"][1:] == [10] and told["notes"] == []
    found = convert(capsys, "model.yaml", "--time", "10s")
    assert found["winner"]


def test_labels_choose_among_the_usual_preprocessings(here, capsys):
    with np.load(fashion.SAMPLE / "test.npz", allow_pickle=False) as arrays:
        images, labels = arrays["image"][:300], arrays["labels"][:300]
    np.savez("samples.npz", image=images.transpose(0, 2, 3, 1), labels=labels)
    shutil.copy(fashion.SAMPLE / "model.onnx", here / "net.onnx")
    told = init(capsys, "net.onnx", "--data", "samples.npz")
    assert re.search(r"right on 9\d\.\d\d %", told["notes"][0])
    read = recipe.read(Path("net.yaml"))
    assert read.preprocess.transpose == (2, 0, 1)
    assert read.preprocess.mean[0] == pytest.approx(73, abs=10) and read.preprocess.std[0] == pytest.approx(90, abs=10)
    assert read.metric == "top1"
    assert read.data["calibration"].part == (0.0, 0.3) and read.data["validation"].part == (0.3, 1.0)


@pytest.mark.parametrize("name", ["net.yaml", "net_data.py"])
def test_nothing_is_written_over(here, capsys, name):
    linear.save_onnx(here / "net.onnx")
    (here / name).write_text("mine")
    told = init(capsys, "net.onnx", code=2)
    assert f"{name} is there already" in told["error"]["message"]
    assert (here / name).read_text() == "mine"
    assert {path.name for path in here.iterdir()} == {"net.onnx", name}


def test_samples_that_do_not_fit_leave_nothing_behind(here, capsys):
    linear.save_onnx(here / "net.onnx")
    np.savez("wrong.npz", x=np.zeros((60, 5), np.float32))
    init(capsys, "net.onnx", "--data", "wrong.npz", code=2)
    assert {path.name for path in here.iterdir()} == {"net.onnx", "wrong.npz"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("metric: top1", "metric needs real samples: the data is for timing alone"),
        ("budget: {accuracy drop: 1 %}", "accuracy drop needs real samples"),
        ("prefer: fidelity", "prefer needs real samples"),
    ],
)
def test_timing_data_cannot_say_how_right_a_candidate_is(more, told):
    text = f"model: net.onnx\ndata: {{timing: net_data.py:timing}}\n{more}\n"
    with pytest.raises(RecipeError, match=f"r.yaml:3: {told}"):
        recipe.resolve(yaml.parse(text, "r.yaml"), base=Path(), name="r")


def test_timing_data_stands_alone():
    text = "model: net.onnx\ndata: {timing: a.npz, validation: b.npz}\n"
    with pytest.raises(RecipeError, match="timing data is for recipes without other data"):
        recipe.resolve(yaml.parse(text, "r.yaml"), base=Path(), name="r")


@pytest.mark.parametrize("text", ["image", "image=", "image=1,x", "image=0,3", "=1,2"])
def test_a_wrong_shape_is_told(here, capsys, text):
    linear.save_onnx(here / "net.onnx")
    assert init(capsys, "net.onnx", "--shape", text, code=2)["error"]["where"] == "--shape"


def test_whole_numbers_are_drawn_from_what_every_vocabulary_has():
    ids = TensorSpec("ids", (1, 16), "int64")
    namespace: dict = {}
    code = compile(starter.data_file("net.yaml", [(ids, ())]), "net_data.py", "exec")
    exec(code, namespace)  # what it writes is Python
    drawn = namespace["timing"]()["ids"]
    assert drawn.shape == (8, 16) and drawn.dtype == np.int64 and set(drawn.ravel()) == {0, 1}


IMAGE = TensorSpec("x", ("batch", 3, "h", "w"), "float32")


@pytest.mark.parametrize(
    ("inputs", "outputs", "name"),
    [
        ([IMAGE], [("batch", 1000)], "classifier"),
        ([IMAGE], [("batch", 84, 8400)], "detector"),
        ([IMAGE], [("batch", 100, 4), ("batch", 100)], "detector"),
        ([IMAGE], [("batch", 21, "h", "w")], "dense"),
        ([TensorSpec("ids", ("batch", "length"), "int64")], [("batch", "length", 768)], "sequence"),
        ([TensorSpec("ids", ("batch", "length"), "int64")], [("batch", 2)], "classifier"),
        ([TensorSpec("x", ("batch", 8), "float32")], [("batch", 1)], "other"),
    ],
)
def test_the_task_is_guessed_from_the_shapes(inputs, outputs, name):
    specs = [TensorSpec(f"y{index}", shape, "float32") for index, shape in enumerate(outputs)]
    assert guess.task(inputs, specs).name == name


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 3, 224, 224), "NCHW"), ((1, 224, 224, 3), "NHWC"), ((1, 1, 28, 28), "NCHW"), ((1, 12, 64, 64), "NCHW")],
)
def test_the_layout_is_guessed_from_the_channels(shape, layout):
    assert guess.layout(TensorSpec("x", shape, "float32")) == layout


def test_free_sizes_are_filled_and_said_to_be_guessed():
    spec, guessed = guess.filled(IMAGE, {})
    assert spec.shape == (1, 3, 224, 224) and guessed == (2, 3)
    given, none = guess.filled(IMAGE, {"x": TensorSpec("x", (1, 3, 48, 192), "float32")})
    assert given.shape == (1, 3, 48, 192) and none == ()


@pytest.mark.parametrize(
    "text", ["model.onnx", "a b.onnx", "1.5", "true", "a: b", "x#y", "x #y", "'q", "[a]", "é.onnx"]
)
def test_a_path_is_written_so_that_it_reads_the_same(text):
    assert yaml.parse(f"model: {starter.scalar(text)}\n", "r").value == {"model": text}
