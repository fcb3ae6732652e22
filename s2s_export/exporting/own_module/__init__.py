"""Exports a PyTorch module that its owner wrote: see docs/own-module.md.

interface.py    what `encode`, `start` and `step` take and return, found out by running them
trace.py        the three functions as ONNX models
recurrence.py   recurrent layers, which torch would unroll
check.py        other sizes, and the search, against the module
attention.py    torch.nn.Transformer, whose weights become the structure of a family
export.py       all of it in order
"""
