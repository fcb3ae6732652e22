"""A decoder alone, which goes on with a prompt: its structure, and the three graphs that are emitted from it.

    encoder         ids -> their embeddings, at their positions
    cross_kv_init   embeddings -> keys and values of the prompt's tokens, of every layer: the whole prompt in one pass
    decoder_step    one token per beam: attends to the prompt and to the beam's own tokens under one softmax

A source is a prompt. Its keys and values stand where cross-attention's stand elsewhere, so that its beams share them,
and prompts of unequal length share a batch: each is filled up on the right, and positions count from its own end. The
first token that a step is fed is the prompt's last, whose key the step computes itself and hides among the prompt's.

Letters as in structure.py; G heads of keys, P = H/G heads of the query that share one, n = the prompt's length - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from ...runtime.sources.token_ids import INPUT_IDS
from .biases import MASKED, DecoderBiases, EncoderMasks, ancestor_mask, outside
from .builder import FLOAT, INT64, Dimension, GraphBuilder
from .functions import NATIVE
from .general_attention import Angles, soft_capped
from .layers import feed_forward, merge_heads, normed
from .prefill import causal_mask
from .structure import Attention, Block, Experts, Linear, PositionTable, Stack, Stem, Tensor
from .transformer import attention_heads, embed, emit_candidates, feed_forward_block, residual, whole_attention
from .weights import WeightStore


@dataclass(frozen=True)
class DecoderOnly:
    """Pre-norm blocks without cross-attention. head: [V, E] and bias [V]. soft_cap: of the logits."""

    EMITTER: ClassVar[str] = ".decoder_only"
    KIND: ClassVar[str] = "decoder"

    decoder: Stack
    head: Linear
    soft_cap: float | None = None

    def sizes(self) -> dict[str, int]:
        """Sizes for the manifest."""
        block = self.decoder.blocks[0]
        attention = block.self_attention
        assert not isinstance(self.decoder.embedding, Stem)
        return {
            "vocabulary_size": self.head.weight.shape[0],
            "source_vocabulary_size": self.decoder.embedding.shape[0],
            "width": self.decoder.width,
            "decoder_layers": len(self.decoder.blocks),
            "heads": attention.n_heads,
            "key_heads": attention.key_heads,
            "head_size": attention.head_size,
            "feed_forward": block.feed_forward.inner.weight.shape[0],
        }


def emit(model: DecoderOnly, store: WeightStore) -> dict[str, onnx.ModelProto]:
    """The graphs by name. Weights go to `store`."""
    return {
        "encoder": _embedded(model, store),
        "cross_kv_init": _prompt(model, store),
        "decoder_step": _step(model, store),
    }


def _embedded(model: DecoderOnly, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("encoder", store)
    stack = model.decoder
    ids = g.input(INPUT_IDS, INT64, ["B", "S"])
    with g.scope("decoder"):
        x = embed(g, stack, ids)  # [B,S,E]
        if (table := _table(stack)) is not None:
            x = g.op("Add", [x, g.op("Gather", [g.weight("positions", table), g.range(g.size(ids, 1))], axis=0)])
    g.output(x, "encoder_states", FLOAT, ["B", "S", stack.width])
    return g.model()


def _prompt(model: DecoderOnly, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("cross_kv_init", store)
    stack = model.decoder
    states = g.input("encoder_states", FLOAT, ["B", "S", stack.width])
    batch, length = g.size(states, 0), g.size(states, 1)
    found: list[tuple[str, str]] = []
    with g.scope("decoder"):
        angles, masks = Angles(g, g.range(length)), EncoderMasks(g, causal_mask(g, length), length)
        x = g.reshape(states, [-1, stack.width])  # [B*S,E]
        for i, block in enumerate(stack.blocks):
            with g.scope(f"layer{i}"):

                def own(h: str, a: Attention = block.self_attention) -> str:
                    heads = attention_heads(g, h, a, angles, batch, length)
                    found.append((heads[1], heads[2]))
                    return whole_attention(g, a, heads, masks.of(a), length)

                if i == len(stack.blocks) - 1:  # of the last layer only keys and values are wanted
                    h = normed(g, x, block.self_norm)
                    _, key, value = attention_heads(g, h, block.self_attention, angles, batch, length)
                    found.append((key, value))
                    break
                x = _layer(g, x, block, own)
    for i, (block, pair) in enumerate(zip(stack.blocks, found, strict=True)):
        a = block.self_attention
        for name, value in zip(("key", "value"), pair, strict=True):
            g.output(value, f"cross_{name}.{i}", FLOAT, ["B", a.key_heads, "S", a.head_size])
    return g.model()


def _step(model: DecoderOnly, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("decoder_step", store)
    stack = model.decoder
    token = g.input("token", INT64, ["B", "K"])
    position = g.input("position", INT64, [1])
    ancestors = g.input("ancestors", INT64, ["B", "K", "C"])
    source_mask = g.input("source_mask", INT64, ["B", "S"])
    batch, beams = g.size(token, 0), g.size(token, 1)
    caches = []
    with g.scope("decoder"):
        n = g.op("Sub", [g.op("ReduceSum", [source_mask, g.constant([1])], keepdims=1), g.constant([1])])  # [B,1]
        at = g.op("Add", [n, position])  # [B,1]: where the token that is fed stands
        own_mask = ancestor_mask(g, ancestors, position, batch, beams)  # [B,1,K,N]
        prompts = _PromptMasks(g, n, at, g.range(g.size(source_mask, 1)))
        x = embed(g, stack, token)  # [B,K,E]
        if (table := _table(stack)) is not None:
            x = g.op("Add", [x, g.op("Gather", [g.weight("positions", table), at], axis=0)])
        x = g.reshape(x, [-1, stack.width])  # [R,E]
        angles = Angles(g, g.op("Unsqueeze", [at, g.constant([2])]))
        biases = DecoderBiases(g, None, position, ancestors)
        for i, block in enumerate(stack.blocks):
            with g.scope(f"layer{i}"):
                a = block.self_attention
                shapes: list[list[Dimension]] = [["B", a.key_heads, size, a.head_size] for size in ("S", "N")]
                prompt = [g.input(f"cross_{name}.{i}", FLOAT, shapes[0]) for name in ("key", "value")]
                cache = [g.input(f"self_{name}.{i}", FLOAT, shapes[1]) for name in ("key", "value")]

                def own(h: str, a: Attention = a, prompt: list[str] = prompt, cache: list[str] = cache) -> str:
                    query, *written = attention_heads(g, h, a, angles, batch, beams)
                    index = g.op("Expand", [g.op("Mul", [position, beams]), batch])
                    updated = [
                        g.op("TRT_KVCacheUpdate", [old, new, index], domain=NATIVE)
                        for old, new in zip(cache, written, strict=True)
                    ]
                    caches.append((updated, a))
                    mask = _by_slot(g, own_mask, biases.of(a), beams)
                    parts = [(prompt[0], prompt[1], prompts.of(a)), (updated[0], updated[1], mask)]
                    mixed = _attend_to_parts(g, a, query, parts, beams)
                    return g.linear(merge_heads(g, mixed, a), a.output.weight, a.output.bias, "output")

                x = _layer(g, x, block, own)
        if stack.final_norm:
            x = normed(g, x, stack.final_norm)
    with g.scope("head"):
        logits = g.linear(x, model.head.weight, model.head.bias, "head")
        if model.soft_cap is not None:
            logits = soft_capped(g, logits, model.soft_cap)
    emit_candidates(g, logits, model.head.weight.shape[0], batch, beams)
    for i, (updated, a) in enumerate(caches):
        for name, value in zip(("key", "value"), updated, strict=True):
            g.output(value, f"self_{name}_out.{i}", FLOAT, ["B", a.key_heads, "N", a.head_size])
    return g.model()


def _table(stack: Stack) -> Tensor | None:
    """The table of positions, [P,E], or None where positions are rotary."""
    if stack.positions is None:
        return None
    assert isinstance(stack.positions, PositionTable) and not stack.positions.offset
    return stack.positions.table


def _layer(g: GraphBuilder, x: str, block: Block, attend: Callable[[str], str]) -> str:
    if block.is_parallel:
        h = normed(g, x, block.self_norm)
        assert not isinstance(block.feed_forward, Experts)
        both = g.op("Add", [attend(h), feed_forward(g, h, block.feed_forward)])
        return g.op("Add", [x, both])
    x = residual(g, x, block.self_norm, True, attend, block.after_self)
    return feed_forward_block(g, x, block, norm_first=True)


class _PromptMasks:
    """The additive mask [B,1,1,S] of the prompt's tokens for each layer: those before the last, and in its window.

    n [B,1]: how many are before the last. at [B,1]: the place of the query. places [S].
    """

    def __init__(self, g: GraphBuilder, n: str, at: str, places: str) -> None:
        self._g, self._at, self._places = g, at, places
        hidden = g.op("Where", [g.op("Less", [places, n]), *self._values()])  # [B,S]
        self._all = g.op("Unsqueeze", [hidden, g.constant([1, 2])])
        self._found: dict[tuple[int, int] | None, str] = {None: self._all}

    def _values(self) -> list[str]:
        return [self._g.constant(value, np.float32) for value in (0.0, MASKED)]

    def of(self, attention: Attention) -> str:
        g, window = self._g, attention.window
        if window not in self._found:
            assert window is not None
            far = outside(g, window, g.op("Sub", [self._places, self._at]))  # [B,S]
            self._found[window] = g.op("Add", [self._all, g.op("Unsqueeze", [far, g.constant([1, 2])])])
        return self._found[window]


def _by_slot(g: GraphBuilder, mask: str, bias: str | None, beams: str) -> str:
    """mask [B,1,K,N] with a bias [1,H,1,C], which is the same for the K slots of a position and for every head."""
    if bias is None:
        return mask
    one = g.op("Slice", [bias, g.constant([0]), g.constant([1]), g.constant([1])])  # a window is that of all heads
    by_beam = g.op("Unsqueeze", [one, g.constant([4])])  # [1,1,1,C,1]
    repeated = g.op("Expand", [by_beam, g.op("Concat", [g.constant([1, 1, 1, 1]), beams], axis=0)])
    return g.op("Add", [mask, g.reshape(repeated, [1, 1, 1, -1])])


def _attend_to_parts(
    g: GraphBuilder, attention: Attention, query: str, parts: Sequence[tuple[str, str, str]], beams: str
) -> str:
    """query [B,H,K,D] over parts of the keys, each key and value [B,G,n,D] and mask additive [B,1,1|K,n] -> [B,H,K,D].

    One softmax over all parts. Nothing but scores is joined: the prompt's keys and values stay where they are.
    """
    groups, heads, size = attention.key_heads, attention.n_heads, attention.head_size
    query = g.op("Mul", [query, g.constant(attention.scale, np.float32)])
    rows = g.reshape(query, [0, groups, -1, size])  # [B,G,P*K,D]
    scores = []
    for key, _, mask in parts:
        found = g.op("MatMul", [rows, g.transpose(key, [0, 1, 3, 2])])  # [B,G,P*K,n]
        by_head = g.reshape(found, [0, heads, beams, g.size(key, 2)])
        if attention.soft_cap is not None:
            by_head = soft_capped(g, by_head, attention.soft_cap)
        scores.append(g.op("Add", [by_head, mask]))
    weights = g.op("Softmax", [g.op("Concat", scores, axis=3)], axis=-1)
    sizes = g.op("Concat", [g.size(key, 2) for key, *_ in parts], axis=0)
    mixed = []
    for part, (_, value, _) in zip(g.ops("Split", [weights, sizes], len(parts), axis=3), parts, strict=True):
        mixed.append(g.op("MatMul", [g.reshape(part, [0, groups, -1, g.size(value, 2)]), value]))
    return g.reshape(g.op("Add", mixed), [0, heads, beams, size])
