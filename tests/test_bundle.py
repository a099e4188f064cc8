"""Bundles: written whole, the same bytes for the same inputs, checked on reading, proven by their golden samples."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import worker
from edgeopt.artifact import Artifact, MadeBy, TensorSpec, list_files
from edgeopt.bundle import prove, read_bundle, write_bundle
from edgeopt.errors import CorruptArtifact, InputError
from edgeopt.samples import Preprocess

PREPROCESS = Preprocess((128.0,), (64.0,))
RAW = np.random.default_rng(0).integers(0, 256, (3, 8)).astype(np.uint8)
WEIGHT = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An artifact y = x @ w, with its weights in a folder below."""
    folder = tmp_path_factory.mktemp("artifact")
    (folder / "deep").mkdir()
    save_linear(folder / "model.onnx", "batch")
    (folder / "deep" / "notes.txt").write_text("kept beside the model")
    return folder, artifact_of(folder, "batch")


def save_linear(path, batch):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def artifact_of(folder, batch):
    return Artifact(
        format="onnx",
        main="model.onnx",
        files=list_files(folder),
        inputs=(TensorSpec("x", (batch, 8), "float32"),),
        outputs=(TensorSpec("y", (batch, 4), "float32"),),
        precision="fp32",
        made_by=MadeBy("compile", 1, {"threads": 1}, {"onnxruntime": "1.31"}),
    )


def write(made, folder, **changes):
    expected = PREPROCESS.apply(RAW) @ WEIGHT
    values = {
        "golden_inputs": {"x": RAW},
        "golden_outputs": {"y": expected},
        "measurements": [{"latency_ns": {"p50": None}}],
        "provenance": {"recipe": "recipe.yaml"},
        **changes,
    }
    return write_bundle(folder, made[1], made[0], "onnxruntime", preprocess=PREPROCESS, **values)


@pytest.fixture
def bundle(made, tmp_path):
    return write(made, tmp_path / "best")


def change_manifest(bundle, change):
    path = bundle.folder / "edgeopt.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_what_was_written_is_read(made, bundle):
    assert bundle.artifact == made[1]
    assert bundle.measurements == ({"latency_ns": {"p50": None}},)
    assert bundle.provenance == {"recipe": "recipe.yaml"}
    inputs, outputs = bundle.golden()
    np.testing.assert_array_equal(inputs["x"], RAW)
    assert outputs["y"].shape == (3, 4)
    assert (bundle.folder / "deep" / "notes.txt").exists()


def test_a_bundle_moves(bundle, tmp_path):
    shutil.move(bundle.folder, tmp_path / "elsewhere")
    assert prove(read_bundle(tmp_path / "elsewhere")).samples == 3


def test_equal_inputs_give_equal_bytes(made, tmp_path):
    write(made, tmp_path / "a")
    write(made, tmp_path / "b")
    assert list_files(tmp_path / "a") == list_files(tmp_path / "b")


def test_nothing_is_left_beside_it(bundle, tmp_path):
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_proof_of_the_golden_samples(bundle):
    proof = prove(bundle)
    assert (proof.samples, proof.worst) == (3, "y")
    assert proof.difference <= 1e-5 < proof.tolerance


def test_proof_in_a_worker(bundle, tmp_path):
    found = worker.call("edgeopt.bundle:run", {"bundle": str(bundle.folder), "threads": 1}, log=tmp_path / "log")
    assert found["worst"] == "y"


@pytest.mark.parametrize("batch", [1, 2])
def test_proof_with_a_fixed_batch(tmp_path, batch):
    folder = tmp_path / "artifact"
    folder.mkdir()
    save_linear(folder / "model.onnx", batch)
    assert prove(write((folder, artifact_of(folder, batch)), tmp_path / "best")).samples == 3


def test_an_artifact_that_computes_something_else_is_refused(made, tmp_path):
    wrong = PREPROCESS.apply(RAW) @ WEIGHT
    wrong[2, 1] += 0.5
    with pytest.raises(CorruptArtifact, match="output y is off by"):
        prove(write(made, tmp_path / "best", golden_outputs={"y": wrong}))


def test_a_stated_tolerance_holds(made, tmp_path):
    wrong = (PREPROCESS.apply(RAW) @ WEIGHT) * 1.05
    assert prove(write(made, tmp_path / "best", golden_outputs={"y": wrong}, tolerance=0.1)).difference > 0.04


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "deep/notes.txt"])
def test_a_changed_byte_is_named(bundle, name):
    path = bundle.folder / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptArtifact, match="sha256") as caught:
        read_bundle(bundle.folder)
    assert caught.value.where.endswith(name)


def test_a_missing_file_is_named(bundle):
    (bundle.folder / "model.onnx").unlink()
    with pytest.raises(CorruptArtifact, match="missing"):
        read_bundle(bundle.folder)


def test_a_truncated_file_is_named(bundle):
    path = bundle.folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifact, match="bytes, not"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "deep/../../secret", "a\\b", "C:/secret", ""])
def test_a_path_that_leaves_the_folder_is_refused(bundle, tmp_path, name):
    (tmp_path / "secret").write_text("x")
    change_manifest(bundle, lambda manifest: manifest["artifact"]["files"][0].update(path=name))
    with pytest.raises(CorruptArtifact, match="leads out"):
        read_bundle(bundle.folder)


def test_a_main_file_that_is_not_listed_is_refused(bundle):
    change_manifest(bundle, lambda manifest: manifest["artifact"].update(main="../model.onnx"))
    with pytest.raises(CorruptArtifact, match="not among the files"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize("name", ["model.onnx", "deep"])
def test_links_are_refused(bundle, tmp_path, name):
    (bundle.folder / name).rename(tmp_path / "moved")
    (bundle.folder / name).symlink_to(tmp_path / "moved")
    with pytest.raises(CorruptArtifact, match="a link"):
        read_bundle(bundle.folder)


def test_other_runtime_settings_than_the_digest_says_are_refused(bundle):
    change_manifest(bundle, lambda manifest: manifest["artifact"].update(runtime={"precision": "bf16"}))
    with pytest.raises(CorruptArtifact, match="digest"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 1, "artifact": []}'])
def test_a_damaged_manifest_is_refused(bundle, text):
    (bundle.folder / "edgeopt.json").write_text(text)
    with pytest.raises(CorruptArtifact, match="not a manifest"):
        read_bundle(bundle.folder)


def test_a_later_schema_is_refused(bundle):
    change_manifest(bundle, lambda manifest: manifest.update(schema=2))
    with pytest.raises(InputError, match="schema 2"):
        read_bundle(bundle.folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(InputError, match="not a bundle"):
        read_bundle(tmp_path)


def test_pickles_are_never_loaded(made, tmp_path):
    with pytest.raises(ValueError, match="pickle"):
        write(made, tmp_path / "best", golden_inputs={"x": np.array([{}, {}, {}])})
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_not_overwritten(made, bundle):
    with pytest.raises(InputError, match="not empty"):
        write(made, bundle.folder)


def test_an_empty_folder_is_used(made, tmp_path):
    (tmp_path / "best").mkdir()
    assert write(made, tmp_path / "best").main.is_file()


def test_golden_samples_are_needed(made, tmp_path):
    with pytest.raises(InputError, match="golden samples"):
        write(made, tmp_path / "best", golden_outputs={"y": np.zeros((2, 4), np.float32)})
