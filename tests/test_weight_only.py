"""Weights alone in 8 or 4 bits, activations in float or quantized at run time: on every backend, by what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import backends, compilers
from edgeopt.artifact import Artifact, MadeBy, TensorSpec, sha256_of_file
from edgeopt.backends import placing
from edgeopt.errors import InputError, StageError
from edgeopt.formats import tflite as tflite_format
from edgeopt.quantization import litert
from edgeopt.quantization.weights import quantize_weights
from edgeopt.stages import Produced, StageJob, quantize
from edgeopt.target import Target

WIDTH, HIDDEN, CLASSES = 320, 1024, 16
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8-weights": ("int8-weights", {}),
    "int4-weights": ("int4-weights", {}),
    "int8-dynamic": ("dynamic", {}),
    "int4-dynamic": ("dynamic", {"bits": 4}),
}
SMALLER = {"int8": 3.7, "int4": 6.2}  # times, in the file that the device gets
SQNR_DB = {"int8-weights": 38, "int8-dynamic": 30, "int4-weights": 16, "int4-dynamic": 16}
VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))
AVX2 = Target(name="avx2", arch="x86_64", isa=("avx2",))
GIVEN = TensorSpec("x", ("batch", WIDTH), "float32")
SCORES = TensorSpec("scores", ("batch", CLASSES), "float32")


def transformer_block() -> Any:
    """x -> x + down(relu(up(x))) -> head: Gemm of both orders, and MatMul with Add, large beside their activations."""
    noise = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((noise.standard_normal(shape) / np.sqrt(max(shape))).astype(np.float32), name)

    nodes = [
        helper.make_node("Gemm", ["x", "up", "up_bias"], ["wide"], name="up", transB=1),
        helper.make_node("Relu", ["wide"], ["rectified"], name="relu"),
        helper.make_node("MatMul", ["rectified", "down"], ["narrow"], name="down"),
        helper.make_node("Add", ["narrow", "down_bias"], ["moved"], name="bias"),
        helper.make_node("Add", ["x", "moved"], ["residual"], name="residual"),
        helper.make_node("Gemm", ["residual", "head", "head_bias"], ["scores"], name="head"),
    ]
    constants = [
        weight("up", HIDDEN, WIDTH),
        weight("up_bias", HIDDEN),
        weight("down", HIDDEN, WIDTH),
        weight("down_bias", WIDTH),
        weight("head", WIDTH, CLASSES),
        weight("head_bias", CLASSES),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])]
    made = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])]
    graph = helper.make_graph(nodes, "block", given, made, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def convolution(channels: int = 16) -> Any:
    """A 3x3 convolution, then a product."""
    noise = np.random.default_rng(0)
    kernel = (noise.standard_normal((channels, 3, 3, 3)) / 5).astype(np.float32)
    product = (noise.standard_normal((channels, CLASSES)) / 4).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["y"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["y"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "product"], ["scores"], name="product"),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])]
    made = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])]
    constants = [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(product, "product")]
    graph = helper.make_graph(nodes, "conv", given, made, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(step: Any, choice: str, options: Any, lineage: dict[str, Path], precision: str, out: Path) -> Produced:
    parent = [*lineage.values()][-1]
    artifact = Artifact("onnx", "model.onnx", (), (GIVEN,), (SCORES,), precision, MadeBy("test", 1, {}, {}))
    out.mkdir(parents=True)
    return step(StageJob(choice, options, artifact, parent, lineage, {}, VNNI, out, lambda fraction, text: None))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("import")
    onnx.save(transformer_block(), folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def canonical(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each form."""
    root, folders = tmp_path_factory.mktemp("quantized"), {}
    for form, (choice, options) in FORMS.items():
        folders[form] = root / form
        made = run(
            quantize.run, choice, quantize.choices()[choice](**options), {"import": source}, "fp32", folders[form]
        )
        assert made.precision == form
    return folders


