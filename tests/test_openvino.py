import os
import shutil
import subprocess
import sys

import fashion
import numpy as np
import pytest

from edgeopt.backends import openvino as backend
from edgeopt.compilers import openvino as compiler
from edgeopt.errors import CorruptArtifact, InputError, UnsupportedOperator
from edgeopt.stages import compile as stage

CAPABILITIES = frozenset(backend.runtime_module().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
ON_A_WEAKER_CPU = """
import sys
from pathlib import Path
from edgeopt.backends import openvino
from edgeopt.errors import StageError
try:
    openvino.load(Path(sys.argv[1]), {"precision": "f16"}, 1)
except StageError as error:
    print(error.message)
"""


def loaded(of_int8=False, precision="auto"):
    artifact, folder = fashion.compiled("openvino", of_int8, precision)
    return backend.load(folder / artifact.main, artifact.runtime, threads=1)


def test_int8_computes_its_convolutions_in_8_bits():
    artifact, folder = fashion.compiled("openvino", of_int8=True)
    openvino = backend.runtime_module()
    model = openvino.Core().compile_model(str(folder / artifact.main), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    notes = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    convolutions = [
        note["runtimePrecision"].astype(str) for note in notes if note["layerType"].astype(str) == "Convolution"
    ]
    assert len(convolutions) == 15
    assert set(convolutions) <= {"u8", "i8"}


def test_the_precision_is_always_told():
    assert fashion.compiled("openvino")[0].runtime == {"precision": "f32"}
    assert fashion.compiled("openvino", of_int8=True)[0].runtime == {"precision": "f32"}


def test_bf16_is_the_same_files_with_another_setting():
    floating, half = (fashion.compiled("openvino", precision=precision)[0] for precision in ("auto", "bf16"))
    assert half.files == floating.files
    assert (half.precision, half.runtime) == ("bf16", {"precision": "bf16"})
    assert half.digest != floating.digest


@pytest.mark.skipif("BF16" not in CAPABILITIES, reason="this CPU has no bf16 arithmetic")
def test_bf16_computes_otherwise_than_f32_and_keeps_accuracy():
    images, _ = fashion.images_and_labels()
    floating, half = loaded(), loaded(precision="bf16")
    assert not np.array_equal(floating.run({"image": images[:4]})["scores"], half.run({"image": images[:4]})["scores"])
    assert fashion.top1(half) > fashion.top1(floating) - 0.005


def test_fp16_weights_halve_the_file():
    floating, half = (fashion.compiled("openvino", precision=precision)[0] for precision in ("auto", "fp16"))
    assert half.size_bytes < 0.6 * floating.size_bytes
    assert (half.precision, half.runtime, half.details["weights"]) == ("fp32", {"precision": "f32"}, "fp16")


@pytest.mark.parametrize("of_int8", [False, True])
def test_compiling_in_another_folder_gives_the_same_bytes(tmp_path, of_int8):
    artifact, folder = fashion.int8() if of_int8 else fashion.source()
    shutil.copytree(folder, tmp_path / "elsewhere")
    again, _ = fashion.run_stage(stage, "openvino", (artifact, tmp_path / "elsewhere"), tmp_path / "again")
    assert again.digest == fashion.compiled("openvino", of_int8)[0].digest


def test_other_precisions_object_to_an_int8_parent():
    for precision in ("bf16", "fp16"):
        assert compiler.objection(compiler.CompileOptions(precision=precision), "int8")
        assert compiler.objection(compiler.CompileOptions(precision=precision), "fp32") is None
    assert compiler.objection(compiler.CompileOptions(), "int8") is None


def test_sparse_weights_are_a_setting_of_an_int8_model_and_change_no_output():
    artifact, folder = fashion.run_stage(
        stage, "openvino", fashion.int8(), fashion.scratch() / "sparse-weights", sparse_weights="50 %"
    )
    assert artifact.runtime == {"precision": "f32", "sparse_weights": 0.5}
    images, _ = fashion.images_and_labels()
    packed, plain = (
        backend.load(at / made.main, made.runtime, 1).run({"image": images[:4]})["scores"]
        for made, at in ((artifact, folder), fashion.compiled("openvino", of_int8=True))
    )
    np.testing.assert_array_equal(packed, plain)
    options = compiler.CompileOptions(sparse_weights="50 %")
    assert "int8 weights alone" in str(compiler.objection(options, "fp32"))


def test_a_precision_that_the_cpu_lacks_is_refused():
    artifact, folder = fashion.compiled("openvino")
    ran = subprocess.run(
        [sys.executable, "-c", ON_A_WEAKER_CPU, str(folder / artifact.main)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "this CPU has no f16 arithmetic"


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("of_int8", [False, True])
def test_any_batch_size_runs(batch, of_int8):
    images, _ = fashion.images_and_labels()
    session = loaded(of_int8)
    each = np.concatenate([session.run({"image": images[i : i + 1]})["scores"] for i in range(3)])
    assert np.allclose(
        session.run({"image": images[:batch]})["scores"][:3], each[:batch], atol=0.2 if of_int8 else 1e-4
    )


def test_a_free_batch_is_compiled_for_the_shape_that_is_timed():
    images, _ = fashion.images_and_labels()
    session = loaded()
    session.bind({"image": images[:4]})()
    assert set(session._compiled) == {((0, (1, 1, 28, 28)),), ((0, (4, 1, 28, 28)),)}


def test_signature_names_the_free_batch():
    session = loaded(of_int8=True)
    assert [str(spec) for spec in session.inputs] == ["image: float32[batch, 1, 28, 28]"]
    assert [str(spec) for spec in session.outputs] == ["scores: float32[batch, 10]"]


def test_its_telemetry_stays_out():
    load = "import sys; from edgeopt.backends import openvino; openvino.runtime_module();"
    code = f"{load} print(sys.modules['openvino_telemetry'])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "None"


@pytest.mark.parametrize("content", ["", "not a model", "<net><layers></net>", None])
def test_a_file_that_is_no_model_is_corrupt(tmp_path, content):
    file = tmp_path / "model.xml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CorruptArtifact, match=r"model\.xml"):
        backend.load(file, {}, 1)


@pytest.mark.parametrize("left", [0, 1000, None])
def test_weights_that_are_cut_or_missing_are_corrupt(tmp_path, left):
    _, folder = fashion.compiled("openvino")
    shutil.copyfile(folder / "model.xml", tmp_path / "model.xml")
    if left is not None:
        (tmp_path / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:left])
    with pytest.raises(CorruptArtifact):
        backend.load(tmp_path / "model.xml", {}, 1)


def test_an_operator_that_the_reader_lacks_is_named(tmp_path):
    _, folder = fashion.compiled("openvino")
    shutil.copyfile(folder / "model.bin", tmp_path / "model.bin")
    text = (folder / "model.xml").read_text().replace('type="ReLU"', 'type="Swirl"', 1)
    (tmp_path / "model.xml").write_text(text)
    with pytest.raises(UnsupportedOperator, match="Swirl"):
        backend.load(tmp_path / "model.xml", {}, 1)


def test_a_precision_that_it_does_not_know_is_refused():
    artifact, folder = fashion.compiled("openvino")
    with pytest.raises(InputError, match="int3"):
        backend.load(folder / artifact.main, {"precision": "int3"}, 1)
