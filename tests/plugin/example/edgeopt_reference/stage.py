"""`- round: {bits: 7}`: float weights keep so many bits of their mantissa, and the file is easier to compress."""

import numpy as np
from pydantic import Field

from edgeopt.stages import Options, Produced

VERSION = 1
MANTISSA = 23  # bits of a float32


class RoundOptions(Options):
    """`bits` of 23 are kept."""

    bits: int = Field(default=10, ge=1, le=MANTISSA - 1)

    def told(self):
        return {"bits": f"round{self.bits}"}


def choices():
    return {"": RoundOptions}


def tools(choice, options):
    return ("onnx",)


def sample_roles(choice, options, precision):
    return ()


def objection(choice, options, precision):
    return "the model is quantized already" if precision.startswith("int") else None


def precision(choice, options, precision):
    return precision


def run(job):
    """Requires an ONNX model in float. Ensures the same graph."""
    import onnx

    job.progress(None, "rounding the weights")
    model, unit = onnx.load(str(job.parent_folder / job.parent.main)), 1 << MANTISSA - job.options.bits
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            bits = onnx.numpy_helper.to_array(tensor).view(np.uint32)
            rounded = (bits + np.uint32(unit // 2)) & ~np.uint32(unit - 1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded.view(np.float32), tensor.name))
    onnx.save(model, str(job.out / "model.onnx"))
    return Produced("onnx", "model.onnx", job.parent.inputs, job.parent.outputs, job.parent.precision)
