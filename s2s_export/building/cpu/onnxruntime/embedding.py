"""int8 embeddings: rows are gathered from a table of 8-bit blocks and scaled; the table is never expanded.

If the embedding is tied to the output projection, both use the same bytes, so that the table takes no memory of its
own. No kernel repacks it, so that only the rows of tokens that occur are read from disk.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from onnx import helper

from ....runtime.sources.token_ids import INPUT_IDS
from ...graphs.graph import Graph
from ...graphs.passes import Applied
from .products import BLOCKS, CONTRIB, Quantised, block_size, by_block, declare_contrib

TOKENS = ("token", "tokens", INPUT_IDS)  # graph inputs that hold token ids; "tokens" are those of a prompt
KEEP_IDS = ("Reshape", "Unsqueeze", "Squeeze", "Identity", "Cast", "Flatten")


def apply(graph: Graph, store: Quantised) -> Applied:
    done = Applied("int8 embedding")
    ids = token_ids(graph)
    nodes = []
    for node in graph.nodes:
        if node.op_type != "Gather" or node.input[0] not in graph.weights or node.input[1] not in ids:
            nodes.append(node)
            continue
        name = node.input[0]
        table = graph.weights[name]
        if table.ndim != 2 or table.shape[1] % BLOCKS[-1]:
            done.left[f"rows of {table.shape[-1]} values are not a multiple of {BLOCKS[-1]}"] += 1
            nodes.append(node)
            continue
        block = block_size(table.shape[1])
        values, scales = store.get(graph, name, ("block", 8), partial(by_block, table, block))
        graph.weights[f"{name}/rows"] = values.reshape(table.shape)
        graph.weights[f"{name}/rows_scale"] = scales
        inputs = [f"{name}/rows", node.input[1], f"{name}/rows_scale"]
        attributes: dict[str, Any] = {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": 8}
        nodes.append(
            helper.make_node(
                "GatherBlockQuantized", inputs, list(node.output), name=node.name, domain=CONTRIB, **attributes
            )
        )
        done.count += 1
    graph.replace_nodes(nodes)
    if done.count:
        declare_contrib(graph)
    return done


def token_ids(graph: Graph) -> set[str]:
    """Values that are token ids, whatever their shape."""
    found = set(TOKENS)
    for node in graph.nodes:
        if node.op_type in KEEP_IDS and node.input[0] in found:
            found.update(node.output)
    return found
