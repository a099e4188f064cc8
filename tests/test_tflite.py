"""LiteRT: the backend, the compiler and the reader of .tflite files, on real files."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("litert_torch")
pytest.importorskip("onnxscript")

from edgeopt.artifact import Artifact, MadeBy, TensorSpec  # noqa: E402
from edgeopt.backends import tflite as backend  # noqa: E402
from edgeopt.compilers import tflite as compiler  # noqa: E402
from edgeopt.errors import InputError, StageError, UnsupportedOperator  # noqa: E402
from edgeopt.formats import ModelRef  # noqa: E402
from edgeopt.formats import tflite as reader  # noqa: E402
from edgeopt.samples import Preprocess, adapt, restore, write_samples  # noqa: E402
from edgeopt.stages import Produced, StageJob, quantize  # noqa: E402
from edgeopt.target import Target  # noqa: E402

IMAGE = TensorSpec("image", ("batch", 3, 12, 10), "float32")
EXTRA = TensorSpec("extra", ("batch", 5), "float32")
MAP = TensorSpec("map", ("batch", 8, 6, 5), "float32")
SCORES = TensorSpec("scores", ("batch", 4), "float32")
VNNI = Target(name="vnni", arch="x86_64", isa=("avx2", "avx512f", "avx512_vnni"))


class TwoHeads(torch.nn.Module):
    """Two inputs and two outputs, whose names and shapes tell any mistake in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = torch.nn.BatchNorm2d(8)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.extra = torch.nn.Linear(5, 8)
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, image: torch.Tensor, extra: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.bn(self.conv(image)))
        y = torch.nn.functional.relu6(self.depthwise(y)) + self.extra(extra)[:, :, None, None]
        return y, self.fc(torch.nn.functional.max_pool2d(y, 2).mean(dim=(2, 3))).softmax(dim=-1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an import leaves it: model.onnx with a free batch, and model.pt2."""
    torch.manual_seed(0)
    folder, net = tmp_path_factory.mktemp("import"), TwoHeads().eval()
    example = (torch.zeros(2, 3, 12, 10), torch.zeros(2, 5))
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, example, dynamic_shapes=({0: batch}, {0: batch}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, folder / "model.pt2")
        torch.onnx.export(
            program,
            f=folder / "model.onnx",
            dynamo=True,
            external_data=False,
            input_names=["image", "extra"],
            output_names=["map", "scores"],
            verbose=False,
        )
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, noise = tmp_path_factory.mktemp("samples"), np.random.default_rng(0)
    arrays = {"image": noise.standard_normal((40, 3, 12, 10)), "extra": noise.standard_normal((40, 5))}
    write_samples(folder, {name: value.astype(np.float32) for name, value in arrays.items()}, None, Preprocess())
    return folder


def compiled(
    model: Path, out: Path, quantized: Path | None = None, samples: Path | None = None, **options: str
) -> Produced:
    """What the compiler makes of `model`, or of what `quantized` holds of it, in `out`."""
    lineage = {"import": model, **({"quantize": quantized} if quantized else {})}
    return run(compiler.compile, "tflite", compiler.CompileOptions(**options), lineage, out, samples)


def run(
    step: Any, choice: str, options: Any, lineage: dict[str, Path], out: Path, samples: Path | None = None
) -> Produced:
    precision = "int8" if "quantize" in lineage else "fp32"
    artifact = Artifact("onnx", "model.onnx", (), (IMAGE, EXTRA), (MAP, SCORES), precision, MadeBy("test", 1, {}, {}))
    given, parent = {"calibration": samples} if samples else {}, [*lineage.values()][-1]
    out.mkdir()
    return step(StageJob(choice, options, artifact, parent, lineage, given, VNNI, out, lambda fraction, text: None))


@pytest.fixture(scope="module")
def canonical(model: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the Q/DQ model."""
    out = tmp_path_factory.mktemp("quantized") / "int8"
    run(quantize.run, "int8", quantize.choices()["int8"](), {"import": model}, out, samples)
    return out


@pytest.fixture(scope="module")
def built(model: Path, samples: Path, canonical: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("built")
    return SimpleNamespace(
        root=root,
        fp32=compiled(model, root / "fp32"),
        int8=compiled(model, root / "int8", canonical, samples),
    )


def feeds(specs: tuple[TensorSpec, ...], seed: int = 1) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(seed)
    source = {"image": noise.standard_normal((1, 3, 12, 10)), "extra": noise.standard_normal((1, 5))}
    return adapt({name: value.astype(np.float32) for name, value in source.items()}, specs)


def test_float_file_computes_what_the_onnx_does(model: Path, built: SimpleNamespace) -> None:
    import onnxruntime

    session = backend.load(built.root / "fp32" / "model.tflite", {}, 1)
    noise = np.random.default_rng(1)
    source = {"image": noise.standard_normal((1, 3, 12, 10)), "extra": noise.standard_normal((1, 5))}
    source = {name: value.astype(np.float32) for name, value in source.items()}
    wanted = onnxruntime.InferenceSession(model / "model.onnx").run(None, source)
    found = session.run(adapt(source, built.fp32.inputs))
    for value, right in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(value, right, atol=1e-4)


def test_signature_keeps_names_and_order_and_takes_channels_last(built: SimpleNamespace) -> None:
    assert built.fp32.inputs == (
        TensorSpec("image", (1, 12, 10, 3), "float32", "NHWC"),
        TensorSpec("extra", (1, 5), "float32"),
    )
    assert [(spec.name, spec.shape) for spec in built.fp32.outputs] == [("map", (1, 8, 6, 5)), ("scores", (1, 4))]


def test_int8_file_is_integer_inside_and_float_outside(built: SimpleNamespace) -> None:
    assert built.int8.precision == "int8"
    assert {spec.dtype for spec in (*built.int8.inputs, *built.int8.outputs)} == {"float32"}
    assert built.int8.details["float_operators"] == {}
    assert min(built.int8.details["snr_db"]) > 20
    small, large = (built.root / name / "model.tflite" for name in ("int8", "fp32"))
    assert reader.inspect(ModelRef(str(small)), None).precision == "int8"
    assert reader.inspect(ModelRef(str(large)), None).precision == "fp32"


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_integer_inputs_and_outputs_carry_their_scale_and_compute_what_float_ones_do(
    model: Path, samples: Path, canonical: Path, built: SimpleNamespace, tmp_path: Path, io: str
) -> None:
    made = compiled(model, tmp_path / io, canonical, samples, io=io)
    session = backend.load(tmp_path / io / "model.tflite", {}, 1)
    assert [spec.dtype for spec in (*session.inputs, *session.outputs)] == [io] * 4
    assert made.inputs == tuple(replace(s, layout=w.layout) for s, w in zip(session.inputs, built.int8.inputs))
    assert all(spec.scale is not None and spec.zero_point is not None for spec in (*made.inputs, *made.outputs))
    found = restore(session.run(feeds(made.inputs)), made.outputs)
    float_ends = backend.load(built.root / "int8" / "model.tflite", {}, 1)
    wanted = float_ends.run(feeds(built.int8.inputs)).values()
    for value, right, spec in zip(found, wanted, made.outputs):
        np.testing.assert_allclose(value, right, atol=spec.scale * 1.01)  # halves are rounded to even here, up there


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_no_operator_computes_in_float_where_inputs_and_outputs_are_integers(
    model: Path, samples: Path, canonical: Path, tmp_path: Path, io: str
) -> None:
    made = compiled(model, tmp_path / io, canonical, samples, io=io)
    assert made.details["float_operators"] == {}
    assert made.details["float_outputs"] == []
    assert min(made.details["snr_db"]) > 20
    file = reader.read(tmp_path / io / "model.tflite")
    assert not [t.name for t in file.subgraphs[0].tensors if reader.dtype_name(t) == "float32"]


def test_a_float_operator_in_an_integer_file_is_listed(built: SimpleNamespace) -> None:
    assert compiler._float_operators(built.root / "fp32" / "model.tflite")["CONV_2D"] == 1


def test_integer_inputs_are_objected_to_where_the_model_is_not_int8() -> None:
    assert compiler.objection(compiler.CompileOptions(io="uint8"), "fp32")
    assert compiler.objection(compiler.CompileOptions(io="uint8"), "int8-dynamic")
    assert compiler.objection(compiler.CompileOptions(io="uint8"), "int8") is None


def test_the_same_input_in_another_folder_gives_the_same_bytes(
    model: Path, samples: Path, canonical: Path, built: SimpleNamespace, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "else" / "where")
    shutil.copytree(canonical, tmp_path / "else" / "quantized")
    compiled(tmp_path / "else" / "where", tmp_path / "int8", tmp_path / "else" / "quantized", samples)
    first, second = built.root / "int8" / "model.tflite", tmp_path / "int8" / "model.tflite"
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()


def test_ranges_are_those_of_the_canonical_model(canonical: Path, built: SimpleNamespace) -> None:
    import onnx

    source = onnx.load(canonical / "model.onnx")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
    quantizers = [node for node in source.graph.node if node.op_type == "QuantizeLinear"]
    wanted = sorted({float(constants[node.input[1]]) for node in quantizers})
    made = reader.read(built.root / "int8" / "model.tflite").subgraphs[0].tensors
    found = sorted({float(t.quantization.scale[0]) for t in made if t.type == 9 and len(t.quantization.scale) == 1})
    outputs = 2  # calibrated here: the canonical model leaves them in float
    assert built.int8.details["calibrated_tensors"] == outputs
    assert all(np.isclose(found, scale, rtol=1e-5).any() for scale in wanted)
    assert len(found) <= len(wanted) + outputs


def test_weights_are_the_integers_of_the_canonical_model(canonical: Path, built: SimpleNamespace) -> None:
    import onnx

    def digests(arrays: list[np.ndarray]) -> list[tuple[int, int, int]]:
        return sorted((a.size, int(a.astype(int).sum()), int((a.astype(int) ** 2).sum())) for a in arrays)

    source = onnx.load(canonical / "model.onnx")
    wanted = [onnx.numpy_helper.to_array(t) for t in source.graph.initializer if t.data_type == 3 and len(t.dims) > 1]
    file = reader.read(built.root / "int8" / "model.tflite")
    constant = [t for t in file.subgraphs[0].tensors if t.type == 9 and file.buffers[t.buffer].data is not None]
    found = [np.array(file.buffers[t.buffer].data, np.uint8).view(np.int8) for t in constant if len(t.shape) > 1]
    assert digests(found) == digests(wanted)


def test_fp16_halves_the_weights(model: Path, built: SimpleNamespace, tmp_path: Path) -> None:
    made = compiled(model, tmp_path / "fp16", precision="fp16")
    summary = reader.inspect(ModelRef(str(tmp_path / "fp16" / "model.tflite")), None)
    assert (made.precision, summary.precision) == ("fp16", "fp16")
    assert min(made.details["snr_db"]) > 55


def test_without_model_onnx_the_step_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="missing"):
        compiled(tmp_path / "empty", tmp_path / "out")


def test_a_model_that_onnx_import_lacks_is_read_from_pt2(model: Path, tmp_path: Path) -> None:
    import onnx

    copy = tmp_path / "import"
    shutil.copytree(model, copy)
    changed = onnx.load(copy / "model.onnx")
    relu = next(node for node in changed.graph.node if node.op_type == "Relu")
    whole, relu.output[0] = relu.output[0], "before"
    same = onnx.helper.make_node("ReverseSequence", ["before", "one"], [whole], batch_axis=0, time_axis=1)  # of one
    changed.graph.node.insert(list(changed.graph.node).index(relu) + 1, same)
    changed.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.int64), "one"))
    onnx.save(changed, copy / "model.onnx")
    made = compiled(copy, tmp_path / "out")
    assert [spec.name for spec in made.outputs] == ["map", "scores"]
    (copy / "model.pt2").unlink()
    with pytest.raises(UnsupportedOperator, match="ReverseSequence"):
        compiled(copy, tmp_path / "again")


