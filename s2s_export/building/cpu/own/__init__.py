"""Passes from the portable graphs to the operators of `plugins/cpu`: one file a pattern.

Domain `s2s.cpu`. A graph that some pattern did not fit still runs: ONNX Runtime knows every node that is left.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from ...graphs.graph import Graph

DOMAIN = "s2s.cpu"


def node(op_type: str, inputs: list[str], outputs: list[str], name: str, **attributes: Any) -> onnx.NodeProto:
    """A node of our domain; trailing inputs and outputs that are left out go."""
    inputs, outputs = list(inputs), list(outputs)
    for names in (inputs, outputs):
        while names and not names[-1]:
            names.pop()
    return helper.make_node(op_type, inputs, outputs, name=name, domain=DOMAIN, **attributes)


def declare(graph: Graph) -> None:
    """Say in the model that it uses our domain."""
    if all(entry.domain != DOMAIN for entry in graph.model.opset_import):
        graph.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
