"""Which graphs are called without ONNX Runtime, operator by operator (plugins/search/direct.h).

ONNX Runtime's own work between the nodes was a quarter to a third of a tiny model's step. A graph that is made of our
own operators and of the few others in PLAIN needs nothing of it on one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import library
from .onnx_file import Node, OnnxGraph

OWN = "s2s.cpu."
FLOATS, WHOLE, TRUTH = "float32", "int64", "bool"
FIRST, NUMBERS, ANY = "the first input's", (FLOATS, WHOLE), (FLOATS, WHOLE, TRUTH)
SECOND, NAMED = "the second input's", "that of the attribute `to`"
OF_CAST = {1: FLOATS, 7: WHOLE, 9: TRUTH}  # values of `to`


@dataclass(frozen=True)
class Plain:
    """An operator of ONNX that is understood. inputs: the types of each, or FIRST or SECOND; output: its type, or
    FIRST, SECOND or NAMED; optional: inputs at the end that may be left out; repeated: whether there may be any number
    of inputs like the last; attributes: with the values that are understood, None for any; parts: whether it may have
    several outputs."""

    inputs: tuple[Collection[str] | str, ...]
    output: str = FIRST
    optional: int = 0
    repeated: bool = False
    attributes: Mapping[str, int | None] = field(default_factory=dict)
    parts: bool = False

    def type_of(self, given: list[str], to: Any) -> str | None:
        """Of the output, or None where inputs of these types are not understood. to: the attribute, if there is one."""
        wanted = (*self.inputs, *self.inputs[-1:] * (len(given) - len(self.inputs))) if self.repeated else self.inputs
        if not len(self.inputs) - self.optional <= len(given) <= len(wanted) or len(given) > MOST_INPUTS:
            return None
        for kind, of_this in zip(given, wanted, strict=False):
            if kind not in ((given[of_this == SECOND],) if of_this in (FIRST, SECOND) else of_this):
                return None
        if self.output == NAMED:
            return OF_CAST.get(to)
        return given[self.output == SECOND] if self.output in (FIRST, SECOND) else self.output


MOST_INPUTS = 64
_TWO = Plain((NUMBERS, FIRST))
_TWO_WHOLE = Plain(((WHOLE,), FIRST))
_COMPARED = Plain(((WHOLE,), FIRST), TRUTH)
PLAIN: Mapping[str, Plain] = {
    "Add": _TWO, "Sub": _TWO, "Mul": _TWO, "Max": _TWO_WHOLE, "Min": _TWO_WHOLE,
    "Equal": _COMPARED, "Less": _COMPARED, "Greater": _COMPARED,
    "Not": Plain(((TRUTH,),)),
    "Or": Plain(((TRUTH,), FIRST)),
    "Where": Plain(((TRUTH,), NUMBERS, SECOND), SECOND),
    "Cast": Plain(((WHOLE, TRUTH),), NAMED, attributes={"to": None}),
    "Concat": Plain((NUMBERS, FIRST), optional=1, repeated=True, attributes={"axis": None}),
    "Split": Plain((NUMBERS, (WHOLE,)), optional=1, attributes={"axis": None, "num_outputs": None}, parts=True),
    "Transpose": Plain(((FLOATS,),), attributes={"perm": None}),
    "CumSum": Plain(((WHOLE,), (WHOLE,)), attributes={"exclusive": 0, "reverse": 0}),
    "Range": Plain(((WHOLE,), FIRST, FIRST)),
    "Reshape": Plain((NUMBERS, (WHOLE,)), attributes={"allowzero": 0}),
    "Gather": Plain((NUMBERS, (WHOLE,)), attributes={"axis": None}),
    "Unsqueeze": Plain((ANY, (WHOLE,))),
    "Squeeze": Plain((ANY, (WHOLE,)), optional=1),
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


def why_not(
    nodes: list[Node], weights: Mapping[str, Any], inputs: Mapping[str, str], outputs: Collection[str] = ()
) -> str:
    """Why these nodes can't be called directly, or nothing. inputs: of the graph, with their types. outputs: that they
    have to give."""
    known = {**{name: str(array.dtype) for name, array in weights.items() if array is not None}, **inputs}
    for node in nodes:
        missing = [name for name in node.inputs if name and name not in known]
        if missing:
            return f"{missing[0]} comes from nowhere"
        if again := [name for name in node.outputs if name and name in known]:
            return f"{again[0]} is made twice"
        if node.others:
            return f"{node.op} has the attribute {node.others[0]}"
        if node.op.startswith(OWN):
            if lists := [name for name, value in node.attributes.items() if isinstance(value, tuple)]:
                return f"{node.op} has the attribute {lists[0]}"
            known.update(dict.fromkeys(node.outputs, FLOATS))  # candidate_ids are whole numbers, which no node reads
        elif (plain := PLAIN.get(node.op)) is None:
            return f"there is {node.op}"
        elif any(plain.attributes.get(name, -1) not in (value, None) for name, value in node.attributes.items()):
            return f"{node.op} has other attributes than are understood"
        elif len(node.outputs) != 1 and not plain.parts:
            return f"{node.op} has several outputs"
        elif (kind := plain.type_of([known[name] for name in node.inputs if name], node.attributes.get("to"))) is None:
            return f"{node.op} has inputs of other types"
        else:
            known.update(dict.fromkeys(node.outputs, kind))
    if missing := [name for name in outputs if name not in known]:
        return f"there is no {missing[0]}"
    return ""


def _apart(nodes: list[Node]) -> Iterable[Node]:
    """A node for each part of what is cut: an operator of ONNX that is called directly has one output."""
    for node in nodes:
        if node.op != "Split":
            yield node
            continue
        for part, name in enumerate(node.outputs):
            yield Node(node.op, node.inputs, [name], {**node.attributes, "part": part, "parts": len(node.outputs)})


def lines(words: Iterable[str]) -> bytes:
    """Words, each with a line's end."""
    return "".join(f"{word}\n" for word in words).encode()


def nodes_of(nodes: list[Node], kept: list[Any]) -> Any:
    """An array of S2SNode. kept: what has to live until it is used."""
    listed = list(_apart(nodes))
    made = (library.Node * len(listed))()
    for place, node in zip(made, listed, strict=True):
        place.op, place.inputs, place.outputs = node.op.encode(), lines(node.inputs), lines(node.outputs)
        place.attributes = lines(f"{name}={_told(value)}" for name, value in node.attributes.items())
    kept.append(made)
    return made


def _told(value: Any) -> str:
    """The value of an attribute, as S2SNode has it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return value.hex() if isinstance(value, float) else str(value)
