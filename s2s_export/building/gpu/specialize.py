"""Adapts the portable graph to one target: removes outputs that it does not need and, at the end, sets static sizes.

On a GPU the search's bookkeeping (log-softmax, best tokens, probes) happens outside the graph, so a step gives only
logits and caches, and cross-attention weights where the recipe asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..graphs.graph import Graph

PLUGIN_PREFIX = "plugin_"
OPTIONAL_OUTPUTS = ("attention",)
# Outputs of a decoder step for a search on the host; a search on the device reads the logits instead.
SEARCH_OUTPUTS = ("log_probs", "candidate_ids", "candidate_log_probs", "log_normalizer", "probe_log_probs")


def specialize(graph: Graph, *, attention: bool, search: bool, plugins: bool) -> dict[str, Any]:
    """Changes `graph`. Returns what was done.

    attention: keep that output. search: keep the nodes that find the best tokens. plugins: keep the attributes by which
    a parser takes our kernels.
    """
    dropped = (set() if search else set(SEARCH_OUTPUTS)) | (set() if attention else set(OPTIONAL_OUTPUTS))
    before = set(graph.outputs)
    n_pruned = graph.prune([name for name in graph.outputs if name not in dropped])
    n_native = 0
    if not plugins:
        for node in graph.model.graph.node:
            kept = [attribute for attribute in node.attribute if not attribute.name.startswith(PLUGIN_PREFIX)]
            n_native += len(kept) != len(node.attribute)
            node.ClearField("attribute")
            node.attribute.extend(kept)
    return {
        "outputs_pruned": sorted(before.intersection(dropped)),
        "nodes_pruned": n_pruned,
        "plugin_attributes_removed": n_native,
    }


def fix_sizes(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Replaces letters in the shapes of inputs and outputs by numbers. Returns how many dimensions changed."""
    n_fixed = 0
    for value in (*graph.model.graph.input, *graph.model.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in sizes:
                size.dim_value = sizes[size.dim_param]
                n_fixed += 1
    return n_fixed


def drop_functions(graph: Graph, domain: str) -> int:
    """Removes the bodies of a domain's functions: TensorRT before 10.7 prefers a body to the plugin.

    Returns how many were removed.
    """
    kept = [function for function in graph.model.functions if function.domain != domain]
    n_dropped = len(graph.model.functions) - len(kept)
    graph.model.ClearField("functions")
    graph.model.functions.extend(kept)
    return n_dropped
