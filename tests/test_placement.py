"""Where operators run: what each runtime tells of the Fashion-MNIST sample, and what is said of it in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import onnx
import pytest
import test_reports
from onnx import TensorProto, helper

from edgeopt import worker
from edgeopt.__main__ import main
from edgeopt.backends import placing
from edgeopt.backends.tflite import placed_in
from edgeopt.placement import Placed, Placement, grouped
from edgeopt.report import markdown
from edgeopt.report.cells import placement_lines, slower_lines
from edgeopt.results import values

CONVOLUTIONS = {"onnxruntime": "QLinearConv", "openvino": "Convolution", "tflite": "CONV_2D"}


def test_operators_that_differ_in_names_alone_are_one_group() -> None:
    one, other = Placed("Conv", "CPU", "int8", names=("a",)), Placed("Conv", "CPU", "fp32", names=("b",))
    assert grouped([one, other, Placed("Conv", "CPU", "int8", names=("c",))]) == (
        Placed("Conv", "CPU", "int8", count=2, names=("a", "c")),
        other,
    )


INT8, FLOAT = Placed("Conv", "CPU", "int8", count=20), Placed("Softmax", "CPU", "fp32")
CONVERSION, SHAPE = Placed("QuantizeLinear", "CPU", converts=True), Placed("Shape", "CPU", "int64")


@pytest.mark.parametrize(
    ("operators", "precision", "told"),
    [
        ([INT8, CONVERSION, SHAPE], "int8", ()),
        ([INT8, FLOAT, CONVERSION, SHAPE], "int8", ("20 of 21 operators in int8; float: Softmax 1",)),
        ([FLOAT], "bf16", ("0 of 1 operators in bf16; fp32: Softmax 1",)),
        ([FLOAT, INT8], "int8-weights", ()),
        ([FLOAT], "fp32", ()),
        ([], "int8", ()),
        (
            [Placed("CONV_2D", "Edge TPU", count=9), Placed("SOFTMAX", "CPU", reason="not supported", count=2)],
            "int8",
            ("9 of 11 operators on the Edge TPU; on the CPU: SOFTMAX 2", "not supported: SOFTMAX 2"),
        ),
        (
            [Placed(f"Kind{index}", "CPU", "fp32", count=9 - index) for index in range(6)],
            "int8",
            ("0 of 39 operators in int8; float: Kind0 9, Kind1 8, Kind2 7, Kind3 6 and 2 more kinds",),
        ),
    ],
)
def test_what_is_not_where_it_should_be_is_said(operators: list[Placed], precision: str, told: tuple[str, ...]) -> None:
    assert Placement(tuple(operators)).exceptions(precision) == told


def test_only_an_accelerator_leaves_operators_to_the_cpu() -> None:
    assert Placement((INT8, FLOAT)).left_to_cpu is None
    assert Placement((Placed("Conv", "GPU"),)).left_to_cpu == 0
    assert Placement((Placed("Conv", "GPU"), FLOAT)).left_to_cpu == 1


def test_json_keeps_all() -> None:
    whole = Placement((Placed("A", "GPU", "fp16", "k", True, "why", 2, ("a", "b")),))
    assert Placement.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    assert Placement.from_json(Placement(reason="no").to_json()) == Placement(reason="no")


@pytest.mark.parametrize("backend", CONVOLUTIONS)
def test_every_convolution_of_int8_computes_in_int8(backend: str) -> None:
    found = fashion.placement(backend, of_int8=True).operators
    kinds = [one for one in found if one.operator in (CONVOLUTIONS[backend], "DEPTHWISE_CONV_2D")]
    assert (sum(one.count for one in kinds), {one.precision for one in kinds}) == (15, {"int8"})


@pytest.mark.parametrize("backend", CONVOLUTIONS)
def test_a_float_model_computes_in_fp32(backend: str) -> None:
    found = fashion.placement(backend)
    assert {one.precision for one in found.operators if not one.converts} == {"fp32"}
    assert {one.where for one in found.operators} == {"CPU"}
    assert found.exceptions("fp32") == ()


def test_onnxruntime_has_no_mean_in_int8_and_that_is_said() -> None:
    found = fashion.placement("onnxruntime", of_int8=True)
    assert found.exceptions("int8") == ("24 of 25 operators in int8; float: ReduceMean 1",)


def test_openvino_names_its_kernels_and_leaves_constants_out() -> None:
    found = fashion.placement("openvino").operators
    assert all(one.kernel for one in found)
    assert not {"Const", "Input", "Output"} & {one.operator for one in found}
    assert sum(one.count for one in found if not one.converts) == 17


def test_tflite_tells_what_xnnpack_left() -> None:
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    made, folder = fashion.compiled("tflite")
    assert {one.kernel for one in fashion.placement("tflite").operators} == {"XNNPACK"}
    plain = litert.Interpreter(
        model_path=str(folder / made.main),
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    found = grouped(placed_in(plain))
    assert {one.kernel for one in found} == {None}
    assert Placement(found).exceptions("fp32")[0].startswith("not taken by XNNPACK: CONV_2D 14, ADD 6")


def test_unfused_q_dq_pairs_are_float_operators_between_conversions(tmp_path: Path) -> None:
    """As a quantizer may leave them: HardSigmoid has no integer kernel."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("HardSigmoid", ["d"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [0]),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], constants)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    found = placing.tell("onnxruntime", path, {}, 1, {"x": np.ones((1, 4), np.float32)})
    assert found.exceptions("int8") == ("0 of 1 operators in int8; float: HardSigmoid 1",)
    assert [one.operator for one in found.operators if one.converts] == ["DequantizeLinear", "QuantizeLinear"]


