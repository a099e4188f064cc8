"""The Edge TPU without one: real models and what its real compiler made of them, its log, and what is missing here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from command import candidate, convert, project

from edgeopt import backends, doctor
from edgeopt.edgetpu import partition, program
from edgeopt.edgetpu.operators import Graph, Operator, Tensor, describe
from edgeopt.errors import MissingDependency, NoAccelerator, StageError, UnsupportedOperator
from edgeopt.formats import tflite as reader

HERE = Path(__file__).parent / "edgetpu"
PLAIN, COMPILED = HERE / "split_concat.tflite", HERE / "split_concat_edgetpu.tflite"
PAIRS = [json.loads(line.rstrip(",")) for line in (HERE / "pairs.json").read_text().splitlines()[1:-1]]
OTHERWISE = {
    "EdgeTPU-MOT/server_script/yolov10n_saved_model/yolov10n_full_integer_quant.tflite": "19 mapped, 254 predicted",
    "SR-GAN-Edge-TPU/super-resolution/srgan_quant_2.tflite": "compiled with an option for several partitions",
}

# As edgetpu_compiler 16 printed it for two models of others: google-coral/edgetpu, issues 512 and 490.
LOG = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 3438 ms.

Input model: yolov5s-int8.tflite
Input size: 7.31MiB
Output model: yolov5s-int8_edgetpu.tflite
Output size: 7.52MiB
On-chip memory used for caching model parameters: 6.89MiB
On-chip memory remaining for caching model parameters: 1.00KiB
Off-chip memory used for streaming uncached model parameters: 175.00KiB
Number of Edge TPU subgraphs: 1
Total number of operations: 229
Operation log: yolov5s-int8_edgetpu.log

Model successfully compiled but not all operations are supported by the Edge TPU. A percentage of the model will instead
Number of operations that will run on Edge TPU: 222
Number of operations that will run on CPU: 7

Operator                       Count      Status

DEQUANTIZE                     2          Operation is working on an unsupported data type
DEPTHWISE_CONV_2D              80         Mapped to Edge TPU
LOGISTIC                       1          Operation is otherwise supported, but not mapped due to some unspecified limitation
CONCATENATION                  1          Mapped to Edge TPU
CONCATENATION                  1          More than one subgraph is not supported
Compilation child process completed within timeout period.
Compilation succeeded!
"""  # noqa: E501


def is_as_compiled(pair: dict) -> bool:
    found = partition.predict(Graph.from_json(pair["graph"]))
    assert len(found.names) == pair["operators"]
    kept = Counter(name for name, reason in zip(found.names, found.reasons, strict=True) if reason)
    return dict(sorted(kept.items())) == pair["on_cpu"]


@pytest.mark.parametrize("pair", [p for p in PAIRS if p["model"] not in OTHERWISE], ids=lambda pair: pair["model"])
def test_the_partition_is_predicted_as_the_real_compiler_made_it(pair: dict) -> None:
    assert is_as_compiled(pair)


def test_the_pairs_that_are_predicted_wrongly_are_these() -> None:
    assert {pair["model"] for pair in PAIRS if not is_as_compiled(pair)} == OTHERWISE.keys()


def test_the_pairs_hold_models_that_are_mapped_in_part() -> None:
    assert len(PAIRS) == 59
    assert sum(bool(pair["on_cpu"]) for pair in PAIRS) >= 15


def one(name: str, *tensors: Tensor, **options: int) -> str | None:
    """What is said against a single operator that reads all tensors but the last, and writes that."""
    last = len(tensors) - 1
    operator = Operator(name, tuple(range(last)), (last,), options)
    return partition.objection(operator, dict(enumerate(tensors)))


MAP = Tensor("int8", (1, 8, 8, 4))
VECTOR = Tensor("int8", (1, 10))
KERNEL = Tensor("int8", (4, 3, 3, 4), constant=True)
WEIGHTS = Tensor("int8", (), constant=True)


