"""From a bundle to text. Needs numpy and one library that executes graphs; no torch, transformers or onnx."""
