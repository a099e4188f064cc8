"""What a user gets wrong, and what is said: one table, through the command line.

Whatever the mistake, standard error has at most five lines that begin with "Error:" and name the place and the remedy,
standard output is empty (with --json it is one document), and nothing is written beside the user's files.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.__main__ import main

Content = str | bytes | dict[str, Any] | Callable[[Path], object]

SAMPLES, FEATURES, CLASSES = 8, 4, 3
INPUTS = np.random.default_rng(0).standard_normal((SAMPLES, FEATURES)).astype(np.float32)
LABELS = np.arange(SAMPLES) % CLASSES
QUICK = "measure: {rounds: 3, block: 1 ms}\n"
ONNX_RECIPE = "model: model.onnx\ndata: {validation: good.npz}\nsteps:\n  - compile: onnxruntime\n" + QUICK
TORCH_RECIPE = "model: net.py:build\ndata: {validation: good.npz}\nsteps:\n  - compile: onnxruntime\n" + QUICK
FACTORY = "import torch\n\ndef build():\n    return torch.nn.Linear(4, 3)\n"


@dataclass(frozen=True)
class Case:
    """A mistake: files that are added to the good ones or put over them, a command, and what must be told of it.

    `words` are the place and the remedy.
    """

    name: str
    argv: tuple[str, ...]
    words: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    code: int = 2
    env: Mapping[str, str] = field(default_factory=dict)


def save_onnx(path: Path, *nodes: Any, inputs: list[int | str], outputs: list[int | str], weights: Any = None) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    versions = {"": 17} | {node.domain: 1 for node in nodes if node.domain}
    domains = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    graph = helper.make_graph(nodes, "tiny", [x], [y], stored)
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), path)


def linear(path: Path) -> None:
    """float32 x[n, 4] -> y[n, 3]."""
    weights = {"w": np.eye(FEATURES, CLASSES, dtype=np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    save_onnx(path, node, inputs=["n", FEATURES], outputs=["n", CLASSES], weights=weights)


def image(path: Path) -> None:
    """float32 x[n, 3, 4, 4] -> y[n, 3, 4, 4]."""
    save_onnx(path, helper.make_node("Relu", ["x"], ["y"]), inputs=["n", 3, 4, 4], outputs=["n", 3, 4, 4])


def quantized(path: Path) -> None:
    """float32 x[n, 4] -> y[n, 4], rounded to 8 bits."""
    constants = {"scale": np.float32(0.1), "zero": np.int8(0)}
    nodes = (
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    )
    weights = {**constants, "w": np.eye(FEATURES, dtype=np.float32)}
    save_onnx(path, *nodes, inputs=["n", FEATURES], outputs=["n", FEATURES], weights=weights)


def with_determinants(path: Path) -> None:
    """onnxruntime has the operator Det; OpenVINO and LiteRT lack it."""
    nodes = (helper.make_node("Det", ["x"], ["d"]), helper.make_node("Reshape", ["d", "shape"], ["y"]))
    save_onnx(path, *nodes, inputs=["n", 2, 2], outputs=["n", 1], weights={"shape": np.array([-1, 1])})


def with_unknown_operator(path: Path) -> None:
    node = helper.make_node("Swirl", ["x"], ["y"], domain="my.domain")
    save_onnx(path, node, inputs=["n", FEATURES], outputs=["n", FEATURES])


def recipe(text: str, **more: Content) -> dict[str, Content]:
    return {"recipe.yaml": text, **more}


def put(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)


GOOD: Mapping[str, Content] = {
    "model.onnx": linear,
    "net.py": FACTORY,
    "good.npz": {"x": INPUTS, "labels": LABELS},
    "recipe.yaml": ONNX_RECIPE,
}


def pickled_module(path: Path) -> None:
    import torch

    torch.save(torch.nn.Linear(4, 3), path)


def weights(name: str, *shape: int) -> Callable[[Path], None]:
    """A .safetensors file with a bias that fits, and one array of this name and shape."""

    def save(path: Path) -> None:
        from safetensors.numpy import save_file

        save_file({name: np.zeros(shape, np.float32), "bias": np.zeros(3, np.float32)}, path)

    return save


CONVERT = ("convert", "recipe.yaml")
TEXT = "This is a text.\n" * 40


def on_model(model: str, data: str = "good.npz") -> tuple[str, ...]:
    return ("convert", model, "--level", "none", "--data", data)


def samples(name: str, words: tuple[str, ...], *, of: str = ONNX_RECIPE, **arrays: Any) -> Case:
    """Samples in bad.npz that are wrong in themselves, or do not fit the model."""
    return Case(name, CONVERT, words, recipe(of.replace("good.npz", "bad.npz"), **{"bad.npz": arrays}))


def function(name: str, code: str, words: tuple[str, ...]) -> Case:
    """Data from a function."""
    return Case(name, CONVERT, words, recipe(ONNX_RECIPE.replace("good.npz", "data.py:load"), **{"data.py": code}))


def changed(name: str, old: str, new: str, words: tuple[str, ...], **more: Any) -> Case:
    """The recipe with one text changed."""
    assert old in ONNX_RECIPE
    return Case(name, CONVERT, words, recipe(ONNX_RECIPE.replace(old, new)), **more)


def factory(name: str, code: str, words: tuple[str, ...], **more: Content) -> Case:
    text = TORCH_RECIPE + ("".join(f"weights: {file}\n" for file in more))
    return Case(name, CONVERT, words, recipe(text, **{"net.py": code, **more}))


MANY_MISTAKES = """\
modle: model.onnx
steps:
  - quantise: int8
  - quantize: {int8: {bias_correctoin: full}}
  - compile: onnxruntim