@pytest.mark.parametrize(
    ("reason", "found"),
    [
        ("not among the supported", one("HARD_SWISH", MAP, MAP)),
        ("float32", one("ADD", Tensor("float32", (1, 4)), Tensor("float32", (1, 4)))),
        ("3 dimensions", one("ADD", Tensor("int8", (2, 8, 8, 4)), Tensor("int8", (2, 8, 8, 4)))),
        ("before it runs", one("ADD", Tensor("int8", (1, -1)), Tensor("int8", (1, -1)))),
        ("activation", one("MAX_POOL_2D", MAP, MAP, fusedActivationFunction=1)),
        ("dilation", one("CONV_2D", MAP, KERNEL, MAP, dilationHFactor=2)),
        ("default", one("FULLY_CONNECTED", VECTOR, WEIGHTS, VECTOR, weightsFormat=1)),
        ("one dimension", one("FULLY_CONNECTED", MAP, WEIGHTS, Tensor("int8", (8, 10)))),
        ("16384", one("SOFTMAX", Tensor("int8", (1, 16385)), Tensor("int8", (1, 16385)))),
        ("batch", one("MEAN", MAP, Tensor("int32", (1,), True, (0,)), Tensor("int8", (8, 8, 4)))),
        ("batch", one("PAD", MAP, Tensor("int32", (4, 2), True, (1, 0, 0, 0, 0, 0, 0, 0)), MAP)),
        ("constant", one("CONCATENATION", MAP, WEIGHTS, MAP)),
        ("9 times", one("RESIZE_BILINEAR", MAP, WEIGHTS, Tensor("int8", (1, 72, 8, 4)))),
    ],
)
def test_a_condition_that_is_not_kept_is_told(reason: str, found: str | None) -> None:
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(
    "found",
    [
        one("CONV_2D", MAP, KERNEL, MAP, fusedActivationFunction=1, dilationHFactor=2, dilationWFactor=2),
        one("CONV_2D", MAP, Tensor("int8", (4, 1, 3, 4), constant=True), MAP, dilationWFactor=2),
        one("MEAN", MAP, Tensor("int32", (2,), True, (1, 2)), VECTOR),
        one("PAD", MAP, Tensor("int32", (4, 2), True, (0, 0, 1, 1, 1, 1, 0, 0)), MAP),
        one("SOFTMAX", VECTOR, VECTOR),
        one("RESIZE_BILINEAR", MAP, WEIGHTS, Tensor("int8", (1, 16, 16, 4))),
    ],
)
def test_nothing_is_said_against_an_operator_that_keeps_its_conditions(found: str | None) -> None:
    assert found is None


def chain(*names: str) -> Graph:
    operators = tuple(Operator(name, (i,), (i + 1,)) for i, name in enumerate(names))
    return Graph(operators, dict.fromkeys(range(len(names) + 1), VECTOR))


def test_after_an_operator_that_is_not_taken_everything_stays_on_the_cpu() -> None:
    found = partition.predict(chain("RELU", "ARG_MAX", "RELU", "TANH"))
    assert found.reasons[0] is None
    assert found.reasons[2:] == (partition.AFTER, partition.AFTER)
    assert (found.mapped, found.on_cpu) == (1, 3)


def test_what_comes_before_anything_is_mapped_does_not_end_the_partition() -> None:
    assert partition.predict(chain("CAST", "RELU", "TANH")).mapped == 2


def test_a_prediction_says_that_it_is_one() -> None:
    told = partition.predict(chain("RELU", "ARG_MAX")).to_json()
    assert told["basis"] == "predicted"
    assert told["kept_on_cpu"] == [{"operator": "ARG_MAX", "count": 1, "reason": "not among the supported operators"}]


def test_every_rule_has_a_source_and_known_conditions() -> None:
    rules = partition._rules()
    for name, rule in rules["operators"].items():
        assert rule["basis"] in ("documentation", "pairs", "memory"), name
        assert set(rule) - {"basis"} <= set(partition.CONDITIONS), name


def test_the_log_tells_memory_subgraphs_and_what_became_of_each_operator() -> None:
    found = program.parse(LOG)
    assert (found.version, found.milliseconds) == ("16.0.384591198", 3438)
    assert (found.on_chip_bytes, found.on_chip_free_bytes, found.off_chip_bytes) == (7224689, 1024, 179200)
    assert (found.subgraphs, found.operators) == (1, 229)
    told = found.to_json()
    assert told["mapped"] == [
        {"operator": "DEPTHWISE_CONV_2D", "count": 80},
        {"operator": "CONCATENATION", "count": 1},
    ]
    assert [(kept["operator"], kept["count"]) for kept in told["kept_on_cpu"]] == [
        ("DEQUANTIZE", 2),
        ("LOGISTIC", 1),
        ("CONCATENATION", 1),
    ]
    assert told["kept_on_cpu"][2]["reason"] == "More than one subgraph is not supported"


def test_what_a_log_does_not_tell_is_unknown() -> None:
    found = program.parse("Edge TPU Compiler version 2.0.258810407\n")
    assert found.on_chip_bytes is None
    assert found.operators is None
    assert found.placed == ()


