"""What a parsed network must consist of.

A graph that parses may still not be the one that was meant: an attention taken apart into products, a cache that is
copied, a plugin that was not found. So the layers are counted and compared with what the graph's nodes should become.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import BuildError
from .library import Library
from .messages import Messages

ATTENTION, CACHE_UPDATE, PLUGIN = "ATTENTION_INPUT", "KV_CACHE_UPDATE", "PLUGIN_V3"
WATCHED = (ATTENTION, CACHE_UPDATE, PLUGIN)


def histogram(network: Any) -> dict[str, int]:
    """Layers by type."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    return dict(sorted(Counter(str(layer.type).rpartition(".")[2] for layer in layers).items()))


def expected_layers(calls: Mapping[str, int], library: Library, plugins: bool) -> dict[str, int]:
    """What the nodes of our domains should become. calls: how many nodes of each type the graph has."""
    own = sum(calls.get(name, 0) for name in ("TRT_Attention",))
    self_attentions = sum(calls.get(name, 0) for name in ("BeamSelfAttention", "BeamSelfAttentionBias"))
    crossed = sum(calls.get(name, 0) for name in ("CrossAttention", "CrossAttentionBias"))
    if plugins:
        return {
            ATTENTION: own if library.has_attention_layer else 0,
            CACHE_UPDATE: 0,
            PLUGIN: self_attentions + crossed,
        }
    return {ATTENTION: own + self_attentions + crossed, CACHE_UPDATE: 2 * self_attentions, PLUGIN: 0}


def check(name: str, network: Any, messages: Messages, expected: Mapping[str, int]) -> dict[str, int]:
    """The histogram, or BuildError: an input was dropped, or a layer is not what its node should become."""
    if dropped := messages.dropped_inputs:
        raise BuildError(
            f"{name}: the parser dropped inputs, so the engine would compute something else: "
            f"{'; '.join(sorted(set(dropped)))}; report this graph, or build another target"
        )
    found = histogram(network)
    wrong = [
        f"{found.get(kind, 0)} {kind} layers, expected {expected[kind]}"
        for kind in WATCHED
        if found.get(kind, 0) != expected[kind]
    ]
    if wrong:
        raise BuildError(
            f"{name}: {'; '.join(wrong)}: some nodes left the path that the target is meant to take; "
            "use a library version that has these layers, or change `plugins` in the recipe"
        )
    return found


def attentions(network: Any, library: Library) -> Sequence[Any]:
    """The native attentions of a network."""
    found = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if str(layer.type).endswith(ATTENTION):
            layer.__class__ = library.trt.IAttentionInputLayer  # as TensorRT's bindings downcast
            found.append(layer.attention)
    return found
