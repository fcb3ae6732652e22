"""Which decoder steps are called without ONNX Runtime, operator by operator (plugins/search/direct.h).

ONNX Runtime's own work between the nodes was a quarter to a third of a tiny model's step. A step that is made of our
own operators and of the few others in PLAIN needs nothing of it on one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from . import library
from .onnx_file import Node, OnnxGraph

OWN = "s2s.cpu."
FLOATS, WHOLE = "float32", "int64"
# Operators of ONNX, with the values of attributes that are understood; None: any.
PLAIN: Mapping[str, Mapping[str, int | None]] = {
    "Add": {}, "Sub": {}, "Mul": {}, "Reshape": {"allowzero": 0}, "Gather": {"axis": 0}, "Unsqueeze": {}, "Expand": {},
    "Shape": {"start": None, "end": None},
}  # fmt: skip
ARITHMETIC = ("Add", "Sub", "Mul")  # of two tensors of one type; the others have a second one of whole numbers


def needed(graph: OnnxGraph, outputs: Collection[str]) -> list[Node]:
    """The nodes that these outputs need, in order."""
    wanted = set(outputs)
    found = []
    for node in reversed(graph.nodes):
        if wanted.isdisjoint(node.outputs):
            continue
        found.append(node)
        wanted.update(node.inputs)
    return found[::-1]


def why_not(nodes: list[Node], weights: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Why these nodes can't be called directly, or nothing. inputs: of the graph, with their types."""
    known = {**{name: str(array.dtype) for name, array in weights.items() if array is not None}, **inputs}
    for node in nodes:
        missing = [name for name in node.inputs if name and name not in known]
        if missing:
            return f"{missing[0]} comes from nowhere"
        if node.others:
            return f"{node.op} has the attribute {node.others[0]}"
        if node.op.startswith(OWN):
            known.update(dict.fromkeys(node.outputs, FLOATS))  # candidate_ids are whole numbers, which no node reads
        elif node.op not in PLAIN:
            return f"there is {node.op}"
        elif any(PLAIN[node.op].get(name, -1) not in (value, None) for name, value in node.attributes.items()):
            return f"{node.op} has other attributes than are understood"
        elif (kind := _type_of(node, [known[name] for name in node.inputs if name])) is None:
            return f"{node.op} has inputs of other types"
        else:
            known[node.outputs[0]] = kind
    return ""


def _type_of(node: Node, inputs: list[str]) -> str | None:
    """Of a plain node's output, or None where its inputs are not understood."""
    if not inputs or inputs[0] not in (FLOATS, WHOLE):
        return None
    if node.op == "Shape":
        return WHOLE if len(inputs) == 1 else None
    second = inputs[0] if node.op in ARITHMETIC else WHOLE
    return inputs[0] if inputs[1:] == [second] else None


def nodes_of(nodes: list[Node], kept: list[Any]) -> Any:
    """An array of S2SNode. kept: what has to live until it is used."""
    made = (library.Node * len(nodes))()
    for place, node in zip(made, nodes, strict=True):
        numbers = {n: value.hex() if isinstance(value, float) else str(value) for n, value in node.attributes.items()}
        texts = (
            node.op,
            *("".join(f"{name}\n" for name in names) for names in (node.inputs, node.outputs)),
            "".join(f"{name}={value}\n" for name, value in numbers.items()),
        )
        place.op, place.inputs, place.outputs, place.attributes = (text.encode() for text in texts)
    kept.append(made)
    return made
