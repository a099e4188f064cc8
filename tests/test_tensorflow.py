"""Keras files and SavedModels brought in: exact against TensorFlow, and refused where reading them could run code."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import onnxruntime
import pytest
import targets

from edgeopt import compilers, formats
from edgeopt.artifact import TensorSpec
from edgeopt.errors import from_json
from edgeopt.stages import Produced

NEEDED = ("tensorflow", "keras", "tf2onnx", "h5py")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} is not installed")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `tensorflow_models.py` has filled."""
    root = tmp_path_factory.mktemp("tensorflow")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "tensorflow_models.py"), str(root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.fixture(scope="module")
def results(made: Path) -> dict[str, Any]:
    return json.loads((made / "results.json").read_text())


def told(results: dict[str, Any], name: str) -> str:
    """The error of an import, as a person reads it."""
    assert "type" in results[name], f"{name} was imported"
    return "\n".join(from_json(results[name]).lines())


@pytest.mark.parametrize("name", ["keras", "h5", "savedmodel", "two", "recurrent", "free size", "product"])
def test_computes_what_tensorflow_does(made, results, name):
    assert "message" not in results[name], results[name]
    assert results[name]["details"]["check"] < 1e-4
    session = onnxruntime.InferenceSession(made / "made" / name / "model.onnx")
    stored = np.load(made / "made" / name / "outputs.npz")
    found = session.run(None, {value.name: stored[value.name] for value in session.get_inputs()})
    wanted = [stored[key] for key in stored.files if key.startswith("output ")]
    assert len(found) == len(wanted)
    for value, right in zip(found, wanted):
        np.testing.assert_allclose(value, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", compilers.COMPILERS)
@pytest.mark.parametrize("source", ["keras", "savedmodel"])
def test_every_target_computes_what_tensorflow_does(made, results, source, target, tmp_path):
    folder, told = made / "made" / source, results[source]
    signature = [tuple(map(TensorSpec.from_json, told[side])) for side in ("inputs", "outputs")]
    built = fashion.artifact(folder, Produced("onnx", "model.onnx", *signature, "fp32")), folder
    with np.load(folder / "outputs.npz") as stored:
        feeds, wanted = {"image": stored["image"][:1]}, [stored["output 0"][:1]]
    targets.check(target, built, tmp_path / "out", feeds, wanted)


def test_signature_is_the_source_s(results):
    shown = {name: [s["name"] for s in results[name]["inputs"] + results[name]["outputs"]] for name in ("keras", "two")}
    assert shown == {"keras": ["image", "scores"], "two": ["tokens", "vector", "a", "b"]}
    assert results["keras"]["inputs"][0]["shape"] == ["batch", 16, 16, 3]
    assert [s["dtype"] for s in results["two"]["inputs"]] == ["int64", "float32"]


def test_no_transpose_is_left_but_the_one_at_the_input(made):
    import onnx

    kinds = [node.op_type for node in onnx.load(made / "made" / "keras" / "model.onnx").graph.node]
    assert kinds.count("Transpose") == 1 and kinds.count("Conv") == 3


def test_h5_and_keras_give_the_same_bytes(made):
    digests = {
        hashlib.sha256((made / "made" / name / "model.onnx").read_bytes()).hexdigest() for name in ("keras", "h5")
    }
    assert len(digests) == 1


def test_without_samples_nothing_is_compared(results):
    assert results["without samples"]["details"]["check"] is None


def test_free_sizes_become_those_of_the_samples(results):
    assert results["free size"]["inputs"][0]["shape"] == ["batch", 16, 16, 3]


def test_samples_that_do_not_fit(results):
    assert "the samples' shape does not fit the input 'image'" in told(results, "other samples")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lambda.keras", "a layer Lambda"),
        ("lambda.h5", "a layer Lambda"),
        ("own.keras", "is code of its own"),
        ("own.h5", "Doubled"),
        ("torch.keras", "a layer TorchModuleWrapper"),
        ("module.keras", "subprocess.Popen is code of its own"),
        ("linked.h5", "is kept in another file"),
        ("cnn.weights.h5", "weights without a model"),
        ("text.keras", "not a Keras model"),
        ("reads a file", "it has ReadFile"),
        ("calls Python", "it has EagerPyFunc"),
        ("two signatures", "it has the signatures left, right"),
        ("no such operator", "ONNX lacks operators of this TensorFlow model: Cholesky (1)"),
        ("empty folder", "saved_model.pb"),
    ],
)
def test_what_is_refused(results, name, words):
    message = told(results, name)
    assert words in message
    assert 1 < len(message.splitlines()) <= 5 or name == "empty folder"


def test_the_only_signature_is_taken(results):
    assert results["one signature"]["inputs"][0]["name"] == "x"


def test_a_program_that_mixes_samples_keeps_a_batch_of_one(results):
    assert results["mixes samples"]["inputs"][0]["shape"] == [1, 6]


def test_a_folder_is_a_savedmodel(tmp_path):
    assert formats.format_of(str(tmp_path)) == "savedmodel"
