"""All passes over one graph, in order."""

from __future__ import annotations

from ...lowering.graph import Graph
from .. import Applied, ondemand
from ..products import drop_unused_weights
from . import attention, declare, embedding, head, products
from .packing import Store

STEP = "decoder_step"


def rewrite(graph: Graph, store: Store) -> list[Applied]:
    """Rewrite the graph in place; what each pass did."""
    done: list[Applied] = []
    if graph.name == STEP:
        done += [*attention.apply(graph), head.apply(graph, store)]
        graph.prune([name for name in graph.outputs if name not in ondemand.LEFT_OUT])
    done.append(embedding.apply(graph, store))
    done += products.apply(graph, store)
    if graph.name == STEP:
        done.append(ondemand.apply(graph, ("attention",) if done[2].count else ondemand.ON_DEMAND))
    drop_unused_weights(graph, ondemand.read_values(graph))
    declare(graph)
    return done
