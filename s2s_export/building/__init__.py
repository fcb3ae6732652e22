"""From a bundle and a recipe to an engine. Needs onnx: the export extra."""