class Determinant(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(x)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # litert_torch's use of torch's pytrees
def test_an_operator_that_cannot_be_converted_is_named() -> None:
    square = TensorSpec("x", (1, 3, 3), "float32")
    with pytest.raises(UnsupportedOperator, match="linalg_det"):
        compiler._convert(Determinant().eval(), (square,), (TensorSpec("y", (1,), "float32"),))


def test_asking_for_a_float_precision_on_an_int8_model_is_objected_to() -> None:
    assert compiler.objection(compiler.CompileOptions(precision="fp16"), "int8")
    assert compiler.objection(compiler.CompileOptions(), "int8") is None
    assert compiler.objection(compiler.CompileOptions(precision="fp16"), "fp32") is None


def test_calibration_samples_are_read_for_int8_alone() -> None:
    assert compiler.sample_roles(compiler.CompileOptions(), "int8") == ("calibration",)
    assert compiler.sample_roles(compiler.CompileOptions(), "fp32") == ()


def test_an_operator_that_the_runtime_lacks_is_named(custom: Path) -> None:
    with pytest.raises(UnsupportedOperator, match="my-accelerator-op"):
        backend.load(custom, {}, 1)


def test_a_runtime_setting_that_is_not_known_is_refused(built: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="precision"):
        backend.load(built.root / "fp32" / "model.tflite", {"precision": "bf16"}, 1)


@pytest.fixture
def custom(built: SimpleNamespace, tmp_path: Path) -> Path:
    """The float model with its softmax replaced by a custom operator."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    changed = reader.read(built.root / "fp32" / "model.tflite")
    for code in changed.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.SOFTMAX:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
            code.customCode = b"my-accelerator-op"
    builder = flatbuffers.Builder(1024)
    builder.Finish(changed.Pack(builder), file_identifier=b"TFL3")
    (tmp_path / "custom.tflite").write_bytes(bytes(builder.Output()))
    return tmp_path / "custom.tflite"


def test_inspect_tells_signature_parameters_and_work(built: SimpleNamespace) -> None:
    path = built.root / "fp32" / "model.tflite"
    summary = reader.inspect(ModelRef(str(path)), None)
    assert [(spec.name, spec.shape) for spec in summary.inputs] == [("image", (1, 12, 10, 3)), ("extra", (1, 5))]
    assert [spec.name for spec in summary.outputs] == ["map", "scores"]
    convolutions, products = 8 * 3 * 9 * 30 + 8 * 9 * 30, 5 * 8 + 8 * 4
    assert summary.macs == convolutions + products
    assert 8 * 3 * 9 + 8 * 9 + 5 * 8 + 8 * 4 <= summary.parameters <= 8 * 3 * 9 + 8 * 9 + 5 * 8 + 8 * 4 + 40
    assert summary.operators["DEPTHWISE_CONV_2D"] == 1
    assert summary.size_bytes == path.stat().st_size
    assert summary.provenance["signatures"] == ["serving_default"]
    assert "min_runtime_version" in summary.provenance


def test_inspect_reads_a_file_with_operators_that_are_not_here(custom: Path) -> None:
    summary = reader.inspect(ModelRef(str(custom)), None)
    assert summary.operators["my-accelerator-op"] == 1


def test_inspect_refuses_what_is_not_a_tflite_file(built: SimpleNamespace, tmp_path: Path) -> None:
    whole = (built.root / "fp32" / "model.tflite").read_bytes()
    for content in (b"", b"not a model at all", whole[:200], whole[:4] + b"TFL3" + b"\xff" * 60):
        (tmp_path / "x.tflite").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.tflite"):
            reader.inspect(ModelRef(str(tmp_path / "x.tflite")), None)
