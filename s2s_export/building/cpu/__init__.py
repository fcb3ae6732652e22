"""Graphs for the CPU: rewritten for ONNX Runtime's own kernels (onnxruntime/) or for this project's (own/)."""
