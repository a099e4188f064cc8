"""Rewrites of canonical Q/DQ ONNX into the form that is fast in one runtime: one file a runtime.

Each takes a model, leaves it as it is and returns another. They know nothing of calibration, of files or of speed.
OpenVINO has no file: it takes canonical Q/DQ as it is.
"""

from __future__ import annotations

from edgeopt.lowering.graph import drop_unused, drop_value_info
from edgeopt.lowering.half import to_fp16
from edgeopt.lowering.onnxruntime import (
    fold_activations,
    for_onnxruntime,
    make_activations_unsigned,
    quantize_biases,
    weights_for_onnxruntime,
)
from edgeopt.lowering.tensorrt import for_tensorrt

__all__ = [
    "drop_unused",
    "drop_value_info",
    "fold_activations",
    "for_onnxruntime",
    "for_tensorrt",
    "make_activations_unsigned",
    "quantize_biases",
    "to_fp16",
    "weights_for_onnxruntime",
]
