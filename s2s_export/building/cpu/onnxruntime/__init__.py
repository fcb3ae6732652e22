"""Passes over portable graphs, for the kernels that ONNX Runtime brings."""
