"""Reads as much of an .onnx file as a graph that is called directly needs: nodes, their plain attributes, weights, and
what goes in and out.

The runtime has no onnx package. A file is a protocol buffer message (onnx.proto); the field numbers are named below.
What is not understood is left out: whoever uses the result checks that all it needs is there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle import Tensor

# TensorProto.data_type
DTYPES = {1: "float32", 3: "int8", 4: "uint16", 6: "int32", 7: "int64", 9: "bool"}  # of weights that are read
NAMES = {**DTYPES, 2: "uint8", 10: "float16", 16: "bfloat16"}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


@dataclass
class Node:
    """op: "Add", or with its domain, "s2s.cpu.Linear". attributes: numbers, and lists of whole ones; `others` names
    those of other types."""

    op: str
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, int | float | tuple[int, ...]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


@dataclass
class OnnxGraph:
    """weights: arrays by name; those of another file are mapped. inputs, outputs: by name; a type that no such graph
    has is its number."""

    nodes: list[Node]
    weights: dict[str, Any]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def read(path: Path, folder: Path) -> OnnxGraph:
    """folder: of the files that hold weights. Raises ValueError or OSError for a file that is none."""
    try:
        return _read(path, folder)
    except (struct.error, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path.name} is no graph ({error})") from error


def _read(path: Path, folder: Path) -> OnnxGraph:
    nodes: list[Node] = []
    weights: dict[str, Any] = {}
    files: dict[str, Any] = {}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for number, graph in fields(memoryview(path.read_bytes())):
        if number != 7:  # ModelProto.graph
            continue
        for part, value in fields(graph):
            if part == 1:
                nodes.append(_node(value))
            elif part == 5:
                name, array = _weight(value, folder, files)
                weights[name] = array
            elif part in (11, 12):
                name, tensor = _described(value)
                (inputs if part == 11 else outputs)[name] = tensor
    return OnnxGraph(nodes, weights, inputs, outputs)


def fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: an int, a float or a part of the message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
        elif kind == BYTES:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("a field is longer than its message")
            yield key >> 3, message[at : at + size]
            at += size
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
            yield key >> 3, struct.unpack("<f" if size == 4 else "<d", message[at : at + size])[0]
            at += size
        else:
            raise ValueError(f"a field has the unknown type {kind}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("a message ends in the middle of a number")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _node(message: memoryview) -> Node:
    found = Node("")
    domain = ""
    for number, value in fields(message):
        if number == 1:
            found.inputs.append(_text(value))
        elif number == 2:
            found.outputs.append(_text(value))
        elif number == 4:
            found.op = _text(value)
        elif number == 5:
            _attribute(value, found)
        elif number == 7:
            domain = _text(value)
    if domain:
        found.op = f"{domain}.{found.op}"
    return found


def _attribute(message: memoryview, node: Node) -> None:
    """AttributeProto: name 1, f 2, i 3, ints 8, type 20: 1 is a float, 2 a whole number, 7 a list of them."""
    given: dict[int, Any] = {}
    listed: list[int] = []
    for number, value in fields(message):
        given[number] = value
        if number == 8:
            listed += _packed(value) if isinstance(value, memoryview) else [value]
    name = _text(given[1])
    if given.get(20) == 1:
        node.attributes[name] = float(given.get(2, 0.0))
    elif given.get(20) == 2:
        node.attributes[name] = _signed(given.get(3, 0))
    elif given.get(20) == 7:
        node.attributes[name] = tuple(map(_signed, listed))
    else:
        node.others.append(name)


def _weight(message: memoryview, folder: Path, files: dict[str, Any]) -> tuple[str, Any]:
    """TensorProto. An array of a type that no step has is None."""
    dims: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    external: dict[str, str] = {}
    for number, value in fields(message):
        if number == 1:
            dims += _packed(value) if isinstance(value, memoryview) else [value]
        elif number == 2:
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = value
        elif number == 13:
            entry = dict(fields(value))
            external[_text(entry[1])] = _text(entry[2])
    if kind not in DTYPES or not (raw or external or 0 in dims):
        return name, None
    if not external:
        # A copy is aligned, which a part of the file need not be.
        return name, np.frombuffer(raw, DTYPES[kind]).reshape(dims).copy()
    file = external["location"]
    if "/" in file or "\\" in file:
        raise ValueError(f"weights lie in {file!r}, expected a file beside the graph")
    if file not in files:
        files[file] = np.memmap(folder / file, np.uint8, "r")
    first, size = int(external.get("offset", 0)), int(external["length"])
    if first % 16:
        raise ValueError(f"{name} begins at byte {first}, expected a multiple of 16")
    array = files[file][first : first + size].view(DTYPES[kind]).reshape(dims)
    return name, array


def _described(message: memoryview) -> tuple[str, Tensor]:
    """ValueInfoProto: name 1, type 2; of a TypeProto, tensor_type 1, with elem_type 1 and shape 2."""
    given = dict(fields(message))
    tensor = dict(fields(dict(fields(given[2]))[1]))
    kind = NAMES.get(tensor[1], str(tensor[1]))
    if 2 not in tensor:
        return _text(given[1]), Tensor(kind, None)
    sizes: list[int | str | None] = []
    for number, dim in fields(tensor[2]):
        if number == 1:  # Dimension: dim_value 1, dim_param 2
            found = dict(fields(dim))
            sizes.append(_signed(found[1]) if 1 in found else _text(found[2]) if 2 in found else None)
    return _text(given[1]), Tensor(kind, sizes)


def _packed(message: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        found.append(value)
    return found
