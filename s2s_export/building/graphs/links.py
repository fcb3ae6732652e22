"""Which nodes compute and which nodes read each value of a graph, for passes that look for patterns."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from .graph import Graph


class Links:
    """A graph's nodes by the values they compute and read, as the graph was when this object was made."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers = {name: node for node in graph.nodes for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.nodes:
            for name in dict.fromkeys(reads(node)):
                self._readers.setdefault(name, []).append(node)
        self._outputs = set(graph.outputs)

    def readers(self, value: str) -> list[onnx.NodeProto]:
        return self._readers.get(value, [])

    def only_reader(self, value: str, op_type: str) -> onnx.NodeProto | None:
        """The only node that reads `value`, if it has this type and the value is not an output of the graph."""
        readers = self.readers(value)
        if len(readers) == 1 and readers[0].op_type == op_type and value not in self._outputs:
            return readers[0]
        return None

    def maker(self, value: str, op_type: str) -> onnx.NodeProto | None:
        node = self.makers.get(value)
        return node if node is not None and node.op_type == op_type else None

    def is_output(self, value: str) -> bool:
        return value in self._outputs

    def before(self, value: str) -> set[str]:
        """Every value that `value` is computed from, itself included."""
        found: set[str] = set()
        waiting = [value]
        while waiting:
            name = waiting.pop()
            if name and name not in found:
                found.add(name)
                node = self.makers.get(name)
                waiting += reads(node) if node is not None else []
        return found

    def after(self, value: str) -> set[str]:
        """Every value that is computed from `value`, itself included."""
        found = {value}
        for node in self.graph.nodes:
            if found.intersection(reads(node)):
                found.update(node.output)
        return found


def reads(node: onnx.NodeProto) -> list[str]:
    """Values that a node reads, including those that its branches take from outside."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found += [name for inner in attribute.g.node for name in reads(inner)]
    return found


def attribute(node: onnx.NodeProto, name: str, otherwise: Any = None) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), otherwise)


def replace(graph: Graph, removed: list[onnx.NodeProto], added: dict[str, onnx.NodeProto]) -> None:
    """Remove nodes. `added`: by the name of a value, the new node that replaces the node that computed it."""
    gone = {id_of(node) for node in removed}
    nodes = []
    for node in graph.nodes:
        nodes += [added[name] for name in node.output if name in added]
        if id_of(node) not in gone:
            nodes.append(node)
    graph.replace_nodes(nodes)


def id_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """Identifies a node by its outputs, since each value is computed once."""
    return tuple(node.output)
