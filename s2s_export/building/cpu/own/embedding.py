"""Embeddings are read from the packed table, which is stored once if it is tied to the output projection."""

from __future__ import annotations

from ...graphs.graph import Graph
from ...graphs.passes import Applied
from ..onnxruntime.embedding import token_ids
from . import node
from .packing import Store


def apply(graph: Graph, store: Store) -> Applied:
    done = Applied("packed embeddings")
    ids = token_ids(graph)
    nodes = []
    for found in graph.nodes:
        table = graph.weights.get(found.input[0]) if found.op_type == "Gather" else None
        if table is None or table.ndim != 2 or found.input[1] not in ids:
            nodes.append(found)
            continue
        names, packed = store.add(graph, found.input[0])
        inputs = [found.input[1], *names[:2]]  # the values, and the scales of int8
        sizes = {"width": packed.n_in, "n_rows": packed.n_out}
        nodes.append(node(packed.operator("Embedding"), inputs, list(found.output), found.name, **sizes))
        done.count += 1
    graph.replace_nodes(nodes)
    return done
