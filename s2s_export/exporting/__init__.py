"""From a trained checkpoint to a bundle. Needs torch, transformers and onnx: the export extra."""
