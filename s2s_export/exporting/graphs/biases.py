"""What is added to the scores of attention: masks, relative positions and windows.

Each is emitted once for all layers that share it.
"""

from __future__ import annotations

import numpy as np
import onnx

from .builder import GraphBuilder
from .structure import Attention, PairBias, RelativePositions

MASKED = -1e9  # added to the scores of hidden positions; its exp is 0 in fp32
Key = tuple[int, tuple[int, int] | None]


def _key(attention: Attention) -> Key:
    return id(attention.relative), attention.window


class EncoderMasks:
    """The additive mask of each encoder layer: mask [B,1|H,S|1,S] of all layers, and what a layer has of its own."""

    def __init__(self, g: GraphBuilder, mask: str, length: str) -> None:
        self._g, self._mask, self._length = g, mask, length
        self._found: dict[Key, str] = {(id(None), None): mask}

    def of(self, attention: Attention) -> str:
        key = _key(attention)
        if key not in self._found:
            g, mask = self._g, self._mask
            if isinstance(attention.relative, PairBias):
                mask = g.op("Add", [mask, g.weight("relative_bias", attention.relative.by_pair)])
            elif attention.relative is not None:
                mask = g.op("Add", [mask, encoder_relative_bias(g, attention.relative, self._length)])
            if attention.window is not None:
                mask = g.op("Add", [mask, outside(g, attention.window, distances(g, self._length))])
            self._found[key] = mask
        return self._found[key]


class DecoderBiases:
    """The additive bias [1,H,1,C] of each decoder layer, or None. shared: that of all layers."""

    def __init__(self, g: GraphBuilder, shared: str | None, position: str, ancestors: str) -> None:
        self._g, self._shared, self._position = g, shared, position
        self._ancestors = ancestors
        self._found: dict[Key, str | None] = {(id(None), None): shared}

    def of(self, attention: Attention) -> str | None:
        key = _key(attention)
        if key not in self._found:
            g, bias = self._g, self._shared
            capacity = g.size(self._ancestors, 2)
            if isinstance(attention.relative, RelativePositions):
                own = decoder_relative_bias(g, attention.relative, self._position, capacity)
                bias = own if bias is None else g.op("Add", [bias, own])
            if attention.window is not None:
                hidden = outside(g, attention.window, g.op("Sub", [g.range(capacity), self._position]))  # [C]
                hidden = g.op("Unsqueeze", [hidden, g.constant([0, 1, 2])])
                by_head = g.constant([1, attention.n_heads, 1, 1])
                bias = g.op("Expand", [hidden, by_head]) if bias is None else g.op("Add", [bias, hidden])
            self._found[key] = bias
        return self._found[key]


def distances(g: GraphBuilder, length: str) -> str:
    """key - query [S,S]"""
    steps = g.range(length)
    key, query = g.op("Unsqueeze", [steps, g.constant([0])]), g.op("Unsqueeze", [steps, g.constant([1])])
    return g.op("Sub", [key, query])


def outside(g: GraphBuilder, window: tuple[int, int], distance: str) -> str:
    """0 for distances in the window, MASKED for the others."""
    before, after = window
    early, late = g.op("Less", [distance, g.constant(-before)]), g.op("Greater", [distance, g.constant(after)])
    hidden = g.op("Or", [early, late])
    return g.op("Where", [hidden, g.constant(MASKED, np.float32), g.constant(0.0, np.float32)])


def encoder_relative_bias(g: GraphBuilder, positions: RelativePositions, length: str) -> str:
    """[1,H,S,S]"""
    return g.op("Unsqueeze", [bias_of(g, positions, distances(g, length)), g.constant([0])])


def decoder_relative_bias(g: GraphBuilder, positions: RelativePositions, position: str, capacity: str) -> str:
    """[1,H,1,C]"""
    bias = bias_of(g, positions, g.op("Sub", [g.range(capacity), position]))  # [H,C]
    return g.op("Unsqueeze", [bias, g.constant([0, 2])])


def bias_of(g: GraphBuilder, positions: RelativePositions, distance: str) -> str:
    last = positions.first + positions.by_distance.shape[1] - 1
    near = g.op("Min", [g.op("Max", [distance, g.constant(positions.first)]), g.constant(last)])
    column = g.op("Sub", [near, g.constant(positions.first)])
    return g.op("Gather", [g.weight("relative_bias", positions.by_distance.float()), column], axis=1)


def source_mask_bias(g: GraphBuilder, source_mask: str) -> str:
    """[B,S] of 0 and 1 -> additive [B,1,1,S]."""
    seen = g.op("Unsqueeze", [g.op("Cast", [source_mask], to=onnx.TensorProto.BOOL), g.constant([1, 2])])
    return g.op("Where", [seen, g.constant(0.0, np.float32), g.constant(MASKED, np.float32)])


def ancestor_mask(g: GraphBuilder, ancestors: str, position: str, batch: str, beams: str) -> str:
    """ancestors [B,K,C] -> additive [B,1,K,N]: beam k sees slot t*K + j if ancestors[b,k,t] == j and t <= position."""
    last = g.constant([3])
    same = g.op("Equal", [g.op("Unsqueeze", [ancestors, last]), g.range(beams)])  # [B,K,C,K]
    past = g.op("LessOrEqual", [g.range(g.size(ancestors, 2)), position])  # [C]
    seen = g.op("And", [same, g.op("Unsqueeze", [past, g.constant([1])])])
    mask = g.op("Where", [seen, g.constant(0.0, np.float32), g.constant(MASKED, np.float32)])
    # N is read from the caches and not computed as C*K: TensorRT knows the caches' size when it builds.
    return g.reshape(mask, [batch, 1, beams, g.size("self_key.0", 2)])
