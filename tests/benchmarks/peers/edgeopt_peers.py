"""What users run today, as backends: onnxruntime as it comes, and the torch module itself. For `winner.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgeopt.backends import BoundRun


class OnnxRuntimeDefault:
    """An InferenceSession without any setting: every core, every default."""

    FORMAT = "onnx"
    DISTRIBUTION = "onnxruntime"
    IMPORTS = ("onnxruntime",)

    def load(self, main, runtime, threads):
        import onnxruntime

        return _Session(onnxruntime.InferenceSession(str(main)))


class _Session:
    def __init__(self, session):
        self._session = session

    def run(self, feeds):
        return self._session.run(None, dict(feeds))

    def bind(self, feeds):
        return BoundRun(self.run, feeds)


class TorchEager:
    """The factory `runtime["function"]` of the file `main`, its weights beside it, in inference mode."""

    FORMAT = "torch"
    DISTRIBUTION = "torch"
    IMPORTS = ("torch",)

    def load(self, main, runtime, threads):
        import torch

        torch.set_num_threads(threads)
        spec = importlib.util.spec_from_file_location("factory", main)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = getattr(module, runtime["function"])().eval()
        if runtime["weights"]:
            from safetensors.torch import load_file

            model.load_state_dict(load_file(Path(main).parent / runtime["weights"]))
        return _Eager(model)


class _Eager:
    def __init__(self, model):
        self._model = model

    def run(self, feeds):
        import torch

        with torch.inference_mode():
            return self._model(*(torch.from_numpy(value) for value in feeds.values()))

    def bind(self, feeds):
        return BoundRun(self.run, feeds)


ONNXRUNTIME_DEFAULT = OnnxRuntimeDefault()
TORCH_EAGER = TorchEager()
