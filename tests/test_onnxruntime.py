import shutil
from dataclasses import replace

import fashion
import onnx
import pytest
from onnx import TensorProto, helper

from edgeopt.artifact import list_files
from edgeopt.backends import onnxruntime as backend
from edgeopt.compilers import onnxruntime as compiler
from edgeopt.errors import UnsupportedOperator
from edgeopt.formats import ModelRef, canonical
from edgeopt.formats import onnx as onnx_format
from edgeopt.stages import compile as stage


def loaded(of_int8=False, precision="auto"):
    artifact, folder = fashion.compiled("onnxruntime", of_int8, precision)
    return backend.load(folder / artifact.main, artifact.runtime, threads=1)


def test_every_convolution_and_residual_sum_of_int8_is_fused():
    operators = fashion.placement("onnxruntime", of_int8=True).counts
    floating = [node.op_type for node in onnx.load(fashion.SAMPLE / "model.onnx").graph.node]
    assert operators["QLinearConv"] == floating.count("Conv")
    assert operators["QLinearAdd"] == floating.count("Add")
    assert not {"Conv", "FusedConv", "Add", "Gemm", "Relu"} & set(operators)


def test_int8_is_smaller():
    sizes = [fashion.compiled("onnxruntime", of_int8)[0].size_bytes for of_int8 in (False, True)]
    assert sizes[1] < 0.3 * sizes[0]


def test_float_is_compiled_to_the_same_bytes():
    assert fashion.compiled("onnxruntime")[0].files == fashion.source()[0].files


def test_fp16_halves_the_file_and_keeps_float32_at_its_ends():
    artifact, _ = fashion.compiled("onnxruntime", precision="fp16")
    assert artifact.precision == "fp16"
    assert artifact.size_bytes < 0.55 * fashion.source()[0].size_bytes
    assert {spec.dtype for spec in (*artifact.inputs, *artifact.outputs)} == {"float32"}
    assert fashion.top1(loaded(precision="fp16")) > fashion.top1(loaded()) - 0.005


@pytest.mark.parametrize(("of_int8", "precision"), [(False, "fp16"), (True, "auto")])
def test_compiling_again_gives_the_same_bytes(tmp_path, of_int8, precision):
    parent = fashion.int8() if of_int8 else fashion.source()
    again, _ = fashion.run_stage(stage, "onnxruntime", parent, tmp_path / "again", precision=precision)
    assert again.digest == fashion.compiled("onnxruntime", of_int8, precision)[0].digest


def test_fp16_objects_to_an_int8_parent():
    assert compiler.objection(compiler.CompileOptions(precision="fp16"), "int8")
    assert compiler.objection(compiler.CompileOptions(precision="fp16"), "fp32") is None
    assert compiler.objection(compiler.CompileOptions(), "int8") is None


def test_signature_names_the_free_batch():
    session = loaded()
    assert [str(spec) for spec in session.inputs] == ["image: float32[batch, 1, 28, 28]"]
    assert [str(spec) for spec in session.outputs] == ["scores: float32[batch, 10]"]


@pytest.mark.parametrize(("domain", "op_type"), [("", "NoSuchOperator"), ("com.example", "Swirl"), ("", "Bernoulli16")])
def test_an_unknown_operator_is_named(tmp_path, domain, op_type):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(op_type, ["x"], ["y"], domain=domain)], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "model.onnx")
    with pytest.raises(UnsupportedOperator, match=op_type):
        backend.load(tmp_path / "model.onnx", {}, 1)


def test_an_operator_without_a_kernel_is_named(tmp_path):
    value = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Erf", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedOperator, match="Erf"):
        backend.load(tmp_path / "model.onnx", {}, 1)


def test_what_an_import_keeps_beside_the_model_is_no_part_of_what_runs(tmp_path):
    parent, folder = fashion.source()
    shutil.copytree(folder, tmp_path / "import")
    (tmp_path / "import" / "program.pt2").write_bytes(b"of torch")
    parent = replace(parent, files=list_files(tmp_path / "import"))
    _, made = fashion.run_stage(stage, "onnxruntime", (parent, tmp_path / "import"), tmp_path / "made")
    assert [path.name for path in made.iterdir()] == ["model.onnx"]


def test_the_weights_of_a_large_model_stay_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(canonical, "LARGEST_FILE_BYTES", 256)
    model, large = onnx.load(fashion.SAMPLE / "model.onnx"), tmp_path / "m.onnx"
    onnx.save(model, large, save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "import").mkdir()
    onnx_format.to_onnx(ModelRef(str(large)), None, tmp_path / "import", lambda *_: None)
    _, made = fashion.run_stage(stage, "onnxruntime", (fashion.source()[0], tmp_path / "import"), tmp_path / "made")
    assert sorted(path.name for path in made.iterdir()) == ["model.onnx", "model.onnx.data"]
