"""Passes that replace parts of the portable graphs by the operators of `plugins/cpu`, one file for each pattern.

The operators have the domain `s2s.cpu`. Where a pattern does not match, the graph still runs: ONNX Runtime has a kernel
for every node that is left.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from ...graphs.graph import Graph

DOMAIN = "s2s.cpu"


def node(op_type: str, inputs: list[str], outputs: list[str], name: str, **attributes: Any) -> onnx.NodeProto:
    """A node of our domain. Empty names at the end of its inputs and outputs are removed."""
    inputs, outputs = list(inputs), list(outputs)
    for names in (inputs, outputs):
        while names and not names[-1]:
            names.pop()
    return helper.make_node(op_type, inputs, outputs, name=name, domain=DOMAIN, **attributes)


def declare(graph: Graph) -> None:
    """Add our domain to the model's imports."""
    if all(entry.domain != DOMAIN for entry in graph.model.opset_import):
        graph.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
