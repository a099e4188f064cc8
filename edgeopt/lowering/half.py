"""fp16 from fp32 ONNX: weights and arithmetic in half precision, inputs and outputs as they were."""

from __future__ import annotations

from typing import Any

from edgeopt.errors import StageError
from edgeopt.lowering.graph import drop_value_info


def to_fp16(model: Any) -> Any:
    """The model in fp16 by onnxruntime's converter. Where a CPU has no such kernel, its runtime computes in fp32.

    Raises StageError for operators that it cannot convert.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    drop_value_info(model)
    try:
        return convert_float_to_float16(model, keep_io_types=True)
    except (ValueError, TypeError, RuntimeError) as error:
        raise StageError(f"the model cannot be converted to fp16: {error}") from error
