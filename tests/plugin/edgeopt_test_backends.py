"""Backends as another package would bring them: onnxruntime with one thread, well behaved and not.

The folder of this file is on PYTHONPATH in tests; the .dist-info beside it publishes the entry points.
"""

from __future__ import annotations

import ctypes
import sys
import time

from edgeopt.artifact import TensorSpec
from edgeopt.backends import BoundRun
from edgeopt.errors import UnsupportedOperator

DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8", "tensor(int8)": "int8"}


class Session:
    def __init__(self, main, threads, before):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(main), options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(map(_spec, self._session.get_inputs()))
        self.outputs = tuple(map(_spec, self._session.get_outputs()))
        self._before = before
        self._calls = 0

    def run(self, feeds):
        self._calls += 1
        self._before(self._calls)
        values = self._session.run(None, dict(feeds))
        return {spec.name: value for spec, value in zip(self.outputs, values)}

    def bind(self, feeds):
        return BoundRun(self.run, feeds)


class Backend:
    FORMAT = "onnx"
    DISTRIBUTION = "onnxruntime"
    IMPORTS = ("onnxruntime",)

    def __init__(self, before=lambda calls: None, at_load=lambda: None):
        self._before = before
        self._at_load = at_load

    def load(self, main, runtime, threads):
        self._at_load()
        return Session(main, threads, self._before)


def _spec(value):
    return TensorSpec(value.name, tuple(value.shape), DTYPES[value.type])


def _segfault():
    ctypes.string_at(0)


def _take_memory(kept=[]):  # noqa: B006
    for _ in range(64):
        kept.append(bytearray(b"\1") * (32 << 20))
        time.sleep(0.02)


def _refuse():
    raise UnsupportedOperator("no kernel for the operator GridSample")


class Doubling:
    """y = 2 x with numpy; called with NaN in x it gives NaN."""

    FORMAT = "none"
    DISTRIBUTION = "numpy"
    IMPORTS = ("numpy",)

    def load(self, main, runtime, threads):
        return self

    def run(self, feeds):
        return {"y": feeds["x"] * 2}

    def bind(self, feeds):
        return BoundRun(self.run, feeds)


def measure_and_tell(args, channel):
    """Measure, then the names of all packages imported in this process."""
    from edgeopt.measuring import candidate

    candidate.run(args, channel)
    return {"modules": sorted({name.partition(".")[0] for name in sys.modules})}


NUMPY = Doubling()
PLAIN = Backend()
SEGFAULT = Backend(at_load=_segfault)
HANG = Backend(at_load=lambda: time.sleep(600))
LATE_HANG = Backend(before=lambda calls: time.sleep(600 if calls == 60 else 0.004))
GLUTTON = Backend(at_load=_take_memory)
REFUSE = Backend(at_load=_refuse)
SLOW = Backend(before=lambda calls: time.sleep(0.002))
