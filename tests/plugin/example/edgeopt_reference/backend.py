"""ONNX's own reference implementation as a runtime: every operator in numpy, slowly."""

import numpy as np

from edgeopt.artifact import TensorSpec
from edgeopt.backends import BoundRun, check_feeds
from edgeopt.errors import CorruptArtifact, InputError, UnsupportedOperator

FORMAT = "onnx"  # of the artifacts that it loads
DISTRIBUTION = "onnx"  # whose version stands in measurements
IMPORTS = ("onnx.reference",)  # looked for before it is used


def load(main, runtime, threads):
    """The session of the file `main`. numpy decides how many threads it takes."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.reference import ReferenceEvaluator

    if runtime:
        raise InputError(f"the backend reference has no runtime setting {', '.join(runtime)}")
    try:
        model = onnx.load(str(main))
    except (OSError, DecodeError) as error:
        raise CorruptArtifact(f"{main.name} is not an ONNX file: {error}") from error
    if not model.graph.node:
        raise CorruptArtifact(f"{main.name} is not an ONNX file: it has no nodes")
    try:
        return Session(model.graph, ReferenceEvaluator(model))
    except (NotImplementedError, onnx.reference.op_run.RuntimeImplementationError) as error:
        raise UnsupportedOperator(f"{main.name}: {error}") from error


class Session:
    def __init__(self, graph, evaluator):
        weights = {tensor.name for tensor in graph.initializer}
        self.inputs = tuple(spec(value) for value in graph.input if value.name not in weights)
        self.outputs = tuple(map(spec, graph.output))
        self.evaluator = evaluator

    def run(self, feeds):
        check_feeds(feeds, self.inputs)
        values = self.evaluator.run(None, dict(feeds))
        return {output.name: np.array(value) for output, value in zip(self.outputs, values)}

    def bind(self, feeds):
        check_feeds(feeds, self.inputs)
        return BoundRun(self.run, feeds)


def spec(value):
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    shape = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
    return TensorSpec(value.name, shape, tensor_dtype_to_np_dtype(tensor.elem_type).name)