@pytest.fixture(scope="module")
def built(source: Path, canonical: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`built(backend, form)` is what the compiler made and its folder, made once."""
    root, known = tmp_path_factory.mktemp("compiled"), {}

    def build(backend: str, form: str = "fp32") -> tuple[Produced, Path]:
        if (backend, form) not in known:
            compiler, out = compilers.find(backend), root / f"{backend}-{form}"
            lineage = {"import": source} if form == "fp32" else {"import": source, "quantize": canonical[form]}
            known[backend, form] = run(compiler.compile, backend, compiler.CompileOptions(), lineage, form, out), out
        return known[backend, form]

    return build


def scores(built: Any, backend: str, form: str, rows: int = 1) -> Any:
    made, folder = built(backend, form)
    session = backends.find(backend).load(folder / made.main, made.runtime, 1)
    x = np.random.default_rng(1).standard_normal((32, WIDTH)).astype(np.float32)
    pieces = [session.run({"x": x[at : at + rows]}) for at in range(0, 32, rows)]
    return np.concatenate([next(iter(piece.values())) for piece in pieces])


def sqnr_db(reference: Any, found: Any) -> float:
    noise = np.square(reference - found).sum()
    return float(10 * np.log10(np.square(reference).sum() / noise))


ON = [
    *(("onnxruntime", form) for form in FORMS),
    *(("openvino", form) for form in FORMS),
    *(("tflite", form) for form in FORMS if form != "int4-weights"),
]


@pytest.mark.parametrize(("backend", "form"), ON)
def test_files_shrink_and_scores_stay(built: Any, backend: str, form: str) -> None:
    if backend == "tflite":
        pytest.importorskip("litert_torch")
    made, folder = built(backend, form)
    reference, full = scores(built, "onnxruntime", "fp32"), (built("onnxruntime")[1] / "model.onnx").stat().st_size
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert made.precision == form
    assert full / size > SMALLER[form[:4]]
    assert sqnr_db(reference, scores(built, backend, form)) > SQNR_DB[form]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_activations_are_left_alone_unless_dynamic(built: Any, canonical: dict[str, Path], backend: str) -> None:
    """The canonical ONNX without any optimization is the exact answer of weights alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(canonical["int8-weights"] / "model.onnx", options)
    x = np.random.default_rng(1).standard_normal((32, WIDTH)).astype(np.float32)
    exact = plain.run(None, {"x": x})[0]
    assert sqnr_db(exact, scores(built, backend, "int8-weights", rows=32)) > 100
    assert sqnr_db(exact, scores(built, backend, "int8-dynamic", rows=32)) < 60


def operators(built: Any, form: str) -> dict[str, int]:
    made, folder = built("onnxruntime", form)
    return counts(made, folder, {"x": np.zeros((1, WIDTH), np.float32)})


def counts(made: Produced, folder: Path, feeds: Any) -> dict[str, int]:
    """The operators that onnxruntime runs."""
    return dict(placing.tell("onnxruntime", folder / made.main, made.runtime, 1, feeds).counts)


def test_onnxruntime_multiplies_with_the_operators_that_are_fast(built: Any) -> None:
    assert operators(built, "int8-weights").keys() & {"Gemm", "FusedGemm", "MatMul"}
    assert "DequantizeLinear" not in operators(built, "int8-weights")
    assert operators(built, "int4-weights")["MatMulNBits"] == 3
    assert operators(built, "int8-dynamic")["DynamicQuantizeMatMul"] == 3
    assert operators(built, "int4-dynamic")["MatMulNBits"] == 3


def test_onnxruntime_computes_4_bit_weights_in_float_unless_dynamic(built: Any) -> None:
    def levels(form: str) -> set[int]:
        nodes = onnx.load(built("onnxruntime", form)[1] / "model.onnx").graph.node
        found = [
            a.i for node in nodes if node.op_type == "MatMulNBits" for a in node.attribute if a.name == "accuracy_level"
        ]
        return set(found)

    assert levels("int4-weights") == {0}
    assert levels("int4-dynamic") == {4}


@pytest.mark.parametrize(("form", "kind"), [("int8-weights", "i8"), ("int4-weights", "i4")])
def test_openvino_keeps_weights_small_when_it_is_loaded(built: Any, form: str, kind: str) -> None:
    from edgeopt.backends import openvino as backend

    made, folder = built("openvino", form)
    model = backend.runtime_module().Core().read_model(str(folder / made.main))
    kinds = [
        node.get_output_element_type(0).to_string() for node in model.get_ops() if node.get_type_name() == "Constant"
    ]
    assert kinds.count(kind) == 3


def test_openvino_is_told_whether_to_quantize_activations(built: Any) -> None:
    groups = {form: built("openvino", form)[0].runtime["dynamic_quantization_group_size"] for form in FORMS}
    assert groups == {"int8-weights": 0, "int4-weights": 0, "int8-dynamic": 32, "int4-dynamic": 32}


def test_tflite_dequantizes_weights_unless_dynamic(built: Any) -> None:
    pytest.importorskip("litert_torch")

    def dequantized(form: str) -> int:
        file = tflite_format.read(built("tflite", form)[1] / "model.tflite")
        return [tflite_format.operator_name(file, op) for op in file.subgraphs[0].operators].count("DEQUANTIZE")

    assert dequantized("int8-weights") == 3
    assert dequantized("int8-dynamic") == dequantized("int4-dynamic") == 0


def test_tflite_keeps_8_bits_where_groups_do_not_divide_a_sum(built: Any, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    (tmp_path / "made.tflite").write_bytes(litert.to_dynamic(built("tflite")[1] / "model.tflite", group_size=256))
    file = tflite_format.read(tmp_path / "made.tflite")
    graph = file.subgraphs[0]
    products = [op for op in graph.operators if tflite_format.operator_name(file, op) == "FULLY_CONNECTED"]
    kinds = [tflite_format.dtype_name(graph.tensors[op.inputs[1]]) for op in products]
    assert sorted(kinds) == ["int4", "int8", "int8"]  # sums over 1024, and twice over 320


def test_4_bit_weights_without_dynamic_activations_are_objected_to_for_tflite() -> None:
    compiler = compilers.find("tflite")
    assert "slower" in str(compiler.objection(compiler.CompileOptions(), "int4-weights"))
    assert compiler.objection(compiler.CompileOptions(), "int4-dynamic") is None


@pytest.mark.parametrize("form", FORMS)
def test_quantized_weights_are_not_quantized_or_halved_again(form: str) -> None:
    assert quantize.objection("int8", quantize.choices()["int8"](), form)
    for backend in ("onnxruntime", "openvino", "tflite"):
        compiler = compilers.find(backend)
        assert compiler.objection(compiler.CompileOptions(precision="fp16"), form)


def test_each_form_has_a_digest_of_its_own(canonical: dict[str, Path]) -> None:
    """Else the store would take what was compiled of one for what is compiled of another."""
    assert len({sha256_of_file(folder / "model.onnx") for folder in canonical.values()}) == len(FORMS)


def test_no_data_is_read_for_weights() -> None:
    for choice, options in FORMS.values():
        assert quantize.sample_roles(choice, quantize.choices()[choice](**options), "fp32") == ()


@pytest.mark.parametrize(("bits", "worst"), [(8, 0.5), (4, 0.5)])
def test_a_weight_moves_by_half_a_step_at_most(bits: int, worst: float) -> None:
    model = transformer_block()
    made, _ = quantize_weights(model, bits, 64)
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for name, summed in (("up", 1), ("down", 0), ("head", 0)):
        integers, scale = after[f"{name}_quantized"].astype(np.float32), after[f"{name}_scale"]
        wide = np.repeat(scale, 64, summed) if bits == 4 else np.expand_dims(scale, summed)
        assert np.abs(integers).max() <= (127 if bits == 8 else 7)
        assert np.abs(integers * wide - before[name]).max() <= worst * wide.max() * (1 + 1e-5)
        assert name not in after


def test_convolutions_keep_8_bits_and_so_does_a_product_that_groups_do_not_divide() -> None:
    made, kinds = quantize_weights(convolution(channels=48), 4, 32)
    onnx.checker.check_model(made, full_check=True)
    assert kinds == {"int8": 2}
    assert quantize_weights(convolution(channels=64), 4, 32)[1] == {"int8": 1, "int4": 1}


def test_onnxruntime_folds_the_weights_of_convolutions(tmp_path: Path) -> None:
    (tmp_path / "import").mkdir()
    onnx.save(convolution(), tmp_path / "import" / "model.onnx")
    options, lineage = quantize.choices()["dynamic"](), {"import": tmp_path / "import"}
    run(quantize.run, "dynamic", options, lineage, "fp32", tmp_path / "dynamic")
    compiler = compilers.find("onnxruntime")
    lineage["quantize"] = tmp_path / "dynamic"
    made = run(
        compiler.compile, "onnxruntime", compiler.CompileOptions(), lineage, "int8-dynamic", tmp_path / "compiled"
    )
    found = counts(made, tmp_path / "compiled", {"x": np.zeros((1, 3, 8, 8), np.float32)})
    assert "Conv" in found or "FusedConv" in found
    assert not found.keys() & {"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear"}


def test_weights_keep_to_7_bits_where_sums_would_saturate() -> None:
    options = quantize.choices()["dynamic"]()
    assert quantize.needs_overflow_fix(options, AVX2)
    assert not quantize.needs_overflow_fix(options, VNNI)
    made, _ = quantize_weights(transformer_block(), 8, 0, overflow_fix=True)
    widest = max(int(np.abs(numpy_helper.to_array(t)).max()) for t in made.graph.initializer if t.data_type == 3)
    assert widest == 63


def test_nodes_that_are_ignored_stay_in_float() -> None:
    made, kinds = quantize_weights(transformer_block(), 8, 0, ignore=("head",))
    assert kinds == {"int8": 2}
    assert "head" in {tensor.name for tensor in made.graph.initializer}


def test_a_pattern_that_matches_nothing_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match="no_such_node"):
        quantize_weights(transformer_block(), 8, 0, ignore=("no_such_node",))


def test_a_model_without_weights_is_refused() -> None:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [given], [made])
    with pytest.raises(StageError, match="no convolution"):
        quantize_weights(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), 8, 0)


def test_a_group_size_that_no_runtime_has_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size"):
        quantize.choices()["int4-weights"](group_size=48)


def test_groups_are_of_4_bits_alone() -> None:
    dynamic = quantize.choices()["dynamic"]
    assert dynamic(bits=4, group_size=32).told() == {"bits": "int4", "group_size": "g32"}
    with pytest.raises(ValueError, match="bits: 4"):
        dynamic(group_size=32)


def test_runtime_settings_that_are_not_known_are_refused(built: Any) -> None:
    made, folder = built("onnxruntime", "int8-weights")
    with pytest.raises(InputError, match="threads"):
        backends.find("onnxruntime").load(folder / made.main, {"threads": 3}, 1)