def judged(**changes: Any) -> dict[str, Any]:
    """A result in which int8-onnxruntime is as `changes` say."""
    plan = test_reports.planned()
    found = test_reports.outcomes(plan)
    artifact = replace(test_reports.ARTIFACT, precision="int8")
    found["int8-onnxruntime"] = replace(found["int8-onnxruntime"], artifact=artifact, **changes)
    return test_reports.result(plan, found)


def test_the_result_of_a_run_holds_it_and_says_it_in_words() -> None:
    document = judged(placement=Placement((INT8, FLOAT)))
    row = test_reports.by_id(document)["int8-onnxruntime"]
    assert row["operators"] == {"Conv": 20, "Softmax": 1}
    assert row["placement"]["operators"] == [INT8.to_json(), FLOAT.to_json()]
    assert placement_lines(document) == ["  int8-onnxruntime: 20 of 21 operators in int8; float: Softmax 1"]
    assert "20 of 21 operators in int8" in markdown.render(document)


def test_int8_that_is_slower_than_fp32_is_said_in_words() -> None:
    document = judged(measurement=test_reports.measurement("onnxruntime", 8.0))
    assert test_reports.by_id(document)["int8-onnxruntime"]["over_float"]["against"] == "onnxruntime"
    told = "  int8-onnxruntime: int8 is slower here than no quantization, 0.50x the speed of onnxruntime"
    assert slower_lines(document) == [told]
    assert slower_lines(judged()) == []


def test_a_budget_of_cpu_operators_counts_what_an_accelerator_left() -> None:
    found = test_reports.outcomes(test_reports.planned())["int8-onnxruntime"]
    assert values(found)["cpu operators"] is None
    left = Placement((Placed("CONV_2D", "Edge TPU", count=9), Placed("SOFTMAX", "CPU", count=2)))
    assert values(replace(found, placement=left))["cpu operators"] == 2


def test_torch_does_not_tell(tmp_path: Path) -> None:
    assert placing.tell("torch", tmp_path / "x", {}, 1, {}) == Placement(reason="torch does not tell")


def test_why_a_runtime_does_not_tell_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("no model")
    found = placing.tell("onnxruntime", tmp_path / "x.onnx", {}, 1, {})
    assert not found.operators
    assert "x.onnx is not an ONNX file" in str(found.reason)


def test_without_samples_zeros_are_given_and_a_size_that_is_free_is_asked_for(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "wide"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "m.onnx")
    found = {}
    for file in (fashion.SAMPLE / "model.onnx", tmp_path / "m.onnx"):
        args = {"backend": "onnxruntime", "main": str(file), "runtime": {}, "samples": None}
        found[file.parent.name] = worker.call("edgeopt.backends.placing:run", args, log=tmp_path / "log")
    assert Placement.from_json(found["fashion_mnist"]).counts["Conv"] == 15
    assert "--data gives it" in found[tmp_path.name]["reason"]


def test_inspect_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    made, folder = fashion.compiled("onnxruntime", of_int8=True)
    assert main(["inspect", str(folder / made.main), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["placement"]
    assert (told["backend"], told["left_to_cpu"], told["reason"]) == ("onnxruntime", None, None)
    assert told["exceptions"] == ["24 of 25 operators in int8; float: ReduceMean 1"]
    assert main(["inspect", str(folder / made.main)]) == 0
    assert "15 QLinearConv: int8, CPU" in capsys.readouterr().out
