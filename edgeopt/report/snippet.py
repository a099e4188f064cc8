"""The lines of Python that run a bundle's model with numpy and its runtime alone, on its golden samples.

They do what `edgeopt.backends`, `edgeopt.samples.Preprocess` and `edgeopt.samples.adapt` do. A runtime that takes more
than a few lines is run by `edgeopt.load`.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Sequence

from edgeopt.artifact import Artifact, TensorSpec
from edgeopt.backends import openvino
from edgeopt.samples import Preprocess

OPENVINO_SETTINGS = {
    "precision": "INFERENCE_PRECISION_HINT",
    openvino.DYNAMIC: openvino.DYNAMIC.upper(),
    openvino.SPARSE: "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE",
}
_TAKEN = frozenset({
    "given", "golden", "interpreter", "list", "model", "np", "onnxruntime", "openvino", "options", "outputs", "session",
    "value", "zip",
})  # fmt: skip


def code_to_run(
    backend: str, artifact: Artifact, preprocess: Preprocess, golden_inputs: Sequence[str], golden_samples: int
) -> list[str]:
    """Lines of Python that run a bundle in its own folder; `outputs` are then its outputs, in the artifact's order."""
    load = 'golden = np.load("golden.npz")'
    if backend not in RUNTIMES:
        raw = ", ".join(f'golden["input-{index}"]' for index in range(len(golden_inputs)))
        return ["import numpy as np", "import edgeopt", "", load, f'outputs = edgeopt.load(".")({raw})']
    names = [_variable(spec.name, index) for index, spec in enumerate(artifact.inputs)]
    by_name = all(spec.name in golden_inputs for spec in artifact.inputs)
    feeds = []
    for position, (name, spec) in enumerate(zip(names, artifact.inputs, strict=True)):
        index = golden_inputs.index(spec.name) if by_name else position
        feeds.append(f"{name} = {_feed(index, spec, preprocess, golden_samples)}")
    needed, run = RUNTIMES[backend]
    return ["import numpy as np", needed, "", load, *feeds, *run(artifact, names)]


def _onnxruntime(artifact: Artifact, names: Sequence[str]) -> list[str]:
    options = 'options.add_session_config_entry("session.disable_quant_qdq", "1")  # dequantize the weights once'
    folds = bool(artifact.runtime.get("fold_weights"))
    feeds = ", ".join(f"{json.dumps(spec.name)}: {name}" for name, spec in zip(names, artifact.inputs, strict=True))
    main = json.dumps(artifact.main) + (", options" if folds else "")
    return [
        *(["options = onnxruntime.SessionOptions()", options] if folds else []),
        f'session = onnxruntime.InferenceSession({main}, providers=["CPUExecutionProvider"])',
        f"outputs = session.run(None, {{{feeds}}})",
    ]


def _openvino(artifact: Artifact, names: Sequence[str]) -> list[str]:
    asked = {"precision": "f32", **artifact.runtime}  # left to itself it computes in bf16 where the CPU can
    settings = json.dumps({OPENVINO_SETTINGS[name]: value for name, value in asked.items()})
    return [
        f'model = openvino.Core().compile_model({json.dumps(artifact.main)}, "CPU", {settings})',
        f"outputs = list(model([{', '.join(names)}]).values())",
    ]


def _tflite(artifact: Artifact, names: Sequence[str]) -> list[str]:
    return [
        f"interpreter = Interpreter({json.dumps(artifact.main)})",
        *(
            f"interpreter.resize_tensor_input(interpreter.get_input_details()[{index}]['index'], {name}.shape)"
            for index, (name, spec) in enumerate(zip(names, artifact.inputs, strict=True))
            if any(isinstance(size, str) for size in spec.shape)
        ),
        "interpreter.allocate_tensors()",
        f"for given, value in zip(interpreter.get_input_details(), [{', '.join(names)}]):",
        '    interpreter.set_tensor(given["index"], value)',
        "interpreter.invoke()",
        'outputs = [interpreter.get_tensor(given["index"]) for given in interpreter.get_output_details()]',
    ]


RUNTIMES: dict[str, tuple[str, Callable[[Artifact, Sequence[str]], list[str]]]] = {
    "onnxruntime": ("import onnxruntime", _onnxruntime),
    "openvino": ("import openvino", _openvino),
    "tflite": ("from ai_edge_litert.interpreter import Interpreter", _tflite),
}


def _feed(index: int, spec: TensorSpec, preprocess: Preprocess, golden_samples: int) -> str:
    """An expression for an input: as many golden samples as the model takes, as `samples.adapt` makes them."""
    value = f'golden["input-{index}"]'
    batch = spec.shape[0] if spec.shape else None
    if isinstance(batch, int):
        repeated = f"np.resize({value}, ({batch}, *{value}.shape[1:]))"
        value = f"{value}[:{batch}]" if batch <= golden_samples else repeated
    if preprocess.transpose:
        value = f"{value}.transpose({', '.join(map(str, (0, *(axis + 1 for axis in preprocess.transpose))))})"
    if preprocess.mean or preprocess.std:
        value = f"{value}.astype(np.float32)"
    rank = len(spec.shape)
    if preprocess.mean:
        value = f"({value} - {_array(preprocess.mean, rank)})"
    if preprocess.std:
        value = f"{value} / {_array(preprocess.std, rank)}"
    if spec.layout == "NHWC":
        value = f"np.moveaxis({value}, 1, -1)"
    if spec.scale is not None:
        steps = f"np.round(({value}) / np.float32({spec.scale!r})) + {spec.zero_point or 0}"
        value = f"np.clip({steps}, *{_ends(spec.dtype)})"
    return f"np.ascontiguousarray({value}, np.{spec.dtype})"


def _array(numbers: Sequence[float], rank: int) -> str:
    if len(numbers) == 1:
        return f"np.float32({numbers[0]!r})"
    return f"np.reshape(np.float32({list(numbers)}), {(1, -1, *(1,) * (rank - 2))})"


def _ends(dtype: str) -> str:
    import numpy as np

    return str((int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)))


def _variable(name: str, index: int) -> str:
    """A name for an input in Python; those that stand for something else already are replaced."""
    usable = re.fullmatch(r"[a-z][a-z0-9_]*", name) and not keyword.iskeyword(name) and name not in _TAKEN
    return name if usable else f"input_{index}"
