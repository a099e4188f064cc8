"""Quality on real models in onnxruntime: hits, fidelity, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import worker
from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError, StageError
from edgeopt.measuring import quality
from edgeopt.samples import Preprocess, write_samples
from edgeopt.statistics import paired_drop

COUNT, CLASSES = 230, 10
FASHION = Path(__file__).parent.parent / "sample_models" / "fashion_mnist"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """exact.onnx is right for all samples, biased.onnx always says class 3; the others are named for what they are."""
    folder = tmp_path_factory.mktemp("quality")
    draw = np.random.default_rng(0)
    x = draw.standard_normal((COUNT, 16)).astype(np.float32)
    weight = draw.standard_normal((16, CLASSES)).astype(np.float32)
    bias = np.zeros(CLASSES, np.float32)
    save_linear(folder / "exact.onnx", weight, bias, "batch")
    save_linear(folder / "one.onnx", weight, bias, 1)
    save_linear(folder / "four.onnx", weight, bias, 4)
    save_linear(
        folder / "noisy.onnx", weight + draw.standard_normal(weight.shape).astype(np.float32) / 10, bias, "batch"
    )
    save_linear(folder / "biased.onnx", weight, np.where(np.arange(CLASSES) == 3, 1e3, 0).astype(np.float32), "batch")
    save_linear(folder / "infinite.onnx", weight, np.full(CLASSES, np.inf, np.float32), "batch")
    (folder / "samples").mkdir()
    write_samples(folder / "samples", {"x": x}, np.argmax(x @ weight, axis=1), Preprocess())
    return folder


def save_linear(path, weight, bias, batch):
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def judge(folder, out, model="exact", metric="top1", batch="batch", **changes):
    out.mkdir(parents=True)
    args = {
        "backend": "onnxruntime",
        "main": str(folder / f"{model}.onnx"),
        "runtime": {},
        "threads": 1,
        "inputs": [TensorSpec("x", (batch, 16), "float32").to_json()],
        "outputs": [TensorSpec("y", (batch, CLASSES), "float32").to_json()],
        "samples": str(folder / "samples"),
        "metric": metric,
        "out": str(out),
        **changes,
    }
    return worker.call("edgeopt.measuring.quality:run", args, log=out / "log")


def relabel(folder, tmp_path, labels):
    samples = tmp_path / "relabelled"
    samples.mkdir()
    x = np.load(folder / "samples" / "x.npy")
    write_samples(samples, {"x": x}, labels, Preprocess())
    return str(samples)


@pytest.fixture(scope="module")
def original(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("original") / "out"
    return out, judge(folder, out)


def test_a_perfect_model_has_all_hits(original):
    out, found = original
    assert (found["value"], found["samples"], found["hits"], found["fidelity"]) == (1.0, COUNT, COUNT, None)
    outputs = np.load(out / "outputs-0.npy")
    assert (outputs.shape, outputs.dtype) == ((COUNT, CLASSES), np.float32)


@pytest.mark.parametrize(("model", "batch"), [("one", 1), ("four", 4)])
def test_a_fixed_batch_gives_the_same_outputs(folder, original, tmp_path, model, batch):
    found = judge(folder, tmp_path / "out", model, batch=batch, reference=str(original[0]))
    assert found["value"] == 1.0
    assert found["fidelity"]["agreement"] == 1.0
    np.testing.assert_allclose(
        np.load(tmp_path / "out" / "outputs-0.npy"), np.load(original[0] / "outputs-0.npy"), rtol=1e-5, atol=1e-5
    )


def test_hits_are_those_of_argmax(folder, tmp_path):
    found = judge(folder, tmp_path / "out", "biased")
    labels = np.load(folder / "samples" / "labels.npy")
    assert found["value"] == pytest.approx((labels == 3).mean())
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "hits.npy"), labels == 3)


def test_top5_hits_are_labels_among_the_five_highest_scores():
    scores = np.random.default_rng(0).standard_normal((700, CLASSES)).astype(np.float32)
    hits = quality.class_hits(scores, np.full(700, 4), 5)
    np.testing.assert_array_equal(hits, (scores > scores[:, 4:5]).sum(axis=1) < 5)
    assert 0.4 < hits.mean() < 0.6


def test_five_places_of_three_classes_are_all_hits():
    assert quality.class_hits(np.eye(3, dtype=np.float32), np.zeros(3, np.int64), 5).all()


def test_fidelity_is_signal_over_noise(folder, original, tmp_path):
    found = judge(folder, tmp_path / "out", "noisy", metric="sqnr", reference=str(original[0]))
    wanted, given = np.load(original[0] / "outputs-0.npy"), np.load(tmp_path / "out" / "outputs-0.npy")
    expected = 10 * np.log10((wanted.astype(float) ** 2).sum() / ((wanted.astype(float) - given) ** 2).sum())
    assert found["value"] == pytest.approx(expected)
    assert found["fidelity"]["worst_output"] == "y"
    assert 10 < expected < 30


def test_agreement_needs_no_labels(folder, original, tmp_path):
    found = judge(folder, tmp_path / "out", "noisy", metric="agreement", reference=str(original[0]))
    assert 0.8 < found["value"] < 1
    assert found["value"] == found["fidelity"]["agreement"]
    assert np.load(tmp_path / "out" / "hits.npy").mean() == found["value"]


def test_the_original_has_no_fidelity_of_its_own(folder, tmp_path):
    found = judge(folder, tmp_path / "out", metric="sqnr")
    assert (found["value"], found["hits"], found["fidelity"]) == (None, None, None)


def test_equal_outputs_are_exact_and_not_infinite(original):
    found = quality.fidelity(original[0], original[0])
    assert (found["exact"], found["sqnr_db"], found["agreement"]) == (True, None, 1.0)


def test_the_worst_output_is_named(tmp_path):
    for name, error in (("reference", 0.0), ("out", 0.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "outputs.json").write_text('{"outputs": ["boxes", "scores"]}')
        np.save(tmp_path / name / "outputs-0.npy", np.full((4, 2, 3), 100.0, np.float32))
        np.save(tmp_path / name / "outputs-1.npy", np.full((4, 5), 1.0 + error, np.float32))
    found = quality.fidelity(tmp_path / "reference", tmp_path / "out")
    assert found["worst_output"] == "scores"
    assert found["worst_sqnr_db"] == pytest.approx(10 * np.log10(4))
    assert found["sqnr_db"] > 40
    assert found["agreement"] is None


def test_the_drop_is_paired_over_the_same_samples(folder, original, tmp_path):
    judge(folder, tmp_path / "out", "noisy")
    counts = quality.paired_counts(original[0] / "hits.npy", tmp_path / "out" / "hits.npy")
    assert sum(counts) == COUNT
    assert counts[2] == counts[3] == 0
    found = paired_drop(*counts)
    assert found.value == pytest.approx(1 - np.load(tmp_path / "out" / "hits.npy").mean())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(COUNT, 10), "a label is 10, and the model has 10 classes, 0 to 9"),
        (np.full(COUNT, -1), "a label is -1"),
        (np.full(COUNT, 0.5), "integers; these are float64"),
        (np.zeros((COUNT, 3), np.int64), "3 a sample"),
        (None, "needs labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(folder, tmp_path, labels, message):
    samples = relabel(folder, tmp_path, labels)
    with pytest.raises(InputError, match=message):
        judge(folder, tmp_path / "out", samples=samples)


def test_outputs_that_are_no_class_scores_are_refused():
    with pytest.raises(InputError, match=r"the model's first output is \[4, 8, 8\]"):
        quality.class_hits(np.zeros((4, 8, 8), np.float32), np.zeros(4, np.int64), 1)


def test_outputs_that_are_not_finite_are_refused(folder, tmp_path):
    with pytest.raises(StageError, match="output y holds NaN or infinite values, first at sample 0"):
        judge(folder, tmp_path / "out", "infinite")


def test_an_unknown_metric_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no metric 'f1'"):
        judge(folder, tmp_path / "out", metric="f1")


def test_quantized_outputs_are_compared_as_real_numbers():
    from edgeopt.samples import restore

    spec = TensorSpec("y", ("batch", 3), "int8", scale=0.5, zero_point=-10)
    (value,) = restore({"y": np.array([[-10, -8, 0]], np.int8)}, [spec])
    np.testing.assert_array_equal(value, [[0.0, 1.0, 5.0]])
    assert value.dtype == np.float32


@pytest.mark.skipif(not (FASHION / "model.onnx").exists(), reason="sample_models/fashion_mnist is not here")
def test_the_fashion_model_is_as_good_as_it_says(tmp_path):
    with np.load(FASHION / "test.npz") as data:
        images, labels = data["image"][:500], data["labels"][:500]
    (tmp_path / "samples").mkdir()
    write_samples(tmp_path / "samples", {"image": images}, labels, Preprocess((73.0,), (90.0,)))
    model = onnx.load(FASHION / "model.onnx")
    found = judge(
        FASHION,
        tmp_path / "out",
        "model",
        inputs=[TensorSpec("image", ("batch", 1, 28, 28), "float32").to_json()],
        outputs=[TensorSpec(model.graph.output[0].name, ("batch", 10), "float32").to_json()],
        samples=str(tmp_path / "samples"),
    )
    assert found["value"] > 0.9
