import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fashion
import numpy as np
import onnx
import onnxruntime
import pytest

from edgeopt import isa
from edgeopt.compilers.openvino import write_ir
from edgeopt.errors import InputError
from edgeopt.samples import write_samples
from edgeopt.stages import quantize
from edgeopt.target import Target

ON_WEAKER_CPU = """
import sys
from pathlib import Path
import fashion
from edgeopt.backends import openvino
print(fashion.top1(openvino.load(Path(sys.argv[1]), {"precision": "f32"}, 1)))
"""


def session(path, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model():
    _, folder = fashion.int8()
    return onnx.load(str(folder / "model.onnx"))


def weights(model):
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays]
    return [tuple(arrays[name] for name in node.input) for node in nodes]


def test_weights_are_int8_symmetric_and_per_channel(model):
    found = weights(model)
    assert len(found) == 16
    for integers, scales, zero_points in found:
        assert integers.dtype == np.int8
        assert scales.shape == (integers.shape[0],)
        assert not zero_points.any()


def test_activations_have_one_scale(model):
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    assert all(not arrays[node.input[1]].dims for node in quantizers)


def test_every_operator_is_quantized():
    details = fashion.int8()[0].details
    assert (details["quantized_operators"], details["float_operators"]) == (23, {})


def test_full_bias_correction_works_where_both_sides_of_an_add_are_convolutions():
    details = fashion.int8()[0].details
    assert details["bias_correction"] == "full"
    assert "bias_correction_fell_back" not in details


def test_fast_bias_correction_takes_over_and_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "_sessions_without_fusion", contextlib.nullcontext)
    details = fashion.run_stage(quantize, "int8", fashion.source(), tmp_path / "out")[0].details
    if details["bias_correction"] == "full":
        pytest.skip("this onnxruntime no longer loses outputs where it fuses Conv and Add")
    assert details["bias_correction"] == "fast"
    assert "Failed to find node output" in details["bias_correction_fell_back"]


