"""An encoder alone, with a classifier or without: its structure, and the one graph that is emitted from it.

Letters as in structure.py; N labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from ...runtime.sources import MASK
from .builder import FLOAT, Dimension, GraphBuilder
from .layers import activation, normed
from .structure import Linear, Norm, Stack, Stem
from .transformer import emit_encoder
from .weights import WeightStore


@dataclass(frozen=True)
class Classifier:
    """Layers that make N logits of a state, one after the other: activation(x W + b), or a norm. The last has weights.

    of_tokens: whether every token has logits; otherwise the source has, made of its first token's state, or of the
    mean of its tokens' where `pools_mean`.
    """

    layers: tuple[tuple[Linear, str] | Norm, ...]
    of_tokens: bool
    pools_mean: bool = False

    @property
    def n_labels(self) -> int:
        last = self.layers[-1]
        assert not isinstance(last, Norm)
        return int(last[0].weight.shape[0])


@dataclass(frozen=True)
class EncoderModel:
    """norm_first: whether blocks are pre-norm. classifier: None where the states themselves are wanted."""

    EMITTER: ClassVar[str] = ".encoder_model"
    KIND: ClassVar[str] = "encoder"

    encoder: Stack
    norm_first: bool
    classifier: Classifier | None = None

    def sizes(self) -> dict[str, int]:
        """Sizes for the manifest."""
        assert not isinstance(self.encoder.embedding, Stem)
        block = self.encoder.blocks[0]
        return {
            "source_vocabulary_size": self.encoder.embedding.shape[0],
            "width": self.encoder.width,
            "encoder_layers": len(self.encoder.blocks),
            "heads": block.self_attention.n_heads,
            "head_size": block.self_attention.head_size,
            "feed_forward": block.feed_forward.inner.weight.shape[0],
        }


def emit(model: EncoderModel, store: WeightStore) -> dict[str, onnx.ModelProto]:
    """encoder: ids and mask [B,S] -> encoder_states [B,S,E], or logits [B,N] or [B,S,N]. Weights go to `store`."""
    g = GraphBuilder("encoder", store)
    states, rows = emit_encoder(g, model.encoder, model.norm_first)
    if model.classifier is None:
        g.output(states, "encoder_states", FLOAT, ["B", "S", model.encoder.width])
        return {"encoder": g.model()}
    classifier = model.classifier
    shape: list[Dimension] = ["B", "S", classifier.n_labels] if classifier.of_tokens else ["B", classifier.n_labels]
    with g.scope("classifier"):
        x = rows if classifier.of_tokens else _pooled(g, states, classifier)  # [B*S,E] or [B,E]
        for part in classifier.layers:
            if isinstance(part, Norm):
                x = normed(g, x, part)
            else:
                x = activation(g, g.linear(x, part[0].weight, part[0].bias), part[1])
        if classifier.of_tokens:
            x = g.reshape(x, [g.size(states, 0), g.size(states, 1), classifier.n_labels])
    g.output(x, "logits", FLOAT, shape)
    return {"encoder": g.model()}


def _pooled(g: GraphBuilder, states: str, classifier: Classifier) -> str:
    """[B,S,E] -> [B,E]"""
    if not classifier.pools_mean:
        return g.op("Gather", [states, g.constant(0)], axis=1)
    mask = g.op("Cast", [g.op("Unsqueeze", [MASK, g.constant([2])])], to=FLOAT)  # [B,S,1]
    total = g.op("ReduceSum", [g.op("Mul", [states, mask]), g.constant([1])], keepdims=0)
    return g.op("Div", [total, g.op("ReduceSum", [mask, g.constant([1])], keepdims=0)])
