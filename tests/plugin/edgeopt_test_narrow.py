"""Stages as another package would bring them, for searches and for time limits: hidden units leave, and a training.

`narrow` cuts hidden units out of the model that `model` writes; `practise` takes so many seconds, keeps how far it is,
and leaves the model as it was.
"""

from __future__ import annotations

import shutil
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeopt import units
from edgeopt.errors import StageError
from edgeopt.stages import Options, Produced, Search

VERSION = 1
INPUTS, HIDDEN, CLASSES = 256, 8192, 5
UNIT = 2048  # hidden units leave in such blocks: shares that round alike give the same network


def model(path, hidden=HIDDEN):
    draw = np.random.default_rng(0)
    shapes = {"w0": (INPUTS, HIDDEN), "w1": (HIDDEN, CLASSES)}
    weights = {name: (draw.standard_normal(s) / np.sqrt(s[0])).astype(np.float32) for name, s in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["scores"]),
    ]
    kept = {"w0": weights["w0"][:, :hidden], "w1": weights["w1"][:hidden]}
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in kept.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


class NarrowOptions(Options):
    share: str | None = None
    latency: str | None = None
    size: str | None = None
    unit: int = UNIT
    fail: bool = False

    def told(self):
        shown = (self.share or "auto").removesuffix(" %")
        return {"share": f"narrow{shown}", "latency": f"narrow-{self.latency}", "size": f"narrow-{self.size}"}


def choices():
    return {"": NarrowOptions}


def tools(choice, options):
    return ("onnx",)


def sample_roles(choice, options, precision):
    return ()


def objection(choice, options, precision):
    return None


def precision(choice, options, precision):
    return precision


def search(choice, options):
    if options.latency:
        return Search("latency p50", units.parse_time(options.latency))
    if options.size:
        return Search("size", units.parse_size(options.size))
    return None if options.share else Search(rungs=2)


def at(choice, options, fraction):
    return options.model_copy(update={"share": f"{fraction * 100:g} %", "latency": None, "size": None})


def is_identity(choice, options):
    return options.share == "0 %"


def run(job):
    if job.options.fail:
        raise StageError("too narrow")
    unit = job.options.unit
    left = HIDDEN - round(units.parse_fraction(job.options.share) * HIDDEN / unit) * unit
    model(job.out / "model.onnx", max(left, unit))
    return Produced("onnx", "model.onnx", job.parent.inputs, job.parent.outputs, "fp32")


class PractiseOptions(Options):
    seconds: float = 0.0

    def told(self):
        return {"seconds": "practised"}


class Practise:
    """The stage `practise`."""

    VERSION = 1
    RECOVERS = True
    tools = staticmethod(tools)
    objection = staticmethod(objection)
    precision = staticmethod(precision)

    def choices(self):
        return {"": PractiseOptions}

    def sample_roles(self, choice, options, precision):
        return ("train",)

    def run(self, job):
        job.scratch.mkdir(parents=True, exist_ok=True)
        done = job.scratch / "tenths"
        before = int(done.read_text()) if done.exists() else 0
        for tenth in range(before, round(job.options.seconds * 10)):
            time.sleep(0.1)
            done.with_suffix(".new").write_text(str(tenth + 1))
            done.with_suffix(".new").replace(done)
        shutil.copyfile(job.parent_folder / job.parent.main, job.out / "model.onnx")
        details = {"before": before}
        return Produced("onnx", "model.onnx", job.parent.inputs, job.parent.outputs, "fp32", details=details)


PRACTISE = Practise()
