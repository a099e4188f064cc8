"""A teacher run in the fastest backend at hand, for a student to learn from.

On a GPU that is torch itself; else OpenVINO, in bf16 where only the ranking of classes matters; else onnxruntime; else
torch. Measured on the Fashion-MNIST sample, 2 cores with AMX, batches of 128, microseconds an image: OpenVINO bf16 97,
fp32 553, torch bf16 249, fp32 741, onnxruntime 1428.

It knows nothing of training.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import backends
from edgeopt.artifact import TensorSpec
from edgeopt.errors import EdgeoptError, StageError
from edgeopt.formats import canonical, onnx_to_torch

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True)
class Teacher:
    """Takes the inputs of the student as arrays in their order, gives the outputs in the order of `outputs`.

    `backend` says what runs it: "openvino bf16".
    """

    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    run: Run

    def __call__(self, values: Sequence[Array]) -> list[Array]:
        import numpy as np

        names = [spec.name for spec in self.inputs]
        feeds = canonical.fit(dict(zip(names, values)), self.inputs, "the teacher")
        count, fixed = len(values[0]), self.inputs[0].shape[0]
        step = fixed if isinstance(fixed, int) else count
        pieces = [
            self.run({name: value[start : start + step] for name, value in feeds.items()})
            for start in range(0, count, step)
        ]
        found = [np.concatenate([piece[spec.name] for piece in pieces]) for spec in self.outputs]
        for value, spec in zip(found, self.outputs):
            if len(value) != count:
                raise StageError(f"the teacher's output {spec.name} has {len(value)} rows for {count} samples")
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise StageError(f"the teacher's output {spec.name} has NaN or infinity for a training sample")
        return found


def load(
    model: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], threads: int, *, rough: bool
) -> Teacher:
    """The teacher of a canonical ONNX file with that signature. `rough` allows bf16.

    Raises StageError where nothing that is installed runs it.
    """
    refusals: list[str] = []
    for name, open_session in _ways(model, threads, rough):
        try:
            run = open_session()
        except EdgeoptError as error:
            refusals.append(f"{name}: {error.message}")
            continue
        return Teacher(name, tuple(inputs), tuple(outputs), run)
    raise StageError("\n".join(["nothing here runs the teacher", *refusals]), remedy="Install openvino or onnxruntime.")


def _ways(model: Path, threads: int, rough: bool) -> list[tuple[str, Callable[[], Run]]]:
    ways: list[tuple[str, Callable[[], Run]]] = []
    gpu = _gpu()
    if gpu:
        ways.append((f"torch {gpu}", partial(_torch, model, gpu)))
    for name, precision in (("openvino", "bf16"), ("openvino", "f32"), ("onnxruntime", "")):
        if backends.status(name).usable and (rough or precision != "bf16"):
            ways.append((f"{name} {precision}".strip(), partial(_session, name, model, precision, threads)))
    return [*ways, ("torch cpu", partial(_torch, model, "cpu"))]


def _session(name: str, model: Path, precision: str, threads: int) -> Run:
    session = backends.find(name).load(model, {"precision": precision} if precision else {}, threads)
    run: Run = session.run
    return run


def _gpu() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else None


def _torch(model: Path, device: str) -> Run:
    import onnx
    import torch

    module = onnx_to_torch.import_onnx(model).to(device).eval()
    graph = onnx.load(str(model), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    outputs = [value.name for value in graph.output]

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            found = module(*(torch.from_numpy(feeds[name]).to(device) for name in inputs))
        values = found if isinstance(found, (tuple, list)) else (found,)
        return {name: value.float().cpu().numpy() for name, value in zip(outputs, values)}

    return run
