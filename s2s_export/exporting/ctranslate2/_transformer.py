"""A `TransformerSpec` of CTranslate2 (text to text) as a structure.

Variables that are scalars or flags are attributes: num_heads, pre_norm, activation, ... Projections of query, key and
value are stacked by rows. A quantised weight stands beside its `weight_scale`: int8 with one scale a row, int16 with
one for all (the weight is the integer divided by it).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...errors import CheckpointError, UnsupportedModel
from ..graphs.structure import (
    Attention,
    Block,
    FeedForward,
    Linear,
    Norm,
    PositionTable,
    RelativeVectors,
    Stack,
    Transformer,
)
from ..toolkits.buckets import relative_positions
from ..toolkits.sinusoids import sinusoids
from ..toolkits.weights import Weights
from ._model_file import Model

ACTIVATIONS = ("relu", "gelu_pytorch_tanh", "silu", "gelu", "quick_gelu", "tanh", "sigmoid")  # in the enum's order
LAST_REVISION = 7  # of TransformerSpec
FIRST_WITH_SIDES = 5  # before it, both sides share num_heads and others
OLD_HEADS = 8  # where nothing says another number
MOST_LAYERS = 1000
NEVER = -1e4  # its exp is 0 in fp32, and fp16 holds it
SCALE = "_scale"
OF_MODEL = ("unk_token", "bos_token", "eos_token", "with_source_bos", "with_source_eos", "with_target_bos",
            "user_decoder_start_tokens", "spec_revision")  # fmt: skip


class Reader:
    """model: as it was read. config: config.json's object, empty for old folders."""

    def __init__(self, model: Model, config: Mapping[str, Any]) -> None:
        if not 2 <= model.revision <= LAST_REVISION:
            raise UnsupportedModel(
                f"{model.path}: has revision {model.revision} of {model.spec}; expected 2 to {LAST_REVISION}; convert "
                "the original checkpoint again"
            )
        self.model = model
        self.quantised = sorted(
            {v.dtype.name for name, v in model.variables.items() if name + SCALE in model.variables}
        )
        made: dict[int, torch.Tensor] = {}  # by array, so that aliases stay one tensor
        tensors = {}
        for name, value in model.variables.items():
            if not name.endswith("weight" + SCALE):
                if id(value) not in made:
                    made[id(value)] = _tensor(model, name)
                tensors[name] = made[id(value)]
        self.weights = Weights(model.path, tensors)
        self.weights.ignore(OF_MODEL)
        epsilon = config.get("layer_norm_epsilon")
        if epsilon is not None and (not isinstance(epsilon, (int, float)) or not 0 < epsilon < 1):
            raise CheckpointError(
                f"{model.path}: config.json says layer_norm_epsilon is {epsilon!r}; restore the folder"
            )
        self._epsilon: float | None = epsilon

    def structure(self, positions: int) -> Transformer:
        """positions: how many a computed table has at least. Raises CheckpointError, UnsupportedModel."""
        encoder = self._stack("encoder", self.weights.first("encoder/embeddings_0/weight", "encoder/embeddings/weight"),
                              positions)  # fmt: skip
        decoder = self._stack("decoder", "decoder/embeddings/weight", positions)
        if "encoder/embeddings_1/weight" in self.weights:
            raise UnsupportedModel(f"{self.model.path}: its sources have features; expected tokens alone")
        n_layers = len(decoder.blocks)
        cross = decoder.blocks[-1].cross_attention
        assert cross is not None
        layer, n_heads = self._number("decoder/alignment_layer", -1), self._number("decoder/alignment_heads", 1)
        layer += n_layers if layer < 0 else 0
        if not 0 <= layer < n_layers or not 0 <= n_heads <= cross.n_heads:
            raise CheckpointError(f"{self.model.path}: its alignment_layer or alignment_heads is no layer's or head's")
        assert isinstance(decoder.embedding, torch.Tensor)
        head = self._linear("decoder/projection", len(decoder.embedding), decoder.width)
        scale = self.weights.maybe("decoder/scale_outputs")
        if self._flag("decoder/start_from_zero_embedding", False):
            decoder, head = _from_zero(decoder, head)
        self._read_settings()
        self.weights.refuse_unread()
        return Transformer(
            encoder,
            decoder,
            norm_first=self._flag("encoder/pre_norm", self._flag("pre_norm", True)),
            decoder_norm_first=self._flag("decoder/pre_norm", self._flag("pre_norm", True)),
            head=head,
            head_scale=1.0 if scale is None else float(scale.reshape(-1)[0]),
            alignment_heads=tuple((layer, head) for head in range(n_heads or cross.n_heads)),
        )

    def _read_settings(self) -> None:
        """Settings that change nothing where they have their usual value."""
        for name in ("encoder/embeddings_merge", "embeddings_merge", "decoder/alibi", "encoder/multi_query_attention"):
            if name in self.weights and self._number(name, 0) and name.endswith("alibi"):
                raise UnsupportedModel(f"{self.model.path}: has {name} set, which is not read")
        for side in ("encoder/", "decoder/", ""):
            names = ("alibi_use_positive_positions", "scale_alibi", "multi_query_attention", "num_heads", "pre_norm",
                     "activation", "alignment_layer", "alignment_heads", "embeddings_merge", "scale_embeddings",
                     "embeddings/multiply_by_sqrt_depth", "embeddings_0/multiply_by_sqrt_depth")  # fmt: skip
            self.weights.ignore(side + name for name in names)

    # Sides

    def _stack(self, side: str, embedding_name: str, positions: int) -> Stack:
        embedding = self.weights.take(embedding_name, None, None)
        width = embedding.shape[1]
        n_layers = self.model.count(f"{side}/layer_")
        if not 0 < n_layers <= MOST_LAYERS:
            raise CheckpointError(f"{self.model.path}: its {side} has {n_layers} layers, expected 1 to {MOST_LAYERS}")
        blocks = tuple(self._block(f"{side}/layer_{i}", side, width) for i in range(n_layers))
        if side == "decoder" and any(block.cross_attention is None for block in blocks):
            raise UnsupportedModel(f"{self.model.path}: its decoder has no attention to the source, which is not read")
        return Stack(
            embedding=embedding,
            embedding_scale=self._embedding_scale(side, embedding_name, width),
            positions=self._positions(side, width, positions, blocks[0].self_attention),
            blocks=blocks,
            embedding_norm=self._norm(f"{side}/layernorm_embedding", width),
            final_norm=self._norm(f"{side}/layer_norm", width),
        )

    def _embedding_scale(self, side: str, embedding_name: str, width: int) -> float:
        """A flag, or the scale itself; by the root of the width where nothing is said."""
        older = embedding_name.replace("/weight", "/multiply_by_sqrt_depth")
        name = self.weights.first(f"{side}/scale_embeddings", older)
        if name not in self.weights:
            return math.sqrt(width)
        value = float(self._scalar(name))
        if self.model[name].dtype == np.int8:
            return math.sqrt(width) if value else 1.0
        return value

    def _positions(self, side: str, width: int, positions: int, first: Attention) -> Any:
        bias = f"{side}/layer_0/self_attention/relative_attention_bias"
        if bias in self.weights:
            table = self.weights.take(bias, None, first.n_heads)  # [buckets, H]
            farthest = self._number(f"{bias[:-4]}max_distance", 0)
            return relative_positions(table, farthest, side == "encoder", self.model.path)
        if first.relative_vectors is not None:
            return None
        name = f"{side}/position_encodings/encodings"
        if name in self.weights:
            return PositionTable(self.weights.take(name, None, width))
        return PositionTable(sinusoids(positions, width, 1, self.model.path))

    def _block(self, scope: str, side: str, width: int) -> Block:
        cross = f"{scope}/attention"
        crossed = f"{cross}/linear_0/weight" in self.weights
        own = f"{scope}/self_attention"
        feed_forward_norm = self._needed_norm(f"{scope}/ffn/layer_norm", width)
        inner = self._linear(f"{scope}/ffn/linear_0", None, width)
        size = inner.weight.shape[0]
        gated = f"{scope}/ffn/linear_0_noact/weight" in self.weights
        return Block(
            self_attention=self._attention(own, side, width, is_cross=False),
            self_norm=self._needed_norm(f"{own}/layer_norm", width),
            cross_attention=self._attention(cross, side, width, is_cross=True) if crossed else None,
            cross_norm=self._needed_norm(f"{cross}/layer_norm", width) if crossed else None,
            feed_forward=FeedForward(
                inner=self._linear(f"{scope}/ffn/linear_0_noact", size, width) if gated else inner,
                outer=self._linear(f"{scope}/ffn/linear_1", width, size),
                activation=self._activation(side),
                gate=inner if gated else None,
            ),
            feed_forward_norm=feed_forward_norm,
        )

    def _attention(self, scope: str, side: str, width: int, *, is_cross: bool) -> Attention:
        n_heads = self._number(f"{side}/num_heads", self._number("num_heads", OLD_HEADS))
        size = self._number(f"{scope}/head_dim", 0) or (width // n_heads if n_heads > 0 else 0)
        n_keys = self._number(f"{scope}/num_heads_kv", n_heads)
        if self._flag(f"{scope}/multi_query", False):
            n_keys = 1
        if n_heads < 1 or size < 1 or n_keys < 1 or n_heads % n_keys:
            raise CheckpointError(
                f"{self.model.path}: {scope} has {n_heads} heads of {size} with {n_keys} of keys; restore the model"
            )
        of_query, of_keys = n_heads * size, n_keys * size
        if is_cross:
            query = self._linear(f"{scope}/linear_0", of_query, width)
            key, value = _parts(self._linear(f"{scope}/linear_1", 2 * of_keys, None), of_keys, of_keys)
        else:
            stacked = self._linear(f"{scope}/linear_0", of_query + 2 * of_keys, width)
            query, key, value = _parts(stacked, of_query, of_keys, of_keys)
        scale = self.weights.maybe(f"{scope}/queries_scale")
        vectors = None
        if f"{scope}/relative_position_keys" in self.weights:
            keys = self.weights.take(f"{scope}/relative_position_keys", None, size)
            vectors = RelativeVectors(keys, self.weights.take(f"{scope}/relative_position_values", len(keys), size))
        # The bias of every layer is the first one's, which the stack has.
        self.weights.ignore(f"{scope}/relative_attention_{name}" for name in ("bias", "max_distance"))
        return Attention(
            query=query,
            key=key,
            value=value,
            output=self._linear(f"{scope}/linear_{2 if is_cross else 1}", width, of_query),
            n_heads=n_heads,
            scale=size**-0.5 if scale is None else float(scale.reshape(-1)[0]),
            n_key_heads=None if n_keys == n_heads else n_keys,
            relative_vectors=vectors,
        )

    def _activation(self, side: str) -> str:
        number = self._number(f"{side}/activation", self._number("activation", 0))
        if not 0 <= number < len(ACTIVATIONS):
            raise UnsupportedModel(
                f"{self.model.path}: {side}/activation is {number}; expected 0 to {len(ACTIVATIONS) - 1} "
                f"({', '.join(ACTIVATIONS)})"
            )
        return ACTIVATIONS[number]

    # Variables

    def _linear(self, scope: str, outputs: int | None, inputs: int | None) -> Linear:
        return self.weights.linear(f"{scope}/weight", f"{scope}/bias", outputs, inputs)

    def _norm(self, scope: str, width: int) -> Norm | None:
        return self._needed_norm(scope, width) if f"{scope}/gamma" in self.weights else None

    def _needed_norm(self, scope: str, width: int) -> Norm:
        beta = f"{scope}/beta" if f"{scope}/beta" in self.weights else None
        usual = 1e-6 if beta is None else 1e-5
        return self.weights.norm(f"{scope}/gamma", beta, width, self._epsilon or usual)

    def _scalar(self, name: str) -> Any:
        value = self.weights.take(name)
        if value.numel() != 1:
            raise CheckpointError(f"{self.model.path}: {name} has {value.numel()} values, expected one")
        return value.reshape(-1)[0]

    def _number(self, name: str, default: int) -> int:
        return int(self._scalar(name)) if name in self.weights else default

    def _flag(self, name: str, default: bool) -> bool:
        return bool(self._number(name, int(default)))


def text_of(model: Model, name: str, default: str) -> str:
    """A string that versions before 6 hold in a variable. Raises CheckpointError."""
    value = model.variables.get(name)
    if value is None:
        return default
    try:
        return value.astype(np.int8).tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{model.path}: {name} is no text; restore the model") from error


def _tensor(model: Model, name: str) -> torch.Tensor:
    value, scale = model.variables[name], model.variables.get(name + SCALE)
    if scale is not None:
        value, scale = value.astype(np.float32), scale.astype(np.float32)
        if scale.size != 1 and (value.ndim != 2 or scale.size != len(value)):
            raise CheckpointError(f"{model.path}: {name} has {scale.size} scales for shape {list(value.shape)}")
        with np.errstate(all="ignore"):
            value = value / scale.reshape(-1, *[1] * (value.ndim - 1)) if scale.size != 1 else value / scale.reshape(())
    elif value.ndim == 2 and value.dtype.kind == "i":
        raise CheckpointError(f"{model.path}: {name} is of integers without a scale; restore the model")
    return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32).copy().reshape(value.shape))


def _parts(stacked: Linear, *sizes: int) -> list[Linear]:
    biases: Any = [None] * len(sizes) if stacked.bias is None else stacked.bias.split(sizes)
    return [Linear(weight, bias) for weight, bias in zip(stacked.weight.split(sizes), biases, strict=True)]


def _from_zero(decoder: Stack, head: Linear) -> tuple[Stack, Linear]:
    """Marian's first embedding is zero: that of one more token, which is never chosen."""
    assert isinstance(decoder.embedding, torch.Tensor)
    bias = torch.zeros(len(head.weight)) if head.bias is None else head.bias

    def grown(table: torch.Tensor) -> torch.Tensor:
        return torch.cat([table, table.new_zeros(1, table.shape[1])])

    embedding = grown(decoder.embedding)
    weight = embedding if head.weight is decoder.embedding else grown(head.weight)
    return dataclasses.replace(decoder, embedding=embedding), Linear(weight, torch.cat([bias, torch.tensor([NEVER])]))
