"""TensorRT: engines of the sample models are built for real, with TensorRT-RTX and no GPU. Running them needs one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import onnx
import onnx.helper as oh
import pytest

from edgeopt import plan, recipe, trtexec
from edgeopt.backends import tensorrt as backend
from edgeopt.compilers import tensorrt as compiler
from edgeopt.errors import (
    InputError,
    MissingDependency,
    NoAccelerator,
    StageError,
    UnsupportedOperator,
)
from edgeopt.placement import Placed
from edgeopt.stages import compile
from edgeopt.target import Target

HERE = Target(name="here")
JETSON = Target(name="jetson", arch="aarch64", reach={})
FLOAT = onnx.TensorProto.FLOAT


def gpu() -> bool:
    try:
        return bool(backend.devices())
    except (MissingDependency, StageError):
        return False


GPU = gpu()
needs_gpu = pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU with its driver")
without_gpu = pytest.mark.skipif(GPU, reason="tells what is said where there is no GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensorrt")


@pytest.fixture(scope="module")
def fp32(folder: Path) -> fashion.Built:
    return fashion.run_stage(compile, "tensorrt", fashion.source(), folder / "fp32", HERE)


@pytest.fixture(scope="module")
def fp16(folder: Path) -> fashion.Built:
    return fashion.run_stage(compile, "tensorrt", fashion.source(), folder / "fp16", HERE, precision="fp16")


@pytest.fixture(scope="module")
def int8(folder: Path) -> fashion.Built:
    return fashion.run_stage(compile, "tensorrt", fashion.int8(), folder / "int8", HERE)


@pytest.fixture(scope="module")
def for_jetson(folder: Path) -> fashion.Built:
    return fashion.run_stage(compile, "tensorrt", fashion.source(), folder / "jetson", JETSON, max_batch=2)


def saved(path: Path, nodes: Any, inputs: Any, outputs: Any) -> Path:
    """An ONNX file; inputs and outputs are (name, shape) of float32."""
    values = [[oh.make_tensor_value_info(name, FLOAT, shape) for name, shape in side] for side in (inputs, outputs)]
    graph = oh.make_graph(nodes, "test", *values)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture(scope="module")
def relu(folder: Path) -> Path:
    return saved(
        folder / "relu.onnx",
        [oh.make_node("Relu", ["x"], ["y"], name="relu")],
        [("x", ["batch", 3, "wide"])],
        [("y", ["batch", 3, "wide"])],
    )


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    """A network whose engine is built in no time."""
    nodes = [oh.make_node("Relu", ["x"], ["y"], name="relu")]
    return saved(folder / "small.onnx", nodes, [("x", ["batch", 3])], [("y", ["batch", 3])])


def precisions(built: fashion.Built, kind: str) -> set[str]:
    return {layer["precision"] for layer in built[0].details["placement"] if layer["operator"] == kind}


def test_a_float_model_computes_in_fp32(fp32: fashion.Built) -> None:
    assert precisions(fp32, "correlation") == {"fp32"}
    assert (fp32[0].precision, fp32[0].main) == ("fp32", "model.plan")


def test_fp16_convolutions_compute_in_fp16_and_inputs_stay_float32(fp16: fashion.Built) -> None:
    assert precisions(fp16, "correlation") == {"fp16"}
    assert [spec.dtype for spec in (*fp16[0].inputs, *fp16[0].outputs)] == ["float32", "float32"]


def test_every_convolution_of_a_quantized_model_computes_in_int8(int8: fashion.Built) -> None:
    assert precisions(int8, "correlation") == precisions(int8, "gemm") == {"int8"}
    assert int8[0].precision == "int8"


def test_fp16_halves_the_engine(fp32: fashion.Built, fp16: fashion.Built) -> None:
    assert fp16[0].size_bytes < 0.6 * fp32[0].size_bytes


def test_the_operators_are_counted_with_what_they_compute_in(fp32: fashion.Built) -> None:
    counted = {(one["operator"], one["precision"]): one["count"] for one in fp32[0].details["placement"]}
    assert counted["correlation", "fp32"] == 15


def test_an_engine_is_tied_to_its_target(folder: Path) -> None:
    assert compiler.runs_here(HERE)
    assert not compiler.runs_here(JETSON)


def test_the_signature_is_that_of_the_source(fp32: fashion.Built) -> None:
    assert (fp32[0].inputs, fp32[0].outputs) == (fashion.source()[0].inputs, fashion.source()[0].outputs)


def test_the_same_model_gives_the_same_engine(small: Path) -> None:
    settings = backend.BuildSettings()
    assert backend.build(small, settings).plan == backend.build(small, settings).plan


def test_for_another_machine_the_model_travels_and_the_device_builds(for_jetson: fashion.Built) -> None:
    artifact, folder = for_jetson
    assert artifact.main == "model.onnx"
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    assert backend.BuildSettings.from_json(artifact.runtime["build"]).batch == (1, 1, 2)


def test_settings_travel_as_json() -> None:
    options = compiler.CompileOptions(
        min_shapes="x:1x3x8", opt_shapes="x:1x3x8", max_shapes="x:4x3x16", workspace="64 MiB", capabilities="sm86"
    )
    settings = options.settings()
    assert settings.shapes == (("x", ((1, 3, 8), (1, 3, 8), (4, 3, 16))),)
    assert settings.workspace_bytes == 64 << 20
    assert backend.BuildSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(folder: Path) -> None:
    model = saved(folder / "det.onnx", [oh.make_node("Det", ["x"], ["y"], name="volume")], [("x", [2, 2])], [("y", [])])
    with pytest.raises(UnsupportedOperator, match=r"no operator Det: node volume \(Det\): not supported"):
        backend.build(model, backend.BuildSettings())


def test_what_the_parser_says_of_a_wrong_node_is_told(folder: Path) -> None:
    node = oh.make_node("MatMul", ["x", "z"], ["y"], name="product")
    model = saved(folder / "wrong.onnx", [node], [("x", [2, 3]), ("z", [4, 5])], [("y", [2, 5])])
    with pytest.raises(StageError, match=r"refuses the model: .*product \(MatMul\)"):
        backend.build(model, backend.BuildSettings())


def test_unsigned_quantizers_are_an_error_and_not_taken_for_signed_ones() -> None:
    with pytest.raises(StageError, match="unsigned quantizers"):
        backend.build(fashion.int8()[1] / "model.onnx", backend.BuildSettings())


def test_lowered_quantizers_leave_no_warning(int8: fashion.Built) -> None:
    assert "notes" not in int8[0].details


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x09garbage" * 99], ids=["empty", "text", "garbage"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(StageError):
        backend.build(tmp_path / "model.onnx", backend.BuildSettings())


def test_inputs_with_other_free_dimensions_need_shapes(relu: Path) -> None:
    with pytest.raises(InputError, match="x has free dimensions besides the batch") as caught:
        backend.build(relu, backend.BuildSettings())
    assert "min_shapes" in str(caught.value.remedy)


def test_given_shapes_make_the_profile(relu: Path) -> None:
    three = ((1, 3, 8), (2, 3, 16), (4, 3, 32))
    assert backend.build(relu, backend.BuildSettings(shapes=(("x", three),))).plan


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ((("x", ((1, 4, 8),) * 3),), "1x4x8 does not fit"),
        ((("x", ((1, 3),) * 3),), "1x3 does not fit"),
        ((("x", ((1, 3, 8),) * 3), ("z", ((1,),) * 3)), "z, which is no input"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(relu: Path, shapes: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        backend.build(relu, backend.BuildSettings(shapes=shapes))


@pytest.mark.parametrize("capability", ["sm86", "sm120"])
def test_an_engine_for_named_gpus(small: Path, capability: str) -> None:
    assert backend.build(small, backend.BuildSettings(capabilities=(capability,))).plan


def test_a_gpu_that_it_does_not_build_for_is_refused_with_those_it_knows(small: Path) -> None:
    with pytest.raises(StageError, match=r"no engines for sm90: it knows .*sm86"):
        backend.build(small, backend.BuildSettings(capabilities=("sm90",)))


def test_an_option_that_this_tensorrt_ignores_is_an_error(small: Path) -> None:
    with pytest.raises(StageError, match=r"HardwareCompatibilityLevel.* is unsupported"):
        backend.build(small, backend.BuildSettings(hardware="ampere+"))


def test_why_an_engine_cannot_be_built_is_told(small: Path) -> None:
    with pytest.raises(StageError, match=r"cannot build an engine of small\.onnx: .*libnvinfer_lean"):
        backend.build(small, backend.BuildSettings(version_compatible=True))


def test_the_timing_cache_is_kept_beside_and_a_damaged_one_replaced(small: Path, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "timing.cache"
    backend.build(small, backend.BuildSettings(), cache)
    first = cache.read_bytes()
    cache.write_bytes(b"damaged")
    backend.build(small, backend.BuildSettings(), cache)
    assert first
    assert cache.read_bytes() == first


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"opt_batch": 4, "max_batch": 2}, "opt_batch 4 is above max_batch 2"),
        ({"min_shapes": "x:1x3"}, "must name the same inputs"),
        ({"min_shapes": "x=1"}, "is no shape"),
        ({"workspace": "many"}, "many"),
        ({"capabilities": "ampere"}, "is no compute capability"),
        ({"optimization_level": 6}, "less than or equal to 5"),
        ({"precision": "int8"}, "'auto' or 'fp16'"),
    ],
)
def test_wrong_options_are_refused(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compiler.CompileOptions(**options)


@pytest.mark.parametrize(
    ("options", "precision", "said"),
    [
        ({"precision": "fp16"}, "int8", "fp16 is made from an fp32 model"),
        ({"tf32": True}, "int8", "tf32 is of fp32 layers"),
        ({}, "int8-weights", "Q/DQ of weights and activations"),
        ({}, "int8-dynamic", "Q/DQ of weights and activations"),
    ],
)
def test_what_makes_no_sense_is_left_out_with_the_reason(options: Any, precision: str, said: str) -> None:
    assert said in str(compiler.objection(compiler.CompileOptions(**options), precision))


def test_a_recipe_names_tensorrt_with_its_options(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"model: {fashion.SAMPLE / 'model.onnx'}\n"
        f"data: {{calibration: {fashion.SAMPLE / 'test.npz'}}}\n"
        "preprocess: {mean: 73, std: 90}\n"
        "steps:\n  - quantize: [none, int8]\n  - compile: [onnxruntime, tensorrt, {tensorrt: {precision: fp16}}]\n"
    )
    made = plan.make(recipe.read(tmp_path / "recipe.yaml"))
    assert {"tensorrt", "tensorrt-fp16", "int8-tensorrt"} <= {candidate.id for candidate in made.candidates}
    assert "int8-tensorrt-fp16" in made.left_out


@without_gpu
def test_without_a_gpu_no_engine_is_built_for_the_device(for_jetson: fashion.Built) -> None:
    with pytest.raises(NoAccelerator):
        backend.load(for_jetson[1] / "model.onnx", for_jetson[0].runtime, 1)


@needs_gpu
@pytest.mark.parametrize(("name", "tolerance"), [("fp32", 1e-3), ("fp16", 2e-2)])
def test_outputs_are_those_of_the_source(name: str, tolerance: float, request: pytest.FixtureRequest) -> None:
    artifact, folder = request.getfixturevalue(name)
    images, _ = fashion.images_and_labels(40)  # more than the engine takes at once
    expected = fashion_outputs(images)
    found = backend.load(folder / artifact.main, artifact.runtime, 1).run({"image": images})["scores"]
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@needs_gpu
def test_a_bound_call_and_its_parts_are_timed(fp32: fashion.Built) -> None:
    session = backend.load(fp32[1] / "model.plan", {}, 1)
    feeds = {"image": fashion.images_and_labels(1)[0]}
    session.bind(feeds)()
    assert all(part > 0 for part in session.stages_ns(feeds))


def fashion_outputs(images: Any) -> Any:
    from edgeopt.backends import onnxruntime

    return onnxruntime.load(fashion.source()[1] / "model.onnx", {}, 1).run({"image": images})["scores"]


def test_layers_are_read_from_what_the_builder_logs() -> None:
    text = (
        "Layers:\nName: conv_0, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1], Datatype: Int8 }], "
        "Constants: [ { Name: w, Datatype: Half }], Outputs: [ { Name: y, Datatype: Float }], TacticName: t\n"
        "Name: wait_1, LayerType: wait, Inputs: [], Outputs: [], TacticName: , StreamId: 0, Metadata: "
    )
    assert backend.layers_in(text) == (
        Placed("correlation", "GPU", "int8", names=("conv_0",)),
        Placed("wait", "GPU", names=("wait_1",)),
    )


@pytest.mark.parametrize("tensor", [{"Datatype": "Half"}, {"Format/Datatype": "Row major linear FP16 format"}])
def test_layers_are_read_from_the_inspector_of_either_kind(tensor: Any) -> None:
    layer = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": []}
    assert backend.inspected(layer) == Placed("CaskConvolution", "GPU", "fp16", names=("conv",))


def test_exported_times_are_read_in_nanoseconds(tmp_path: Path) -> None:
    calls = [
        {"startEnqMs": 1.0, "h2dMs": 0.01, "computeMs": 0.5 + i / 100, "d2hMs": 0.002, "latencyMs": 0.512 + i / 100}
        for i in range(100)
    ]
    (tmp_path / "times.json").write_text(json.dumps(calls))
    times = trtexec.read_times(tmp_path / "times.json")
    assert (times.copy_in_ns[0], times.compute_ns[1], times.copy_out_ns[0]) == (10_000, 510_000, 2_000)
    found = times.percentiles()
    assert found["p50"] is not None
    assert found["p50"].value == 1_002_000
    assert found["p99"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"),
        ("{}", "no list of calls"),
        ("[]", "no list of calls"),
        ('[{"h2dMs": 1}]', "call 0 has None for computeMs"),
        ('[{"h2dMs": -1, "computeMs": 1, "d2hMs": 1, "latencyMs": 1}]', "call 0 has -1 for h2dMs"),
    ],
)
def test_other_files_are_no_exported_times(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "times.json").write_text(text)
    with pytest.raises(InputError, match=said):
        trtexec.read_times(tmp_path / "times.json")


def test_the_printed_summary_is_read() -> None:
    found = trtexec.read_summary(
        "[11/22/2026-10:00:00] [I] Throughput: 1942.67 qps\n"
        "[11/22/2026-10:00:00] [I] Latency: min = 0.5 ms, max = 2.25 ms, mean = 0.6 ms, median = 0.55 ms, "
        "percentile(90%) = 0.7 ms, percentile(95%) = 0.8 ms, percentile(99%) = 1.5 ms\n"
        "[11/22/2026-10:00:00] [I] GPU Compute Time: min = 0.4 ms, max = 2 ms, mean = 0.45 ms, median = 0.44 ms, "
        "percentile(90%) = 0.5 ms\n"
    )
    assert found.throughput_per_s == 1942.67
    assert found.parts["latency_ns"]["p99"] == 1_500_000
    assert found.parts["compute_ns"] == {
        "min": 400_000, "max": 2_000_000, "mean": 450_000, "median": 440_000, "p90": 500_000,
    }  # fmt: skip


def test_other_text_is_no_summary() -> None:
    with pytest.raises(InputError, match="no output of trtexec"):
        trtexec.read_summary("Hello")