def test_a_failure_is_told_in_the_compiler_s_words() -> None:
    text = "Edge TPU Compiler version 16.0.384591198\n\nInternal compiler error. Aborting! \n"
    assert program.failure(text) == "Internal compiler error. Aborting!"
    assert program.failure("") == "it said nothing"


def script(folder: Path, body: str) -> None:
    path = folder / program.PROGRAM
    path.write_text(f"#!{sys.executable}\nimport os, pathlib, shutil, sys, time\n{body}\n")
    path.chmod(0o755)


def test_the_program_gets_the_model_and_its_output_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(
        tmp_path, f"shutil.copy({str(COMPILED)!r}, sys.argv[-2] + '/x_edgetpu.tflite'); print({LOG!r}, sys.argv[1:])"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    shutil.copy(PLAIN, tmp_path / "x.tflite")
    made, log = program.compile(tmp_path / "x.tflite", tmp_path, least_runtime=13, seconds=60)
    assert made.read_bytes() == COMPILED.read_bytes()
    assert log.operators == 229


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("print('Internal compiler error. Aborting!'); sys.exit(1)", "exit code 1: Internal compiler error"),
        ("print('done')", "exit code 0: done"),
        ("time.sleep(60)", "limit of 0.5 s"),
    ],
)
def test_a_program_that_makes_no_model_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, told: str
) -> None:
    script(tmp_path, body)
    monkeypatch.setenv("PATH", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(StageError, match=told):
        program.compile(PLAIN, tmp_path, least_runtime=None, seconds=0.5 if "sleep" in body else 60)
    assert time.monotonic() - started < 30


def test_without_the_program_it_is_unavailable_and_told_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match="unavailable: edgetpu_compiler") as caught:
        program.find()
    assert "coral.ai" in str(caught.value.remedy)


def inspect(path: Path) -> dict:
    ended = subprocess.run(
        [sys.executable, "-m", "edgeopt", "inspect", str(path), "--json"], capture_output=True, text=True, check=True
    )
    found: dict = json.loads(ended.stdout)
    return found


# Not the compiler: it puts all operators of a model in one that is named as the compiler's is, and keeps the model.
STAND_IN = """
import flatbuffers
from ai_edge_litert import schema_py_generated as schema
model, out = pathlib.Path(sys.argv[-1]), pathlib.Path(sys.argv[-2])
shutil.copy(model, pathlib.Path(__file__).with_name("given.tflite"))
made = schema.ModelT.InitFromPackedBuf(model.read_bytes())
code, operator, graph = schema.OperatorCodeT(), schema.OperatorT(), made.subgraphs[0]
code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM, schema.BuiltinOperator.CUSTOM
code.customCode, made.operatorCodes = b"edgetpu-custom-op", [code]
operator.opcodeIndex, operator.inputs, operator.outputs = 0, graph.inputs, graph.outputs
operator.customOptions = [0] * 64
code.version, graph.operators = 1, [operator]
builder = flatbuffers.Builder(1024)
builder.Finish(made.Pack(builder), file_identifier=b"TFL3")
(out / f"{model.stem}_edgetpu.tflite").write_bytes(bytes(builder.Output()))
print("Edge TPU Compiler version 0\\n\\nNumber of Edge TPU subgraphs: 1\\nTotal number of operations: 7")
"""
RECIPE = """
model: model.onnx
target: coral-usb
data: {calibration: calibration.npz, validation: validation.npz}
budget: {cpu operators: 0}
steps:
  - quantize: int8
  - compile: {edgetpu: {io: uint8}}
measure: {rounds: 3, block: 5 ms}
"""
BOTH = RECIPE.replace("budget: {cpu operators: 0}\n", "").replace(
    "{edgetpu: {io: uint8}}", "[{tflite: {io: uint8}}, edgetpu]"
)


@pytest.fixture(scope="module")
def litert() -> None:
    pytest.importorskip("ai_edge_litert")


