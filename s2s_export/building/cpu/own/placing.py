"""A position and a place for each source, so that sources join a batch that is being decoded.

The portable graph has one `position [1]` for the batch, and source b lies in row b of caches, table and mask. Here
`position [B]` says how far each source is, and a new input `places [B]` where it lies in the caches [C,P,H,K,D], the
table of ancestors [P,K,C], the source mask [P,S], cross-attention's keys and values [P,H,S,D], and what a module of
one's own keeps of a source. The runtime gives a newcomer a free place, and names a place no more once its source has
finished; nothing is moved for either.

What is computed from the position follows:

    position codes      a row of the table for each row of the batch
    relative positions  a bias [1,H,1,C] that depends on the distance alone is computed for position C-1; the operator
                        reads it C-1-p further on for position p
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...graphs.graph import Graph
from ...graphs.links import Links
from ...graphs.passes import Applied
from . import DOMAIN
from .attention import SOURCE_MASK

POSITION, PLACES, TOKEN, ANCESTORS = "position", "places", "token", "ancestors"
BIAS_INPUT = 5  # of SelfAttention
PLACES_INPUT = {"SelfAttention": 6, "CrossAttention": 4}
READS_POSITION = ("Add", "Gather", "Where")  # between the position and the table of position codes
WHOLE = ("cross_key.", "cross_value.", "state_")  # the last: of a module of one's own
CACHES = ("self_key", "self_value")


def apply(graph: Graph) -> Applied:
    done = Applied("a position and a place for each source")
    links = Links(graph)
    biases = [_bias_of(node) for node in _own(graph, "SelfAttention")]
    bias = {value for name in biases for value in links.before(name)}
    if reason := incompatible_reason(graph, links, bias):
        done.left[reason] += 1
        return done
    _give_positions(graph, bias)
    _give_places(graph)
    _declare(graph)
    done.count += 1
    return done


def incompatible_reason(graph: Graph, links: Links, bias: set[str]) -> str:
    """Why sources can't have positions and places of their own in this graph, or an empty text.

    bias: the values from which biases of the attention are computed.
    """
    if not _own(graph, "SelfAttention"):
        return "there is no attention of our own over the cache"
    if any(node.op_type == "CrossAttention" and node.domain != DOMAIN for node in graph.nodes):
        return "attention over the source is not our own"
    for value in graph.model.graph.input:
        if any(size.dim_param == "F" for size in value.type.tensor_type.shape.dim):
            return f"'{value.name}' has a length that follows from the source's"
    for node in links.readers(POSITION):
        if node.domain == DOMAIN and node.op_type == "SelfAttention":
            continue
        if bias.intersection(node.output):
            if node.op_type != "Sub" or links.maker(node.input[0], "Range") is None:
                return "a bias of the attention is not one of distances"
        elif node.op_type not in READS_POSITION:
            return f"the position is read by {node.op_type}"
    return ""


def _own(graph: Graph, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in graph.nodes if node.domain == DOMAIN and node.op_type == op_type]


def _bias_of(node: onnx.NodeProto) -> str:
    return node.input[BIAS_INPUT] if len(node.input) > BIAS_INPUT else ""


def _give_positions(graph: Graph, bias: set[str]) -> None:
    """Position codes read a position for each row, biases that of the caches' end."""
    rows, last = f"{POSITION}/rows", f"{POSITION}/last"
    made: dict[str, list[onnx.NodeProto]] = {}
    nodes = graph.nodes
    for node in nodes:
        if POSITION not in node.input or (node.domain == DOMAIN and node.op_type == "SelfAttention"):
            continue
        wanted = last if bias.intersection(node.output) else rows
        node.input[:] = [wanted if name == POSITION else name for name in node.input]
        if wanted not in made:
            made[wanted] = _last_position(graph, last) if wanted == last else _positions_of_rows(graph, rows)
    for node in nodes:
        if node.domain == DOMAIN and node.op_type == "SelfAttention" and _bias_of(node):
            node.attribute.append(helper.make_attribute("relative", 1))
    graph.replace_nodes([*(node for group in made.values() for node in group), *nodes])


def _positions_of_rows(graph: Graph, name: str) -> list[onnx.NodeProto]:
    """[R]: the position of each row's source."""
    column, sizes, table = (f"{name}/{part}" for part in ("column", "sizes", "table"))
    one, flat = _constant(graph, f"{name}/one", [1]), _constant(graph, f"{name}/flat", [-1])
    return [
        helper.make_node("Unsqueeze", [POSITION, one], [column], name=column),
        helper.make_node("Shape", [TOKEN], [sizes], name=sizes),
        helper.make_node("Expand", [column, sizes], [table], name=table),  # [B,K]
        helper.make_node("Reshape", [table, flat], [name], name=name),
    ]


def _last_position(graph: Graph, name: str) -> list[onnx.NodeProto]:
    """[1]: C - 1."""
    capacity, one = f"{name}/capacity", _constant(graph, f"{name}/one", [1])
    return [
        helper.make_node("Shape", [ANCESTORS], [capacity], name=capacity, start=2, end=3),
        helper.make_node("Sub", [capacity, one], [name], name=name),
    ]


def _constant(graph: Graph, name: str, values: list[int]) -> str:
    graph.weights[name] = np.asarray(values, dtype=np.int64)
    return name


def _give_places(graph: Graph) -> None:
    """Our operators read by places; whatever else reads the mask, keys or values of sources gets those of the batch."""
    gathered: dict[str, onnx.NodeProto] = {}
    nodes = graph.nodes
    for node in nodes:
        if node.domain == DOMAIN and node.op_type in PLACES_INPUT:
            n_before = PLACES_INPUT[node.op_type]
            node.input[:] = [*node.input, *[""] * (n_before - len(node.input)), PLACES]
            continue
        for i, name in enumerate(node.input):
            if name == SOURCE_MASK or name.startswith(WHOLE):
                of_batch = f"{name}/of_batch"
                gathered[name] = helper.make_node("Gather", [name, PLACES], [of_batch], name=of_batch, axis=0)
                node.input[i] = of_batch
    graph.replace_nodes([*gathered.values(), *nodes])


def _declare(graph: Graph) -> None:
    values = [*graph.model.graph.input, *graph.model.graph.output]
    for value in values:
        sizes = value.type.tensor_type.shape.dim
        if value.name == POSITION:
            sizes[0].Clear()
            sizes[0].dim_param = "B"
        elif value.name in (SOURCE_MASK, ANCESTORS) or value.name.startswith(WHOLE):
            sizes[0].dim_param = "P"
        elif value.name.startswith(CACHES):
            sizes[1].dim_param = "P"
    graph.model.graph.input.append(helper.make_tensor_value_info(PLACES, TensorProto.INT64, ["B"]))