def test_signature_is_kept_and_nothing_stale_is_left(model):
    assert [given.name for given in model.graph.input] == ["image"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [given.name for given in model.graph.output] == ["scores"]
    assert not model.graph.value_info


def test_same_inputs_give_the_same_bytes(tmp_path):
    again, _ = fashion.run_stage(quantize, "int8", fashion.source(), tmp_path / "again")
    assert again.digest == fashion.int8()[0].digest


def test_accuracy_is_kept_without_any_lowering():
    images, labels = fashion.images_and_labels()
    hits = [
        (session(folder / "model.onnx").run(None, {"image": images})[0].argmax(1) == labels).mean()
        for _, folder in (fashion.source(), fashion.int8())
    ]
    assert hits[0] > 0.9
    assert hits[1] > hits[0] - 0.005


def test_overflow_fix_keeps_weights_to_7_bits_on_avx2():
    def widest(target):
        _, folder = fashion.int8(target)
        return max(
            int(np.abs(integers.astype(int)).max()) for integers, _, _ in weights(onnx.load(folder / "model.onnx"))
        )

    assert fashion.int8(fashion.AVX2)[0].details["overflow_fix"] is True
    assert widest(fashion.AVX2) <= 64 < widest(fashion.VNNI)


@pytest.mark.parametrize(
    ("level", "target"),
    [("AVX2", fashion.AVX2), ("AVX512_CORE", fashion.AVX2), ("AVX512_CORE_VNNI", fashion.VNNI)],
)
def test_accuracy_is_kept_on_weaker_cpus(level, target):
    _, folder = fashion.int8(target)
    main = fashion.scratch() / f"{level}.xml"
    write_ir(folder / "model.onnx", main, fp16_weights=False)
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": level, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", ON_WEAKER_CPU, str(main)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    images, labels = fashion.images_and_labels()
    floating = session(fashion.source()[1] / "model.onnx").run(None, {"image": images})[0]
    assert float(ran.stdout) > (floating.argmax(1) == labels).mean() - 0.01


@pytest.mark.parametrize(
    ("target", "fixed"),
    [
        (Target("vnni", arch="x86_64", isa=("avx512_vnni",)), False),
        (Target("amx", arch="x86_64", isa=("amx_int8",)), False),
        (Target("avx512", arch="x86_64", isa=("avx2", "avx512f")), True),
        (Target("unknown", arch="x86_64", reach={"ssh": "device"}), True),
        (Target("pi", arch="aarch64", isa=("asimd", "asimddp"), reach={"ssh": "pi"}), False),
    ],
)
def test_overflow_fix_follows_the_instruction_set(target, fixed):
    assert quantize.needs_overflow_fix(quantize.Int8Options(), target) is fixed


def test_overflow_fix_can_be_told():
    options = quantize.Int8Options(overflow_fix="disable")
    assert quantize.needs_overflow_fix(options, fashion.AVX2) is False


def test_ignored_nodes_stay_in_float(tmp_path):
    artifact, _ = fashion.run_stage(
        quantize,
        "int8",
        fashion.source(),
        tmp_path / "out",
        bias_correction="none",
        ignore=(".*linear",),
    )
    assert artifact.details["bias_correction"] == "none"
    assert "Gemm" in artifact.details["float_operators"]


def test_a_pattern_that_matches_nothing_is_the_users_mistake(tmp_path):
    with pytest.raises(InputError, match="no_such_node"):
        fashion.run_stage(quantize, "int8", fashion.source(), tmp_path / "out", ignore=("no_such_node",))


def test_no_calibration_samples_is_the_users_mistake(tmp_path, monkeypatch):
    write_samples(tmp_path, {"image": np.zeros((0, 1, 28, 28), np.uint8)}, None, fashion.PREPROCESS)
    monkeypatch.setattr(fashion, "calibration", lambda: tmp_path)
    with pytest.raises(InputError, match="calibration samples"):
        fashion.run_stage(quantize, "int8", fashion.source(), tmp_path / "out")


def test_progress_tells_how_many_samples_are_done(tmp_path):
    told = []
    fashion.run_stage(
        quantize,
        "int8",
        fashion.source(),
        tmp_path / "out",
        progress=lambda fraction, text: told.append(fraction),
        bias_correction="fast",
    )
    known = [fraction for fraction in told if fraction is not None]
    assert known[0] == 0
    assert max(known) == 63 / 64
    assert known == sorted(known)


def test_a_model_without_node_names_and_of_an_old_opset_is_quantized(tmp_path):
    artifact, folder = fashion.source()
    old = onnx.version_converter.convert_version(onnx.load(str(folder / "model.onnx")), 18)
    for node in old.graph.node:
        node.name = ""
    onnx.save(old, str(tmp_path / "model.onnx"))
    made, _ = fashion.run_stage(quantize, "int8", (artifact, tmp_path), tmp_path / "out", bias_correction="fast")
    assert made.details["quantized_operators"] == 23


def test_int8_is_not_quantized_again():
    assert quantize.objection("int8", quantize.Int8Options(), "int8")
    assert quantize.objection("int8", quantize.Int8Options(), "fp32") is None


def test_none_needs_nothing():
    options = quantize.choices()["none"]()
    assert quantize.tools("none", options) == ()
    assert quantize.sample_roles("none", options, "fp32") == ()


def test_instruction_sets_are_read_from_cpuinfo(tmp_path, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n")
    assert isa.instruction_sets(file) == ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    file.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert isa.instruction_sets(file) == ("asimd", "asimddp")
    assert isa.instruction_sets(tmp_path / "absent") == ()


def test_instruction_sets_honour_an_emulated_weaker_cpu(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    file.write_text("flags\t\t: avx2 avx512f avx512_vnni amx_int8\n")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert isa.instruction_sets(file) == ("avx2",)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert "amx_int8" in isa.instruction_sets(file)


def test_what_a_target_says_of_itself_comes_first():
    assert isa.of_target(fashion.AVX2) == ("avx2",)
    assert isa.of_target(replace(fashion.AVX2, isa=(), reach={"ssh": "device"})) == ()