@pytest.mark.usefixtures("litert")
class TestFiles:
    """What needs LiteRT to read or to run a file."""

    def test_a_file_is_described_as_its_pair_says(self) -> None:
        pair = next(pair for pair in PAIRS if pair["model"].endswith("split_concat.tflite"))
        found = describe(PLAIN)
        assert [operator.name for operator in found.operators] == ["CONCATENATION", "SPLIT", "CONCATENATION"]
        assert partition.predict(found) == partition.predict(Graph.from_json(pair["graph"]))

    def test_inspect_tells_what_is_compiled(self) -> None:
        found = inspect(COMPILED)
        assert found["edge_tpu"] == {
            "basis": "compiled",
            "partitions": 1,
            "on_cpu": 0,
            "cpu_operators": {},
            "program_bytes": found["edge_tpu"]["program_bytes"],
        }
        assert 50_000 < found["edge_tpu"]["program_bytes"] < COMPILED.stat().st_size
        assert (found["parameters"], found["macs"]) == (None, None)

    def test_inspect_predicts_for_what_is_not_compiled(self) -> None:
        assert inspect(PLAIN)["edge_tpu"] == {
            "basis": "predicted",
            "operators": 3,
            "mapped": 3,
            "on_cpu": 0,
            "kept_on_cpu": [],
        }

    def test_without_the_delegate_a_compiled_model_names_its_operator_and_the_backend(self) -> None:
        with pytest.raises(UnsupportedOperator, match="edgetpu-custom-op") as caught:
            backends.find("tflite").load(COMPILED, {}, 1)
        assert "edgetpu" in str(caught.value.remedy)

    def test_a_model_that_is_not_compiled_is_refused(self) -> None:
        with pytest.raises(StageError, match="not compiled for the Edge TPU"):
            backends.find("edgetpu").load(PLAIN, {}, 1)

    def test_without_the_library_or_the_device_the_one_that_is_missing_is_told(self) -> None:
        if backends.find("edgetpu").IMPORTS != ("ai_edge_litert.interpreter",):
            pytest.skip("another interpreter is installed")
        try:
            session = backends.find("edgetpu").load(COMPILED, {"device": "usb"}, 1)
        except MissingDependency as error:
            assert "libedgetpu" in error.message
            assert "libedgetpu1-std" in str(error.remedy)
        except NoAccelerator as error:
            assert "no Edge TPU answers at usb" in error.message
        else:
            assert [spec.dtype for spec in session.inputs] == ["uint8"] * 3

    def test_doctor_tells_which_part_is_missing(self) -> None:
        found = doctor.backend("edgetpu")
        assert found.usable or "libedgetpu" in str(found.reason) or "no Edge TPU" in str(found.reason)

    def test_without_the_compiler_the_candidate_says_so_and_the_others_go_on(self, tmp_path: Path) -> None:
        if shutil.which(program.PROGRAM):
            pytest.skip("edgetpu_compiler is installed")
        found = convert(project(tmp_path / "p", BOTH), tmp_path / "cache")
        row = candidate(found, "int8-edgetpu")
        assert (row["status"], row["artifact"], row["latency_ns"]) == ("skipped", None, None)
        assert row["error"]["type"] == "MissingDependency"
        assert "unavailable: edgetpu_compiler" in row["reasons"][0]
        assert candidate(found, "int8-tflite-uint8")["quality"]["value"] > 0.9

    def test_what_the_compiler_is_given_is_integer_all_through_and_static(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script(tmp_path, STAND_IN)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        found = convert(project(tmp_path / "p", RECIPE), tmp_path / "cache", code=without_a_chip())
        row = candidate(found, "int8-edgetpu-uint8")
        assert (row["artifact"]["format"], row["placement"]["left_to_cpu"]) == ("edgetpu", 0)
        assert row["details"]["edgetpu"]["operators"] == 7
        assert row["budget"][0]["quantity"] == "cpu operators"
        assert row["budget"][0]["passed"]
        assert row["latency_ns"] is None
        given = reader.read(tmp_path / "given.tflite")
        graph = given.subgraphs[0]
        assert {reader.dtype_name(graph.tensors[i]) for i in (*graph.inputs, *graph.outputs)} == {"uint8"}
        assert "float32" not in {reader.dtype_name(tensor) for tensor in graph.tensors}
        assert all(tensor.shape[0] == 1 for tensor in (graph.tensors[i] for i in (*graph.inputs, *graph.outputs)))
        assert all(not buffer.offset for buffer in given.buffers)
        products = [o for o in graph.operators if reader.operator_name(given, o) == "FULLY_CONNECTED"]
        assert [len(graph.tensors[o.inputs[1]].quantization.scale) for o in products] == [1]
        assert partition.predict(describe(tmp_path / "given.tflite")).on_cpu == 0


def without_a_chip() -> int:
    """The exit code of a run whose one candidate is for a chip that is not here."""
    try:
        backends.find("edgetpu").devices()
    except (MissingDependency, NoAccelerator) as error:
        return error.exit_code
    pytest.skip("an Edge TPU is here, and it would refuse what the stand-in makes")
