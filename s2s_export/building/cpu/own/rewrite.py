"""Applies all passes to one graph, in order."""

from __future__ import annotations

from ...graphs.graph import Graph
from ...graphs.passes import Applied
from ..onnxruntime import ondemand
from ..onnxruntime.products import drop_unused_weights
from . import attention, convolutions, declare, embedding, encoder, gates, head, norms, placing, products, source_halves
from .packing import INT8, Store

ENCODER, STEP, PREFILL = "encoder", "decoder_step", "prefill"


def rewrite(graph: Graph, store: Store, *, is_of_sound: bool = False) -> list[Applied]:
    """Rewrite the graph in place. Returns what each pass did.

    is_of_sound: whether the model reads windows of sound.
    """
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
    if graph.name == ENCODER and is_of_sound and store.precision == INT8:
        done.append(convolutions.apply(graph, store))
    if graph.name in (ENCODER, PREFILL):
        done.append(encoder.apply(graph, store.precision == INT8))
        graph.prune(graph.outputs)  # of what its attention was made of
    done += [embedding.apply(graph, store), *products.apply(graph, store), norms.apply(graph), gates.apply(graph)]
    if is_of_sound and store.precision == INT8:
        done.append(source_halves.apply(graph))
    if graph.name == STEP:
        done.append(ondemand.apply(graph, on_demand))
    drop_unused_weights(graph, ondemand.read_values(graph))
    declare(graph)
    return done
