"""Quantizing networks on ONNX: ranges, scales and what is folded before. Knows nothing of recipes or stages."""
