"""Each runtime gets the form that it is fast on, and INT8 keeps its accuracy on the instruction set it is made for.

ONEDNN_MAX_CPU_ISA makes OpenVINO behave as a weaker x86. onnxruntime's kernels (MLAS) and LiteRT's (XNNPACK) look at
the CPU themselves and cannot be made to, so that for them only the form is held here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fashion
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import isa
from edgeopt.backends import openvino as backend
from edgeopt.compilers.openvino import write_ir

ON_THAT_CPU = """
import sys
from pathlib import Path
import numpy as np
from edgeopt.backends import openvino
feeds = dict(np.load(sys.argv[1], allow_pickle=False))
sessions = [openvino.load(Path(main), {"precision": "f32"}, 1) for main in sys.argv[3:]]
np.savez(sys.argv[2], *(session.run(feeds)["scores"] for session in sessions))
"""
IMAGES = 200
CPUS = {"AVX2": fashion.AVX2, "AVX2_VNNI": fashion.VNNI, "AVX512_CORE_VNNI": fashion.VNNI}


@pytest.fixture(scope="module")
def floating() -> np.ndarray:
    import onnxruntime

    images, _ = fashion.images_and_labels()
    session = onnxruntime.InferenceSession(fashion.source()[1] / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images[:IMAGES]})[0]


def on(level: str, feeds: dict[str, np.ndarray], *mains: Path) -> list[np.ndarray]:
    """The scores of each model on an emulated CPU."""
    given, made = fashion.scratch() / f"isa-{level}.npz", fashion.scratch() / f"isa-{level}-scores.npz"
    np.savez(given, **feeds)
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": level}
    command = [sys.executable, "-c", ON_THAT_CPU, str(given), str(made), *map(str, mains)]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    with np.load(made, allow_pickle=False) as arrays:
        return [arrays[f"arr_{index}"] for index in range(len(mains))]


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - found).sum()))


@pytest.mark.parametrize("level", CPUS)
def test_int8_keeps_its_scores_on_the_instruction_set_it_is_made_for(level: str, floating: np.ndarray) -> None:
    target = CPUS[level]
    artifact, folder = fashion.int8(target)
    assert artifact.details["overflow_fix"] is not isa.has_vnni(target.isa)
    main = fashion.scratch() / f"isa-{level}.xml"
    write_ir(folder / "model.onnx", main, fp16_weights=False)
    images, _ = fashion.images_and_labels()
    [scores] = on(level, {"image": images[:IMAGES]}, main)
    assert sqnr_db(floating, scores) > 20
    assert (scores.argmax(1) == floating.argmax(1)).mean() > 0.98


def product(integers: int) -> onnx.ModelProto:
    """uint8 activations, and 64 weights of one channel that all are `integers` steps of 1 / `integers`."""
    constants = {
        "scale": np.float32(1 / 255),
        "zero_point": np.uint8(0),
        "kernel": np.full((8, 64, 1, 1), integers, np.int8),
        "kernel_scale": np.full(8, 1 / integers, np.float32),
        "kernel_zero_point": np.zeros(8, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero_point"], ["image_q"]),
        helper.make_node("DequantizeLinear", ["image_q", "scale", "zero_point"], ["image_dq"]),
        helper.make_node("DequantizeLinear", ["kernel", "kernel_scale", "kernel_zero_point"], ["kernel_dq"], axis=0),
        helper.make_node("Conv", ["image_dq", "kernel_dq"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 64, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 8, 8, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_sums_of_8_bit_products_saturate_without_vnni_and_those_of_7_do_not(tmp_path: Path) -> None:
    """The reason of the overflow fix. Sums that are exactly 64 come out as about 33."""
    mains = []
    for integers in (127, 63):
        onnx.save(product(integers), tmp_path / "model.onnx")
        mains.append(tmp_path / f"{integers}.xml")
        write_ir(tmp_path / "model.onnx", mains[-1], fp16_weights=False)
    feeds = {"image": np.ones((1, 64, 8, 8), np.float32)}
    of_8_bits, of_7_bits = on("AVX2", feeds, *mains)
    assert of_8_bits.max() < 40
    assert np.allclose(of_7_bits, 64, rtol=1e-3)
    assert all(np.allclose(scores, 64, rtol=1e-3) for scores in on("AVX2_VNNI", feeds, *mains))


def test_openvino_computes_every_convolution_and_product_in_8_bits() -> None:
    artifact, folder = fashion.compiled("openvino", of_int8=True)
    core = backend.runtime_module().Core()
    model = core.compile_model(str(folder / artifact.main), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    notes = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    kinds = {
        (note["layerType"].astype(str), note["runtimePrecision"].astype(str))
        for note in notes
        if note["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul")
    }
    assert {kind for kind, _ in kinds} == {"Convolution", "FullyConnected"}
    assert {precision for _, precision in kinds} <= {"u8", "i8"}


def test_onnxruntime_computes_every_convolution_and_product_in_8_bits() -> None:
    operators = fashion.placement("onnxruntime", of_int8=True).counts
    assert operators["QLinearConv"] == 15
    assert operators["QGemm"] == 1
    assert not operators.keys() & {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"}


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # litert_torch's use of torch's pytrees
def test_litert_computes_every_operator_in_8_bits() -> None:
    pytest.importorskip("litert_torch")
    from edgeopt.formats import tflite

    artifact, folder = fashion.compiled("tflite", of_int8=True)
    assert artifact.details["float_operators"] == {}
    graph = tflite.read(folder / artifact.main).subgraphs[0]
    kinds = [tflite.dtype_name(tensor) for tensor in graph.tensors]
    assert kinds.count("float32") == len(graph.inputs) + len(graph.outputs)