budget:
  latency p95: 5
  acuracy drop: 1 %
"""

COMMAND = [
    Case("unknown verb", ("convrt",), ("'convrt'", "Did you mean 'convert'?", "edgeopt -h")),
    Case("unknown option", ("convert", "recipe.yaml", "--levle", "none"), ("--levle", "Did you mean --level?")),
    Case("missing argument", ("convert",), ("RECIPE|MODEL", "edgeopt convert -h")),
    Case("option without its value", ("convert", "model.onnx", "--level"), ("--level", "edgeopt convert -h")),
    Case("unknown level", ("convert", "model.onnx", "--level", "ful"), ("'ful'", "did you mean 'full'?")),
    Case("level with a recipe", (*CONVERT, "--level", "full"), ("--level", "recipe.yaml", "Leave --level out")),
    Case("data with a recipe", (*CONVERT, "--data", "good.npz"), ("--data", "recipe.yaml", "data:")),
    Case("no data for int8", ("convert", "model.onnx", "--level", "quantization"), ("calibration", "--data")),
    Case("no data to measure", ("convert", "model.onnx", "--level", "none"), ("samples", "--data")),
    Case("budget without a unit", (*CONVERT, "--budget", "latency p95=5"), ("--budget", "latency p95", "'5 ms'")),
    Case("budget without a bound", (*CONVERT, "--budget", "latency p95"), ("--budget", "latency p95=5 ms")),
    Case("unknown budget", (*CONVERT, "--budget", "latncy p95=5 ms"), ("--budget", "did you mean 'latency p95'?")),
    Case("unknown target", (*CONVERT, "--target", "rasberry-pi-5"), ("--target", "did you mean 'raspberry-pi-5'?")),
    Case("target out of reach", (*CONVERT, "--target", "raspberry-pi-5"), ("raspberry-pi-5", "--dry-run"), code=6),
    Case("inspect a missing file", ("inspect", "modle.onnx"), ("modle.onnx", "Did you mean model.onnx?")),
    Case("inspect text", ("inspect", "t.onnx"), ("t.onnx", "not an ONNX model", "exporter"), {"t.onnx": TEXT}),
    Case("inspect no model", ("inspect", "good.npz"), ("good.npz", ".onnx", "model.py:build")),
    Case("explain a missing recipe", ("cache", "explain", "a.yaml"), ("a.yaml", "No such file")),
    Case("size without a unit", ("cache", "gc", "--limit", "5"), ("--limit", "'5' has no unit", "'180 MiB'")),
    Case("unknown recipe name", ("recipes", "show", "nope"), ("'nope'", "edgeopt recipes list")),
    Case("unknown target name", ("targets", "show", "nope"), ("'nope'", "raspberry-pi-5")),
    Case("missing recipe", ("convert", "recipee.yaml"), ("recipee.yaml", "Did you mean recipe.yaml?")),
    Case("missing folder", ("convert", "recipes/a.yaml"), ("recipes/a.yaml", "folder recipes is not there")),
    Case("missing model", ("convert", "modle.onnx", "--level", "none"), ("modle.onnx", "Did you mean model.onnx?")),
    Case("no model at all", ("convert", "good.npz", "--level", "none"), ("good.npz", ".onnx", "model.py:build")),
    Case("missing data file", on_model("model.onnx", "god.npz"), ("--data", "god.npz", "Did you mean good.npz?")),
    Case("cache that is a file", CONVERT, ("recipe.yaml", "EDGEOPT_CACHE"), env={"EDGEOPT_CACHE": "recipe.yaml"}),
]

RECIPE = [
    changed("unknown key", "model:", "modle:", ("recipe.yaml:1", "'modle'", "did you mean 'model'?")),
    changed("unknown stage", "- compile:", "- compil:", ("recipe.yaml:4", "'compil'", "did you mean 'compile'?")),
    changed("unknown alternative", "onnxruntime", "onnxruntim", ("recipe.yaml:4", "did you mean 'onnxruntime'?")),
    changed(
        "unknown stage option",
        "onnxruntime",
        "{onnxruntime: {precison: fp16}}",
        ("recipe.yaml:4", "'precison'", "did you mean 'precision'?"),
    ),
    changed(
        "wrong value of an option",
        "onnxruntime",
        "{onnxruntime: {precision: fp8}}",
        ("recipe.yaml:4", "precision", "'auto'", "'fp16'", "not 'fp8'"),
    ),
    *(
        changed(
            f"int8 with {options}",
            "- compile:",
            f"- quantize: {{int8: {{{options}}}}}\n  - compile:",
            ("recipe.yaml:4", *words),
        )
        for options, words in {
            "ranges: max": ("ranges", "'mean-min-max'", "'percentile'", "not 'max'"),
            "ranges: percentile, percentile: 50": ("percentile", "greater than 50"),
            "ranges: percentile, percentile: 101": ("percentile", "less than or equal to 100"),
            "percentile: 99.9": ("`percentile` needs `ranges: percentile`",),
            "ranges: mse, percentile: 99.9": ("`percentile` needs `ranges: percentile`",),
            "smooth: true": ("alpha of SmoothQuant", "`smooth: 0.9`"),
            "smooth: 1.5": ("smooth", "less than or equal to 1"),
            "equalize: maybe": ("equalize", "boolean"),
        }.items()
    ),
    Case(
        "all mistakes at once",
        CONVERT,
        ("recipe.yaml:1", "recipe.yaml:3", "recipe.yaml:4", "did you mean 'quantize'?", "more mistakes", "--json"),
        recipe(MANY_MISTAKES),
    ),
    changed("model missing", "model.onnx", "modle.onnx", ("recipe.yaml:1", "modle.onnx", "Did you mean model.onnx?")),
    changed("data missing", "good.npz", "god.npz", ("recipe.yaml:2", "god.npz", "Did you mean good.npz?")),
    changed("time without a unit", "1 ms", "1", ("recipe.yaml:5", "block", "'5 ms'")),
    Case("not YAML", CONVERT, ("recipe.yaml:3", "not YAML", "brackets"), recipe("model: a.onnx\nsteps: [\n")),
    Case("not text", CONVERT, ("recipe.yaml", "UTF-8"), {"recipe.yaml": b"\xff\xfe\0\0"}),
    Case("a folder", CONVERT, ("recipe.yaml", "folder"), {"recipe.yaml": lambda path: path.mkdir()}),
    Case("empty", CONVERT, ("recipe.yaml", "model: model.onnx"), recipe("")),
    Case("a list", CONVERT, ("recipe.yaml", "model: model.onnx"), recipe("- model: model.onnx\n")),
    Case("an alias", CONVERT, ("recipe.yaml:2", "alias", "Write"), recipe("model: &m a.onnx\nweights: *m\n")),
    Case("a key twice", CONVERT, ("recipe.yaml:2", "twice", "recipe.yaml:1"), recipe("model: a\nmodel: b\n")),
    Case("no model", CONVERT, ("recipe.yaml", "model", "model.py:build"), recipe("steps: []\n")),
]

MODEL = [
    Case("text as .onnx", on_model("t.onnx"), ("t.onnx", "not an ONNX model", "exporter"), {"t.onnx": TEXT}),
    Case("text as .pt2", on_model("t.pt2"), ("t.pt2", "not a program", "torch.export.save"), {"t.pt2": TEXT}),
    Case(
        "text as .tflite", ("inspect", "t.tflite"), ("t.tflite", "not a TFLite file", "converter"), {"t.tflite": TEXT}
    ),
    Case("text as .xml", ("inspect", "t.xml"), ("t.xml", "not an OpenVINO model", ".bin"), {"t.xml": TEXT}),
    Case("text as .npz", on_model("model.onnx", "t.npz"), ("t.npz", "numpy.savez"), {"t.npz": TEXT}),
    Case("text as a .tflite source", on_model("t.tflite"), ("t.tflite", "not a TFLite file"), {"t.tflite": TEXT}),
    Case("text as .pt", on_model("t.pt"), ("t.pt", "not TorchScript", "model.py:build"), {"t.pt": TEXT}),
    Case("module as .pt", on_model("m.pt"), ("m.pt", "a pickle", "model.py:build"), {"m.pt": pickled_module}),
    Case(
        "another runtime than the file's own",
        CONVERT,
        ("t.tflite runs on tflite alone", "`- compile: tflite`"),
        recipe(ONNX_RECIPE.replace("model.onnx", "t.tflite"), **{"t.tflite": TEXT}),
    ),
    factory("factory is missing", "def bild():\n    pass\n", ("net.py", "'build'", "Did you mean bild?")),
    factory(
        "factory raises",
        "def build():\n    raise ValueError('no luck')\n",
        ("net.py:2", "ValueError: no luck", "Correct"),
    ),
    factory("factory is not Python", "def build(:\n", ("net.py:1", "not valid Python", "Correct")),
    factory("factory gives no module", "def build():\n    return {}\n", ("net.py:build", "dict", "torch.nn.Module")),
    factory("factory takes arguments", "def build(size):\n    pass\n", ("net.py:build", "'size'", "without arguments")),
    factory(
        "text as weights", FACTORY, ("w.safetensors", "not a safetensors file", "save_file"), **{"w.safetensors": TEXT}
    ),
    factory("text as a checkpoint", FACTORY, ("w.pt", "not a torch checkpoint", "state_dict"), **{"w.pt": TEXT}),
    factory(
        "pickle as weights", FACTORY, ("w.pt", "run anything", "state_dict"), **{"w.pt": pickle.dumps({"w": Path("x")})}
    ),
    factory("module as weights", FACTORY, ("w.pt", "run anything", "state_dict"), **{"w.pt": pickled_module}),
    factory(
        "weights of another shape",
        FACTORY,
        ("w.safetensors", "weight: [3, 5] in the file, [3, 4]", "saved from this model"),
        **{"w.safetensors": weights("weight", 3, 5)},
    ),
    factory(
        "weights of other names",
        FACTORY,
        ("w.safetensors", "missing: weight", "kernel", "saved from this model"),
        **{"w.safetensors": weights("kernel", 3, 4)},
    ),
    Case(
        "weights are missing",
        CONVERT,
        ("recipe.yaml:6", "w.safetensors", "relative to its own folder"),
        recipe(TORCH_RECIPE + "weights: w.safetensors\n"),
    ),
]

DATA = [
    samples("empty dataset", ("bad.npz", "no samples", "300"), x=INPUTS[:0], labels=LABELS[:0]),
    samples("no arrays", ("bad.npz", "no arrays", "numpy.savez")),
    samples("wrong shape", ("bad.npz", "float32[N, 5]", "float32[n, 4]", "as [N, 4]"), x=np.zeros((SAMPLES, 5), "f")),
    samples("wrong dtype", ("bad.npz", "uint8", "preprocess: {mean: ", "as float32"), x=INPUTS.astype(np.uint8)),
    Case(
        "channels last",
        CONVERT,
        ("good.npz", "float32[n, 3, 4, 4]", "preprocess: {transpose: [2, 0, 1]}"),
        {"model.onnx": image, "good.npz": {"x": np.zeros((SAMPLES, 4, 4, 3), "f")}},
    ),
    samples("not a number", ("bad.npz", "NaN", "sample 0", "Correct"), x=INPUTS * np.nan),
    samples("Python objects", ("bad.npz", "run anything", "numpy.savez"), x=np.array([{}] * SAMPLES)),
    samples("text as samples", ("bad.npz", "x is of dtype", "as float32"), x=np.array(["a"] * SAMPLES)),
    samples("label too large", ("bad.npz", "label is 9", "0 to 2", "count from 0"), x=INPUTS, labels=LABELS + 7),
    samples("labels too few", ("bad.npz", "x 8", "labels 7", "as many"), x=INPUTS, labels=LABELS[:-1]),
    samples("labels are floats", ("bad.npz", "labels are float64", "class indices"), x=INPUTS, labels=LABELS / 2),
    samples("labels below zero", ("bad.npz", "-1", "from 0"), x=INPUTS, labels=LABELS - 1),
    samples("two inputs for one", ("bad.npz", "2 arrays", "takes 1", "one array for each"), x=INPUTS, z=INPUTS),
    samples("no labels", ("bad.npz", "top1", "`labels`", "agreement"), of=ONNX_RECIPE + "metric: top1\n", x=INPUTS),
    samples("shape for torch", ("net.py:build", "[N, 5]", "input"), of=TORCH_RECIPE, x=np.zeros((SAMPLES, 5), "f")),
    samples("dtype for torch", ("net.py:build", "uint8", "preprocess: {"), of=TORCH_RECIPE, x=INPUTS.astype(np.uint8)),
    function(
        "data function raises", "def load():\n    raise OSError('no disk')\n", ("data.py:2", "no disk", "Correct")
    ),
    function("data function gives a list", "def load():\n    return [1]\n", ("data.py:load", "list", "<input name>")),
    changed(
        "preprocess does not fit",
        "measure:",
        "preprocess: {mean: [1, 2]}\nmeasure:",
        ("recipe.yaml:5", "mean has 2 numbers", "[4]", "one for each channel"),
    ),
]


def ranked(name: str, words: tuple[str, ...], *more: str, code: int = 2, **files: Content) -> Case:
    """The layers of a model, which must be m.onnx, ranked on the samples s.npz."""
    content = {f"{stem}.{'npz' if stem == 's' else 'onnx'}": value for stem, value in files.items()}
    argv = (
        "sensitivity",
        "m.onnx" if "m" in files else "model.onnx",
        "--data",
        "s.npz" if "s" in files else "good.npz",
    )
    return Case(name, (*argv, *more), words, content, code)


COMPARE = [
    Case("compare without samples", ("compare", "model.onnx", "model.onnx"), ("no samples", "--random")),
    Case("compare with a typo", ("compare", "modle.onnx", "model.onnx"), ("modle.onnx", "model.onnx?")),
    Case(
        "compare on a missing file",
        ("compare", "model.onnx", "model.onnx", "--data", "god.npz"),
        ("god.npz", "Did you mean good.npz?"),
    ),
    Case(
        "compare with a wrong tolerance",
        ("compare", "model.onnx", "model.onnx", "--tolerance", "sqnr: 30"),
        ("sqnr", "no unit", "20 dB"),
    ),
    Case(
        "compare on other samples",
        ("compare", "model.onnx", "model.onnx", "--data", "wide.npz", "--no-latency"),
        ("model.onnx", "does not take samples of shape"),
        {"wide.npz": {"x": np.zeros((3, 5), np.float32)}},
    ),
]

SENSITIVITY = [
    Case("rank without data", ("sensitivity", "model.onnx"), ("calibration", "--data samples.npz")),
    Case("rank a missing model", ("sensitivity", "modle.onnx", "--data", "good.npz"), ("Did you mean model.onnx?",)),
    ranked("rank on no samples at all", ("--samples", "edgeopt sensitivity -h"), "--samples", "0"),
    ranked("rank on an empty dataset", ("s.npz", "no samples", "300"), s={"x": INPUTS[:0]}),
    ranked("rank with labels of floats", ("s.npz", "class indices"), s={"x": INPUTS, "labels": LABELS / 2}),
    ranked("rank what is quantized", ("m.onnx", "quantized already", "Give the float model"), m=quantized),
    ranked("rank where nothing can be quantized", ("nothing to quantize",), code=4, m=image,
           s={"x": np.zeros((SAMPLES, 3, 4, 4), "f")}),
    ranked("plot of another format", ("--output", "layers.png", ".svg"), "-o", "layers.png"),
    ranked("plot into a missing folder", ("--output", "a/b.svg", "folder"), "-o", "a/b.svg"),
    changed("drop without a unit", "onnxruntime", "onnxruntime\n  - quantize: {int8: {max_drop: 1}}",
            ("recipe.yaml:5", "max_drop", "'1 %'")),
]  # fmt: skip

OUTPUT = [
    Case("output is not empty", (*CONVERT, "-o", "."), ("--output", "not empty", "new folder")),
    Case("output is a file", (*CONVERT, "-o", "good.npz"), ("--output", "good.npz is a file", "new folder")),
    Case("output below a file", (*CONVERT, "-o", "good.npz/run"), ("good.npz/run", "cannot be written", "--output")),
    Case(
        "output in no file system for files",
        (*CONVERT, "-o", "/proc/run"),
        ("/proc/run", "cannot be written", "--output"),
    ),
]

CASES = [*COMMAND, *RECIPE, *MODEL, *DATA, *COMPARE, *SENSITIVITY, *OUTPUT]


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str


Edgeopt = Callable[..., Answer]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a good model, samples and recipe."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # it would hide a __pycache__ left in the folder
    for name, content in GOOD.items():
        put(folder / name, content)
    return folder


@pytest.fixture
def edgeopt(capfd: pytest.CaptureFixture[str]) -> Edgeopt:
    """The command line, run in this process; its workers are processes of their own."""

    def run(*argv: str) -> Answer:
        capfd.readouterr()
        code = main(argv)
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content, and every folder."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def check_message(text: str, *words: str) -> None:
    """At most five lines, "Error:" first, every word there, no trace of Python."""
    lines = text.splitlines()
    assert lines[0].startswith("Error: "), text
    assert len(lines) <= 5, text
    assert all(line.strip() for line in lines), text
    assert "Traceback" not in text
    for word in words:
        assert word in text, f"{word!r} is not in:\n{text}"


def prepare(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in case.files.items():
        (folder / name).unlink(missing_ok=True)
        put(folder / name, content)
    for name, value in case.env.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_told_with_its_place_and_remedy(
    case: Case, work: Path, edgeopt: Edgeopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(case, work, monkeypatch)
    before = tree(work)
    told = edgeopt(*case.argv)
    check_message(told.err, *case.words)
    assert told.code == case.code
    assert told.out == ""
    assert str(work) not in told.err, "a path below the current folder is told as the user would write it"
    assert tree(work) == before
    assert not tree(work.parent / "cache" / "partial")


@pytest.mark.parametrize("case", [*COMMAND, *RECIPE, *DATA[:1]], ids=lambda case: case.name)
def test_with_json_a_mistake_is_one_document(
    case: Case, work: Path, edgeopt: Edgeopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(case, work, monkeypatch)
    words = len(case.argv) - (case.argv[-1] == "--level")  # which would take --json for its value
    told = edgeopt(*case.argv[:words], "--json", *case.argv[words:])
    document = json.loads(told.out)
    assert list(document) == ["error"]
    assert document["error"]["exit_code"] == told.code == case.code
    assert document["error"]["message"]
    check_message(told.err)


def test_all_mistakes_of_a_recipe_are_in_the_document(work: Path, edgeopt: Edgeopt) -> None:
    put(work / "recipe.yaml", MANY_MISTAKES)
    message = json.loads(edgeopt(*CONVERT, "--json").out)["error"]["message"]
    assert [line.split()[0] for line in message.splitlines()] == [f"recipe.yaml:{n}:" for n in (1, 3, 4, 5, 7, 8)]


@pytest.mark.parametrize("group", [("cache",), ("recipes",), ("targets",)])
def test_no_verb_gets_the_help(group: tuple[str, ...], work: Path, edgeopt: Edgeopt) -> None:
    told = edgeopt(*group)
    assert told.code == 2
    assert told.out == ""
    assert told.err.startswith(f"Usage: edgeopt {' '.join(group)}".rstrip())
    assert "Commands:" in told.err


def test_a_model_by_a_link_has_the_format_that_the_link_says(work: Path, edgeopt: Edgeopt) -> None:
    (work / "model.onnx").rename(work / "3f2a")
    (work / "model.onnx").symlink_to("3f2a")
    assert edgeopt("inspect", "model.onnx").code == 0


def test_a_budget_that_nothing_meets_is_an_answer(work: Path, edgeopt: Edgeopt) -> None:
    told = edgeopt(*CONVERT, "--budget", "size=1 B", "-o", "run")
    assert told.code == 3
    assert told.err == ""
    assert re.search(r"onnxruntime \(nearest\) outside: size \d+ B > 1 B \(\d+ % outside\)", told.out)
    document = json.loads((work / "run" / "choice.json").read_text())
    assert document["winner"] is None
    assert document["nearest"] == "onnxruntime"
    assert not (work / "run" / "best").exists()


def reasons(folder: Path) -> dict[str, tuple[str, str]]:
    """Status and reasons of each candidate of a run."""
    document = json.loads((folder / "choice.json").read_text())
    return {c["id"]: (c["status"], " ".join(c["reasons"])) for c in document["candidates"]}


def test_an_operator_that_backends_lack_costs_their_candidates_alone(work: Path, edgeopt: Edgeopt) -> None:
    with_determinants(work / "model.onnx")
    put(work / "good.npz", {"x": INPUTS.reshape(SAMPLES, 2, 2)})
    put(work / "recipe.yaml", ONNX_RECIPE.replace("onnxruntime", "[onnxruntime, openvino, tflite]") + "metric: sqnr\n")
    told = edgeopt(*CONVERT, "-o", "run")
    assert told.code == 0
    assert told.err == ""
    found = reasons(work / "run")
    assert found.pop("onnxruntime") == ("chosen", "")
    assert set(found) == {"openvino", "tflite"}
    assert all(status == "failed" and "Det" in why for status, why in found.values())


def test_an_operator_that_every_backend_lacks_leaves_no_candidate(work: Path, edgeopt: Edgeopt) -> None:
    with_unknown_operator(work / "model.onnx")
    put(work / "recipe.yaml", ONNX_RECIPE.replace("onnxruntime", "[onnxruntime, openvino, tflite]"))
    told = edgeopt(*CONVERT, "-o", "run")
    assert told.code == 4
    assert told.err == ""
    assert "every candidate failed" in told.out
    found = reasons(work / "run")
    assert set(found) == {"onnxruntime", "openvino", "tflite"}
    assert all(status == "failed" and "Swirl" in why for status, why in found.values())


@pytest.fixture(scope="module")
def without_openvino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has everything that this one has but openvino."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        if not installed.name.startswith("openvino"):
            (packages / installed.name).symlink_to(installed)
    return folder / "bin" / "python"


def test_a_backend_that_is_not_installed_is_told_with_what_installs_it(work: Path, without_openvino: Path) -> None:
    put(work / "recipe.yaml", ONNX_RECIPE.replace("onnxruntime", "openvino"))
    before = tree(work)
    command = [str(without_openvino), "-m", "edgeopt", *CONVERT]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    check_message(told.stderr, "openvino", "not installed", "pip install openvino")
    assert told.returncode == 5
    assert told.stdout == ""
    assert tree(work) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user other than root")
def test_a_folder_without_permission(work: Path, edgeopt: Edgeopt) -> None:
    (work / "locked").mkdir(mode=0o500)
    told = edgeopt(*CONVERT, "-o", "locked/run")
    check_message(told.err, "locked/run", "Permission denied", "--output")
    assert told.code == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_before_the_work_begins(work: Path, edgeopt: Edgeopt, small_disk: Path) -> None:
    told = edgeopt(*CONVERT, "-o", str(small_disk / "run"))
    check_message(told.err, f"{small_disk}/run", "no space left", "--output")
    assert told.code == 2
    assert not tree(small_disk)


def test_a_full_cache_is_told(work: Path, edgeopt: Edgeopt, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEOPT_CACHE", str(small_disk / "cache"))
    put(work / "good.npz", {"x": np.zeros((4096, FEATURES), np.float32)})
    before = tree(work)
    told = edgeopt(*CONVERT)
    check_message(told.err, str(small_disk / "cache"), "no space left", "EDGEOPT_CACHE")
    assert told.code == 2
    assert tree(work) == before
