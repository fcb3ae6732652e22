"""Graphs of an engine with our own operators (plugins/cpu), called without ONNX Runtime.

A small model's graphs then need neither ONNX Runtime's work between the nodes nor the memory of its library, which is
loaded when the first graph needs it. Whatever can't be called directly, ONNX Runtime runs, with the same numbers.
"""

from .graph import NativeGraph as NativeGraph
from .graph import NativeGraphs as NativeGraphs
