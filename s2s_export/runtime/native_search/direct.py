"""Which decoder steps are called without ONNX Runtime, operator by operator (plugins/search/direct.h).

ONNX Runtime's own work between the nodes was a quarter to a third of a tiny model's step. A step that is made of our
own operators and of the few others in PLAIN needs nothing of it on one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import library
from .onnx_file import Node, OnnxGraph

OWN = "s2s.cpu."
FLOATS, WHOLE, TRUTH = "float32", "int64", "bool"
FIRST, NUMBERS = "the first input's", (FLOATS, WHOLE)


@dataclass(frozen=True)
class Plain:
    """An operator of ONNX that is understood. inputs: the types of each, or FIRST; output: its type, or FIRST;
    optional: inputs at the end that may be left out; attributes: with the values that are understood, None for any."""

    inputs: tuple[Collection[str] | str, ...]
    output: str = FIRST
    optional: int = 0
    attributes: Mapping[str, int | None] = field(default_factory=dict)

    def type_of(self, given: list[str]) -> str | None:
        """Of the output, or None where inputs of these types are not understood."""
        if not len(self.inputs) - self.optional <= len(given) <= len(self.inputs):
            return None
        for kind, wanted in zip(given, self.inputs, strict=False):
            if kind not in ((given[0],) if wanted == FIRST else wanted):
                return None
        return given[0] if self.output == FIRST else self.output


_TWO = Plain((NUMBERS, FIRST))
_TWO_WHOLE = Plain(((WHOLE,), FIRST))
PLAIN: Mapping[str, Plain] = {
    "Add": _TWO, "Sub": _TWO, "Mul": _TWO, "Max": _TWO_WHOLE, "Min": _TWO_WHOLE,
    "Equal": Plain(((WHOLE,), FIRST), TRUTH),
    "Not": Plain(((TRUTH,),)),
    "Where": Plain(((TRUTH,), (WHOLE,), (WHOLE,)), WHOLE),
    "Range": Plain(((WHOLE,), FIRST, FIRST)),
    "Reshape": Plain((NUMBERS, (WHOLE,)), attributes={"allowzero": 0}),
    "Gather": Plain((NUMBERS, (WHOLE,)), attributes={"axis": None}),
    "Unsqueeze": Plain((NUMBERS, (WHOLE,))),
    "Squeeze": Plain((NUMBERS, (WHOLE,)), optional=1),
    "Expand": Plain(((WHOLE,), (WHOLE,))),
    "Shape": Plain((NUMBERS,), WHOLE, attributes={"start": None, "end": None}),
}  # fmt: skip


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
        elif (plain := PLAIN.get(node.op)) is None:
            return f"there is {node.op}"
        elif any(plain.attributes.get(name, -1) not in (value, None) for name, value in node.attributes.items()):
            return f"{node.op} has other attributes than are understood"
        elif (kind := plain.type_of([known[name] for name in node.inputs if name])) is None:
            return f"{node.op} has inputs of other types"
        else:
            known[node.outputs[0]] = kind
    return ""


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
