"""An engine of packed weights, computed in numpy and float32: the definition of what the backend `cuda` computes.

A build compares it with the portable graphs, so that a structure that was read wrongly makes no engine, and tests
compare the kernels with it. Letters as in docs/architecture.md; weights are those that the engine has, rounded and all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...runtime.backends._cuda_native.encoder import rows_of
from ...runtime.backends._cuda_native.model import Attention, Distances, FeedForward, Model, Norm, Stack
from ...runtime.backends._cuda_native.state import answer
from ...runtime.decoding.state import Ints, StepQuery, StepResult
from .numpy_weights import Floats, Unpacked

fragments = plugin_sources.module("transformer.fragments")
reference = plugin_sources.module("transformer.reference")


class NumpyModel(Unpacked[Model]):
    """An open engine of a Transformer."""

    def _norm(self, rows: Floats, norm: Norm | None, true_width: int) -> Floats:
        if norm is None:
            return rows
        bias = None if norm.bias is None else self.array(norm.bias)
        return np.asarray(reference.normed(rows, self.array(norm.weight), bias, norm.epsilon, true_width), np.float32)

    def _feed_forward(self, rows: Floats, part: FeedForward) -> Floats:
        weight = self.weight(part.inner.weight, part.inner.scale)
        bias = None if part.inner.bias is None else self.array(part.inner.bias)
        if part.gated:
            (gate, inner), biases = fragments.parted(weight), (None, None)
            if bias is not None:
                biases = fragments.parted(bias)
            hidden = reference.product(rows, inner, biases[1], part.activation, gate, biases[0])
        else:
            hidden = reference.product(rows, weight, bias, part.activation)
        return self.product(np.asarray(hidden, np.float32), part.outer)

    def _bias(self, distances: Distances | None, found: NDArray[np.int64]) -> Floats | None:
        """[H, ...] for distances [...]."""
        return None if distances is None else reference.biases(self.array(distances.table), distances.first, found)

    def _embedded(self, stack: Stack, ids: Ints, rows: Any) -> Floats:
        """ids [R], rows [R] of the table of positions."""
        assert stack.embedding is not None
        x = self.weight(stack.embedding, stack.embedding_row_scales)[ids] * np.float32(stack.embedding_scale)
        if stack.positions is not None:
            x = x + self.array(stack.positions.table)[rows]
        return self._norm(x, stack.embedding_norm, stack.true_width)

    def _of_features(self, stack: Stack, features: Floats) -> Floats:
        """features [B, F, T]: the stream [B*S, E]."""
        x = features.transpose(0, 2, 1)
        for one in stack.stem:
            windows = reference.windows(x, one.size, one.step, one.padding, one.product.inputs)
            bias = None if one.product.bias is None else self.array(one.product.bias)
            weight = self.weight(one.product.weight, one.product.scale)
            rows = windows.reshape(-1, one.product.inputs)
            x = reference.product(rows, weight, bias, one.activation).reshape(*windows.shape[:2], -1)
        assert stack.positions is not None
        return np.asarray((x + self.array(stack.positions.table)[: x.shape[1]]).reshape(-1, x.shape[2]), np.float32)

    def encode(self, values: Mapping[str, NDArray[Any]]) -> list[tuple[Floats, Floats]]:
        """values: what a kind of source prepared. Of every decoder layer the cross-attention keys and values
        [B, H, S, D]."""
        stack, mask = self.model.encoder, values["source_mask"]
        B, S = mask.shape
        if stack.stem:
            x = self._of_features(stack, values["input_features"])
        else:
            ids = values["input_ids"]
            x = self._embedded(stack, ids.reshape(-1), rows_of(stack.positions, ids).reshape(-1))
        steps = np.arange(S)
        visible = np.broadcast_to(mask[:, None, None] != 0, (B, stack.heads, S, S))

        def attend(rows: Floats, a: Attention) -> Floats:
            query, key, value = _heads(self.product(rows, a.rows), B, S, stack)
            bias = self._bias(a.distances, steps[None] - steps[:, None])
            return self.product(_merged(reference.attention(query, key, value, visible, a.scale, bias)), a.output)

        for layer in stack.layers:
            x = self._added(x, stack, layer.self_attention.norm, lambda h, a=layer.self_attention: attend(h, a))
            x = self._added(x, stack, layer.feed_forward.norm, lambda h, f=layer.feed_forward: self._feed_forward(h, f))
        x = self._norm(x, stack.final_norm, stack.true_width)
        decoder = self.model.decoder
        both = self.product(x, self.model.cross).reshape(B, S, len(decoder.layers), 2, decoder.heads, -1)
        both = both.transpose(2, 3, 0, 4, 1, 5)
        return [(layer[0], layer[1]) for layer in both]

    def _added(self, x: Floats, stack: Stack, norm: Norm, part: Any) -> Floats:
        if stack.norm_first:
            return np.asarray(x + part(self._norm(x, norm, stack.true_width)), np.float32)
        return self._norm(x + part(x), norm, stack.true_width)

    def begin(self, values: Mapping[str, NDArray[Any]], n_beams: int) -> NumpyState:
        """values: what a kind of source prepared."""
        return NumpyState(self, values, n_beams)


def _heads(rows: Floats, B: int, S: int, stack: Stack) -> Any:
    """[B*S, n*H*D] -> [n, B, H, S, D]"""
    return rows.reshape(B, S, -1, stack.heads, stack.head_size).transpose(2, 0, 3, 1, 4)


def _merged(heads: NDArray[Any]) -> Floats:
    """[B, H, S, D] -> [B*S, H*D]"""
    B, H, S, D = heads.shape
    return np.ascontiguousarray(heads.transpose(0, 2, 1, 3).reshape(B * S, H * D), np.float32)


class NumpyState:
    """See `decoding.state.DecodeState`. Histories are copied when beams change places."""

    def __init__(self, owner: NumpyModel, values: Mapping[str, NDArray[Any]], n_beams: int) -> None:
        self.vocabulary_size = owner.model.vocabulary
        mask = values["source_mask"]
        self.n_sources, self.n_beams = len(mask), n_beams
        self._owner, self._mask, self._t = owner, mask, 0
        self._cross = owner.encode(values)
        stack = owner.model.decoder
        empty = np.zeros((len(mask), n_beams, stack.heads, 0, stack.head_size), np.float32)
        self._caches = [(empty, empty) for _ in stack.layers]  # [B, K, H, T, D]

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        return answer(self.logits(tokens, parents), query)

    def logits(self, tokens: Ints, parents: Ints) -> Floats:
        """[B, K, V]"""
        owner, stack, (B, K), t = self._owner, self._owner.model.decoder, tokens.shape, self._t
        if t:
            at = (np.arange(B)[:, None], parents)
            self._caches = [(keys[at], values[at]) for keys, values in self._caches]
        self._t = t + 1
        x = owner._embedded(stack, tokens.reshape(-1), self._position_rows(tokens.reshape(-1)))

        def attend(rows: Floats, a: Attention, i: int) -> Floats:
            query, *new = owner.product(rows, a.rows).reshape(B, K, 3, stack.heads, 1, -1).transpose(2, 0, 1, 3, 4, 5)
            keys, values = (np.concatenate([old, one], axis=3) for old, one in zip(self._caches[i], new, strict=True))
            self._caches[i] = (keys, values)
            bias = owner._bias(a.distances, np.arange(t + 1) - t)
            seen = np.ones((1, t + 1), bool)
            mixed = reference.attention(query, keys, values, seen, a.scale, None if bias is None else bias[:, None])
            return owner.product(np.asarray(mixed.reshape(B * K, -1), np.float32), a.output)

        def look(rows: Floats, a: Attention, i: int) -> Floats:
            query = _heads(owner.product(rows, a.rows), B, K, stack)[0]  # [B, H, K, D]
            key, value = self._cross[i]
            visible = np.broadcast_to(self._mask[:, None, None] != 0, (B, stack.heads, K, key.shape[2]))
            return owner.product(_merged(reference.attention(query, key, value, visible, a.scale)), a.output)

        for i, layer in enumerate(stack.layers):
            own, cross, part = layer.self_attention, layer.cross_attention, layer.feed_forward
            assert cross is not None
            x = owner._added(x, stack, own.norm, lambda h, a=own, i=i: attend(h, a, i))
            x = owner._added(x, stack, cross.norm, lambda h, a=cross, i=i: look(h, a, i))
            x = owner._added(x, stack, part.norm, lambda h, f=part: owner._feed_forward(h, f))
        x = owner._norm(x, stack.final_norm, stack.true_width) * np.float32(owner.model.head_scale)
        return owner.product(x, owner.model.head)[:, : self.vocabulary_size].reshape(B, K, -1)

    def _position_rows(self, tokens: Ints) -> Ints:
        table, t = self._owner.model.decoder.positions, self._t - 1
        if table is None:
            return np.zeros_like(tokens)
        rows = np.full_like(tokens, t + table.offset)
        if table.padding_id is not None:
            rows[tokens == table.padding_id] = table.padding_id + (t if table.padding_moves else 0)
        return rows

    def keep(self, sources: Ints) -> None:
        self.n_sources, self._mask = len(sources), self._mask[sources]
        self._caches = [(keys[sources], values[sources]) for keys, values in self._caches]
        self._cross = [(key[sources], value[sources]) for key, value in self._cross]
