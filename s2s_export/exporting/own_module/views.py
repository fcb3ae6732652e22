"""Which elements of which values the views in a traced graph show.

Selecting a layer, splitting heads, transposing, stacking: whatever moves elements and computes none is run on the
elements' numbers in place of the elements, at the sizes of the traced example. Two values hold the same where their
numbers are equal, by whatever operators they came about.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten
MOVES = {
    *(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.permute, aten.transpose),
    *(aten.movedim, aten.swapaxes, aten.swapdims, aten.t, aten.mT, aten.unsqueeze, aten.squeeze, aten.expand),
    *(aten.repeat, aten.repeat_interleave, aten.clone, aten.contiguous, aten.alias, aten.detach, aten.lift_fresh_copy),
    *(aten.stack, aten.cat, aten.concat, aten.to, aten.type_as),
}
# They take a part of an axis, which says nothing of other sizes where the axis has no fixed one.
PARTS = {aten.select, aten.slice, aten.narrow, aten.unbind, aten.split, aten.split_with_sizes, aten.chunk}
WHOLE = (0, torch.iinfo(torch.int64).max)


class NotFollowed(Exception):
    """A graph is not of the form that is looked for; the message says where."""


def tensor_of(value: Any) -> Tensor | None:
    """The shape and type of a node's result, where that is a tensor."""
    found = value.meta.get("val") if isinstance(value, Node) else None
    return found if isinstance(found, Tensor) else None


def size_of(size: Any) -> int:
    """A size in the traced example. Raises NotFollowed for one that depends on values."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.hint is None:
        raise NotFollowed("a size depends on the values of a tensor")
    return int(size.node.hint)


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape in the traced example."""
    value = tensor_of(node)
    if value is None:
        raise NotFollowed(f"{node.name} is no tensor")
    return tuple(map(size_of, value.shape))


def packet_of(node: Node) -> Any:
    """The operator that a node calls, whatever its overload; None for one that is no operator of torch's."""
    return getattr(node.target, "overloadpacket", None)


def is_view(node: Node) -> bool:
    """Whether a node moves elements only, alike for all sizes."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return isinstance(node.args[0], Node) and is_view(node.args[0])
    packet = packet_of(node)
    if packet in (*PARTS, aten.repeat, aten.repeat_interleave) and any(isinstance(a, Node) for a in node.args[1:]):
        return False  # which part, or how often, may differ from the example
    if packet in MOVES:
        value, before = tensor_of(node), tensor_of(node.args[0])
        return value is None or before is None or value.dtype == before.dtype
    before = tensor_of(node.args[0]) if packet in PARTS else None
    if before is None:
        return False
    if packet is aten.slice and tuple(node.args[2:]) in (WHOLE, (None, None), (0, None), ()):
        return True
    place = 2 if packet in (aten.split, aten.split_with_sizes, aten.chunk) else 1
    axis = node.args[place] if len(node.args) > place else 0
    return isinstance(axis, int) and not isinstance(before.shape[axis], torch.SymInt)


def call(graph: Any, target: Any, *given: Any) -> Node:
    """A new node of a graph, with the shape of its result."""
    node: Node = graph.call_function(target, given)

    def held(value: Any) -> Any:
        return value.meta["val"] if isinstance(value, Node) else value

    node.meta["val"] = target(*([*map(held, each)] if isinstance(each, list) else held(each) for each in given))
    return node


class Elements:
    """The numbers of the elements that each node of a graph shows, int64 of the shape of its result."""

    def __init__(self) -> None:
        self._found: dict[Node, Any] = {}
        self._next = 0

    def of(self, node: Node) -> Tensor:
        found = self._of(node)
        if not isinstance(found, Tensor):
            raise NotFollowed(f"{node.name} is no tensor")
        return found

    def set(self, node: Node, numbers: Tensor) -> None:
        """Says that a node, which computes something, shows the elements of these numbers."""
        self._found[node] = numbers

    def new(self, *shape: int) -> Tensor:
        """Numbers that no other elements have."""
        first, n = self._next, math.prod(shape)
        self._next += n
        return torch.arange(first, first + n).reshape(shape)

    def _of(self, node: Node) -> Any:
        if node not in self._found:
            if is_view(node):
                target: Any = node.target
                given = {name: self._value(value) for name, value in node.kwargs.items()}
                if packet_of(node) in (aten.to, aten.type_as):  # which change no type here
                    self._found[node] = self._value(node.args[0])
                elif packet_of(node) in (aten.view, aten._unsafe_view):
                    self._found[node] = self._value(node.args[0]).reshape(self._value(node.args[1]))
                else:
                    self._found[node] = target(*map(self._value, node.args), **given)
            else:
                self._found[node] = self.new(*shape_of(node))
        return self._found[node]

    def _value(self, value: Any) -> Any:
        if isinstance(value, Node):
            held = value.meta.get("val")
            return size_of(held) if isinstance(held, (torch.SymInt, int)) else self._of(value)
        if isinstance(value, (list, tuple)):
            return [self._value(each) for each in value]
        return value
