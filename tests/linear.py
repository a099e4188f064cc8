"""A linear model of eight features and four classes in the formats of all runtimes, as bare files and as bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeopt.artifact import Artifact, MadeBy, TensorSpec, list_files
from edgeopt.bundle import Bundle, write_bundle
from edgeopt.samples import Preprocess

FEATURES, CLASSES, SAMPLES = 8, 4, 40
PREPROCESS = Preprocess((128.0,), (64.0,))
RAW = np.random.default_rng(0).integers(0, 256, (SAMPLES, FEATURES)).astype(np.uint8)
WEIGHT = np.random.default_rng(1).standard_normal((FEATURES, CLASSES)).astype(np.float32)
SCORES = PREPROCESS.apply(RAW) @ WEIGHT
LABELS = SCORES.argmax(1)
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino", "tflite": "tflite"}


def save_onnx(path: Path, dtype: str = "float32") -> None:
    """y = x @ w; inputs of another dtype are cast."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), helper.make_node("MatMul", ["f", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", element, ["batch", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def save_openvino(path: Path) -> None:
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([-1, FEATURES], np.float32, name="x")
    y = ops.matmul(x, ops.constant(WEIGHT), transpose_a=False, transpose_b=False)
    x.output(0).set_names({"x"})
    y.output(0).set_names({"y"})
    openvino.save_model(openvino.Model([ops.result(y)], [x], "linear"), path, compress_to_fp16=False)


def save_tflite(path: Path) -> None:
    """One FULLY_CONNECTED, whose weights are (out, in), at a batch of one."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name: str, shape: list[int], buffer: int) -> schema.TensorT:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, shape, buffer, schema.TensorType.FLOAT32
        return made

    model, graph, code, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1], [2]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph.tensors = [tensor("x", [1, FEATURES], 0), tensor("w", [CLASSES, FEATURES], 1), tensor("y", [1, CLASSES], 0)]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    weights = schema.BufferT()
    weights.data = np.frombuffer(np.ascontiguousarray(WEIGHT.T).tobytes(), np.uint8)
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT(), weights]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def bundle(
    folder: Path, backend: str = "onnxruntime", wrong_by: float = 0.0, preprocess: Preprocess = PREPROCESS
) -> Bundle:
    """The model as the bundle `folder`, made of files in <folder>-files. `wrong_by` is added to one golden output.

    Without preprocessing its golden samples are float32 already.
    """
    files = folder.with_name(f"{folder.name}-files")
    files.mkdir(parents=True)
    main = {"onnxruntime": "model.onnx", "openvino": "model.xml", "tflite": "model.tflite"}[backend]
    if backend == "onnxruntime":
        save_onnx(files / main)
    else:
        {"openvino": save_openvino, "tflite": save_tflite}[backend](files / main)
    batch = 1 if backend == "tflite" else "batch"
    artifact = Artifact(
        format=FORMATS[backend],
        main=main,
        files=list_files(files),
        inputs=(TensorSpec("x", (batch, FEATURES), "float32"),),
        outputs=(TensorSpec("y", (batch, CLASSES), "float32"),),
        precision="fp32",
        made_by=MadeBy("test", 1, {}, {}),
    )
    expected = SCORES[:4].copy()
    expected[2, 1] += wrong_by
    quality = {"metric": "top1", "value": 1.0, "samples": SAMPLES}
    golden = {"x": RAW[:4] if preprocess.mean else PREPROCESS.apply(RAW[:4])}
    return write_bundle(folder, artifact, files, backend, golden, {"y": expected}, preprocess, [{"quality": quality}])


def save_data(path: Path, labels: np.ndarray | None = LABELS) -> None:
    np.savez(path, x=RAW, **({} if labels is None else {"labels": labels}))
