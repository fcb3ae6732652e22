"""Damage, from a seed: bytes, values in JSON documents, and the parts of ONNX graphs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

DELETED: Any = object()
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 1.5, 1e308, 10**30, 2**31, 2**62, 2**63, 10**400, "", "x", "\0", "\ud800", "../x",
    "/dev/zero", "é" * 3000, [], [[]], {}, {"a": 1}, ["B"], [1, 2], [None], [{}], DELETED,
)  # fmt: skip


def places(document: Any) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    if isinstance(document, dict):
        items = list(document.items())
    else:
        items = list(enumerate(document)) if isinstance(document, list) else []
    return [place for key, value in items for place in [(key,), *((key, *rest) for rest in places(value))]]


def put(document: Any, place: tuple[Any, ...], value: Any) -> None:
    """Set the value at a place; DELETED removes it."""
    for key in place[:-1]:
        document = document[key]
    if value is DELETED:
        del document[place[-1]]
    else:
        document[place[-1]] = value


def bytes_of(raw: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut out, put in, repeated or set to one value."""
    found = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 5, 40])):
        at, length = rng.randrange(len(found) + 1), rng.choice([1, 1, 4, 8, 64])
        kind = rng.randrange(7)
        if kind <= 1 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            found[at : at + length] = bytes([rng.choice([0, 255, 127, 128])]) * len(found[at : at + length])
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[at:at] = rng.randbytes(length)
        elif kind == 5:
            other = rng.randrange(len(found) + 1)
            found[at : at + length] = found[other : other + length]
        elif rng.random() < 0.2:
            del found[at:]
    return bytes(found)


def json_of(raw: bytes, rng: random.Random) -> bytes:
    """A few values of a document changed, now and then its bytes."""
    if rng.random() < 0.1:
        return bytes_of(raw, rng)
    document = json.loads(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        # A section first, so that a long list, such as a vocabulary's, doesn't take every turn.
        section = rng.choice(list(document)) if isinstance(document, dict) and document else None
        inside = (
            [(section,), *((section, *rest) for rest in places(document[section]))] if section else places(document)
        )
        if not inside:
            break
        place = rng.choice(inside)
        value = rng.choice(WRONG)
        if rng.random() < 0.25:  # a value from elsewhere in the document
            value = document
            for key in rng.choice(places(document)):
                value = value[key]
        elif isinstance(document, dict) and rng.random() < 0.1:
            put(document, place, DELETED)
            document[rng.choice(["", "extra", "\ud800", "x" * 2000])] = value if value is not DELETED else 1
            continue
        put(document, place, json.loads(json.dumps(value)) if value is not DELETED else DELETED)
        if not document:
            break
    return json.dumps(document).encode()


def graph_of(raw: bytes, rng: random.Random) -> bytes:
    """One part of an ONNX graph changed: a node, an attribute, a name, a size, where weights lie; or its bytes."""
    import onnx

    if rng.random() < 0.3:
        return bytes_of(raw, rng)
    model = onnx.load_from_string(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rng.choice(_GRAPH_CHANGES)(model, rng)
    found: bytes = model.SerializeToString()
    return found


def _node(model: Any, rng: random.Random) -> Any:
    function = rng.choice(list(model.functions)) if model.functions and rng.random() < 0.3 else model.graph
    return rng.choice(list(function.node)) if function.node else None


def _an_attribute(model: Any, rng: random.Random) -> None:
    """Nodes of our own operators first: nobody else checks theirs."""
    nodes = [node for node in model.graph.node if node.domain == "s2s.cpu"] if rng.random() < 0.6 else []
    node = rng.choice(nodes) if nodes else _node(model, rng)
    if node is None or not node.attribute:
        return
    attribute = rng.choice(list(node.attribute))
    kind = attribute.type
    if kind == attribute.INT:
        attribute.i = rng.choice([0, -1, 1, 2, attribute.i + 1, attribute.i * 2, 2**31, 2**62, -(2**63), 10**9])
    elif kind == attribute.FLOAT:
        attribute.f = rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e30])
    elif kind == attribute.INTS and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice([0, -1, 7, 2**40])
    elif kind == attribute.STRING:
        attribute.s = rng.choice([b"", b"x", b"\xff", b"a" * 5000])
    elif rng.random() < 0.5:
        node.attribute.remove(attribute)


def _an_input(model: Any, rng: random.Random) -> None:
    node = _node(model, rng)
    if node is None or not node.input:
        return
    at = rng.randrange(len(node.input))
    names = [value.name for value in model.graph.input] + [w.name for w in model.graph.initializer]
    names += [name for other in model.graph.node for name in other.output]
    kind = rng.randrange(4)
    if kind == 0 and names:
        node.input[at] = rng.choice(names)
    elif kind == 1:
        other = rng.randrange(len(node.input))
        node.input[at], node.input[other] = node.input[other], node.input[at]
    elif kind == 2:
        node.input[at] = rng.choice(["", "nowhere"])
    else:
        del node.input[at]


def _a_type_of_node(model: Any, rng: random.Random) -> None:
    node, other = _node(model, rng), _node(model, rng)
    if node is not None and other is not None:
        node.op_type, node.domain = rng.choice([(other.op_type, other.domain), ("Nothing", ""), (node.op_type, "x")])


def _a_node_less_or_twice(model: Any, rng: random.Random) -> None:
    if not model.graph.node:
        return
    at = rng.randrange(len(model.graph.node))
    if rng.random() < 0.5:
        del model.graph.node[at]
    else:
        model.graph.node.add().CopyFrom(model.graph.node[at])


def _a_weight(model: Any, rng: random.Random) -> None:
    if not model.graph.initializer:
        return
    weight = rng.choice(list(model.graph.initializer))
    kind = rng.randrange(4)
    if kind == 0 and weight.dims:
        at = rng.randrange(len(weight.dims))
        weight.dims[at] = rng.choice([0, 1, -1, weight.dims[at] + 1, weight.dims[at] * 2, 2**40, 2**62])
    elif kind == 1:
        weight.data_type = rng.choice([0, 1, 2, 3, 6, 7, 9, 10, 11, 16, 99])
    elif kind == 2 and weight.external_data:
        entry = rng.choice(list(weight.external_data))
        entry.value = rng.choice(["0", "-1", "1", "9" * 25, "4611686018427387904", "", "../x", "/dev/zero", "\0"])
    elif weight.raw_data:
        weight.raw_data = bytes_of(weight.raw_data, rng)


def _a_value(model: Any, rng: random.Random) -> None:
    """An input or output of the graph: its type, a size, its name."""
    value = rng.choice([*model.graph.input, *model.graph.output])
    tensor = value.type.tensor_type
    kind = rng.randrange(3)
    if kind == 0:
        tensor.elem_type = rng.choice([0, 1, 6, 7, 9, 10, 99])
    elif kind == 1 and tensor.shape.dim:
        rng.choice(list(tensor.shape.dim)).dim_value = rng.choice([0, 1, 3, -1, 2**40])
    else:
        value.name = rng.choice(["", "x", "token", "position"])


def _order(model: Any, rng: random.Random) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


_GRAPH_CHANGES: tuple[Callable[[Any, random.Random], None], ...] = (
    _an_attribute, _an_attribute, _an_attribute, _an_input, _an_input, _a_type_of_node, _a_node_less_or_twice,
    _a_weight, _a_weight, _a_value, _order,
)  # fmt: skip
