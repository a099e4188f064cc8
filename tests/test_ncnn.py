"""ncnn: what pnnx makes of ONNX models computes the same, and what it cannot take is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fashion
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeopt.artifact import TensorSpec
from edgeopt.backends import ncnn as backend
from edgeopt.backends import onnxruntime
from edgeopt.compilers import ncnn as compiler
from edgeopt.errors import CorruptArtifact, InputError, StageError, UnsupportedOperator
from edgeopt.stages import Produced, compile

pytest.importorskip("ncnn")
pytest.importorskip("pnnx", exc_type=ImportError)


def loaded(precision: str = "auto") -> backend.NcnnSession:
    artifact, folder = fashion.compiled("ncnn", precision=precision)
    return backend.load(folder / artifact.main, artifact.runtime, threads=1)


def scores(session: backend.NcnnSession, count: int = 100) -> Any:
    images, _ = fashion.images_and_labels(count)
    return np.concatenate([session.run({"image": image[None]})["scores"] for image in images])


def expected(count: int = 100) -> Any:
    images, _ = fashion.images_and_labels(count)
    return onnxruntime.load(fashion.source()[1] / "model.onnx", {}, 1).run({"image": images})["scores"]


@pytest.mark.parametrize(("precision", "tolerance"), [("auto", 1e-5), ("fp16", 1e-2)])
def test_outputs_are_those_of_the_source(precision: str, tolerance: float) -> None:
    assert np.abs(scores(loaded(precision)) - expected()).max() < tolerance * np.abs(expected()).max()


def test_a_bound_call_computes_what_it_is_filled_with() -> None:
    session, (images, _) = loaded(), fashion.images_and_labels(2)
    call = session.bind({"image": images[:1]})
    call()
    first = call.outputs()["scores"]
    call.fill({"image": images[1:2]})
    call()
    np.testing.assert_allclose(np.concatenate([first, call.outputs()["scores"]]), expected(2), atol=1e-4)


def test_fp16_halves_the_files() -> None:
    whole, half = (fashion.compiled("ncnn", precision=precision)[0] for precision in ("auto", "fp16"))
    assert half.size_bytes < 0.55 * whole.size_bytes
    assert (whole.precision, half.precision) == ("fp32", "fp16")


def test_compiling_again_gives_the_same_bytes(tmp_path: Path) -> None:
    again, _ = fashion.run_stage(compile, "ncnn", fashion.source(), tmp_path / "again")
    assert again.digest == fashion.compiled("ncnn")[0].digest


def test_the_layers_are_told() -> None:
    found = fashion.placement("ncnn")
    assert found.counts["Convolution"] == 15
    assert {one.precision for one in found.operators} == {"fp32"}


def test_a_quantized_model_is_objected_to() -> None:
    assert "int8" in str(compiler.objection(compiler.CompileOptions(), "int8"))
    assert compiler.objection(compiler.CompileOptions(), "fp32") is None


def built(folder: Path, operator: str, shape: list[int | str], dtype: int = TensorProto.FLOAT) -> fashion.Built:
    """A model of one operator, as an import leaves it."""
    folder.mkdir()
    values = [helper.make_tensor_value_info(name, dtype, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    numpy_name = helper.tensor_dtype_to_np_dtype(dtype).name
    inputs, outputs = ((TensorSpec(name, tuple(shape), numpy_name),) for name in "xy")
    return fashion.artifact(folder, Produced("onnx", "model.onnx", inputs, outputs, "fp32")), folder


@pytest.mark.parametrize(
    ("operator", "shape", "dtype", "told"),
    [
        ("Relu", ["batch", "wide"], TensorProto.FLOAT, "fixed dimensions"),
        ("Relu", [2, 3], TensorProto.FLOAT, "one sample"),
        ("Neg", [1, 3], TensorProto.INT64, "gives float32 alone"),
    ],
)
def test_what_ncnn_cannot_take_is_told(
    tmp_path: Path, operator: str, shape: list[int | str], dtype: int, told: str
) -> None:
    with pytest.raises(StageError, match=told):
        fashion.run_stage(compile, "ncnn", built(tmp_path / "m", operator, shape, dtype), tmp_path / "out")


def test_an_operator_that_ncnn_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match="Det"):
        fashion.run_stage(compile, "ncnn", built(tmp_path / "m", "Det", [1, 3, 3]), tmp_path / "out")


@pytest.mark.parametrize("text", ["", "no model", "7767517\n1 1\nInput in0 0 1"])
def test_a_file_that_is_no_model_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.param").write_text(text)
    with pytest.raises(CorruptArtifact, match="model"):
        backend.load(tmp_path / "model.param", {"precision": "fp32", "inputs": [], "outputs": []}, 1)


def test_weights_that_are_missing_are_told(tmp_path: Path) -> None:
    artifact, folder = fashion.compiled("ncnn")
    (tmp_path / "model.param").write_bytes((folder / artifact.main).read_bytes())
    with pytest.raises(CorruptArtifact, match=r"model\.bin"):
        backend.load(tmp_path / "model.param", artifact.runtime, 1)


def test_a_setting_that_there_is_not_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="streams"):
        backend.load(tmp_path / "model.param", {"streams": 2}, 1)
