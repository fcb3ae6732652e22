"""Applies all passes to one graph, in order."""

from __future__ import annotations

from ...graphs.graph import Graph
from ...graphs.passes import Applied
from ..onnxruntime import ondemand
from ..onnxruntime.products import drop_unused_weights
from . import attention, declare, embedding, encoder, gates, head, norms, placing, products
from .packing import INT8, Store

ENCODER, STEP, PREFILL = "encoder", "decoder_step", "prefill"


def rewrite(graph: Graph, store: Store) -> list[Applied]:
    """Rewrite the graph in place. Returns what each pass did."""
    done: list[Applied] = []
    on_demand: tuple[str, ...] = ondemand.ON_DEMAND
    if graph.name == STEP:
        projection = head.apply(graph, store)
        if projection.count:  # the new node computes the log-probabilities on demand
            on_demand = tuple(name for name in on_demand if name not in head.OUTPUTS)
        done += [*attention.apply(graph), projection]
        graph.prune([name for name in graph.outputs if name not in ondemand.LEFT_OUT])
        done.append(placing.apply(graph))
    if graph.name == PREFILL:
        graph.prune(graph.outputs)  # of attention weights, for which nobody asks
        done.append(attention.apply(graph)[1])
    if graph.name in (ENCODER, PREFILL):
        done.append(encoder.apply(graph, store.precision == INT8))
    done += [embedding.apply(graph, store), *products.apply(graph, store), norms.apply(graph), gates.apply(graph)]
    if graph.name == STEP:
        done.append(ondemand.apply(graph, on_demand))
    drop_unused_weights(graph, ondemand.read_values(graph))
    declare(graph)
    return done
