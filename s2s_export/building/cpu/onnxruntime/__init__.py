"""Passes that rewrite the portable graphs for ONNX Runtime's own kernels."""
