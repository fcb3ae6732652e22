"""Rewrites graphs for a CPU: for ONNX Runtime's kernels (onnxruntime/) or for those of this project (own/)."""
