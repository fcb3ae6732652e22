"""What a parsed network must consist of.

A graph may parse without errors and still become something else than intended: an attention computed by separate
products, a cache that is copied, a plugin that was not found. So the layers are counted, and compared with those that
the graph's nodes should become.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import BuildError
from ...runtime.backends._tensorrt.library import Library
from ...runtime.backends._tensorrt.messages import Messages

ATTENTION, CACHE_UPDATE, PLUGIN = "ATTENTION_INPUT", "KV_CACHE_UPDATE", "PLUGIN_V3"
QUANTIZE, DEQUANTIZE = "QUANTIZE", "DEQUANTIZE"
SELF_ATTENTIONS = ("BeamSelfAttention", "BeamSelfAttentionBias")
CROSS_ATTENTIONS = ("CrossAttention", "CrossAttentionBias")
NATIVE_ATTENTION, NATIVE_CACHE_UPDATE = "TRT_Attention", "TRT_KVCacheUpdate"


def natives(parser: Any) -> set[str]:
    """The names of our functions that the parser replaces by its own layers."""
    return {name for name in (NATIVE_ATTENTION, NATIVE_CACHE_UPDATE) if parser.supports_operator(name)}


def histogram(network: Any) -> dict[str, int]:
    """The number of layers of each type."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    return dict(sorted(Counter(str(layer.type).rpartition(".")[2] for layer in layers).items()))


def expected_layers(calls: Mapping[str, int], native: set[str], library: Library, plugins: bool) -> dict[str, int]:
    """What a graph's nodes should become. calls: how many nodes of each type it has. native: see `natives`."""
    mine = sum(calls.get(name, 0) for name in SELF_ATTENTIONS)
    crossed = sum(calls.get(name, 0) for name in CROSS_ATTENTIONS)
    attentions = calls.get(NATIVE_ATTENTION, 0) + (0 if plugins else mine + crossed)
    updates = calls.get(NATIVE_CACHE_UPDATE, 0) + (0 if plugins else 2 * mine)
    return {
        # An older parser uses the function's body instead.
        ATTENTION: (attentions if NATIVE_ATTENTION in native else 0) + calls.get("Attention", 0),
        CACHE_UPDATE: updates if library.has_cache_layer else 0,
        PLUGIN: mine + crossed if plugins else 0,
        QUANTIZE: calls.get("QuantizeLinear", 0),
        DEQUANTIZE: calls.get("DequantizeLinear", 0),
    }


def check(name: str, network: Any, messages: Messages, expected: Mapping[str, int]) -> dict[str, int]:
    """The layers by type. Raises BuildError where an input was dropped or a node became other layers than it should."""
    check_inputs(name, messages)
    found = histogram(network)
    wrong = [
        f"{found.get(kind, 0)} {kind} layers, expected {expected[kind]}"
        for kind in expected
        if found.get(kind, 0) != expected[kind]
    ]
    if wrong:
        raise BuildError(
            f"{name}: {'; '.join(wrong)}: some nodes left the path that the target is meant to take; "
            "use a library version that has these layers, or change `plugins` in the recipe"
        )
    return found


def check_inputs(name: str, messages: Messages) -> None:
    """Raises BuildError for an input that was dropped. Some are reported while parsing, some only while building."""
    if dropped := messages.dropped_inputs:
        raise BuildError(
            f"{name}: inputs were dropped, so the engine would compute something else: "
            f"{'; '.join(sorted(set(dropped)))}; report this graph, or build another target"
        )


def attentions(network: Any, library: Library) -> Sequence[Any]:
    """The native attentions of a network."""
    found = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if str(layer.type).endswith(ATTENTION):
            layer.__class__ = library.trt.IAttentionInputLayer  # as TensorRT's bindings downcast
            found.append(layer.attention)
    return found
