"""torch.nn.Transformer, or its encoder and decoder layers, as a structure of ours: no step function, caches included.

`TransformerModule` holds the owner's layers with what surrounds them, and computes with them what the export is
compared with: whole sequences, by PyTorch's own code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InvalidOption, UnsupportedModel
from ...runtime.sources import MASK
from ...runtime.sources.token_ids import INPUT_IDS
from ..graphs.structure import Attention, Block, FeedForward, Linear, Norm, PositionTable, Stack, Transformer
from ..parity import Inputs

Layers = nn.Transformer | tuple[nn.TransformerEncoder, nn.TransformerDecoder]


class TransformerModule(nn.Module):
    """A torch.nn.Transformer, or an encoder and a decoder, between embeddings and the output projection.

        source = source_embedding[ids] * embedding_scale + positions
        target = target_embedding[ids] * embedding_scale + positions
        logits = output(transformer(source, target))

    transformer: an nn.Transformer, or a pair of nn.TransformerEncoder and nn.TransformerDecoder; batch_first or not.
    output: an nn.Linear to the target's vocabulary. positions: a table [P, E], also as [P, 1, E] or [1, P, E], or None.
    target_positions: the target's, if it is another. embedding_scale: often the square root of E.
    """

    def __init__(
        self,
        transformer: Layers,
        *,
        source_embedding: nn.Embedding,
        target_embedding: nn.Embedding,
        output: nn.Linear,
        positions: Tensor | None = None,
        target_positions: Tensor | None = None,
        embedding_scale: float = 1.0,
    ) -> None:
        super().__init__()
        layers: Any = transformer
        encoder, decoder = (layers.encoder, layers.decoder) if isinstance(layers, nn.Transformer) else layers
        if not isinstance(encoder, nn.TransformerEncoder) or not isinstance(decoder, nn.TransformerDecoder):
            raise UnsupportedModel(
                f"the layers are a {type(encoder).__name__} and a {type(decoder).__name__}; expected torch's own "
                "nn.TransformerEncoder and nn.TransformerDecoder. A module with layers of its own has encode, start "
                "and step"
            )
        self.encoder, self.decoder = encoder, decoder
        self.source_embedding, self.target_embedding, self.output = source_embedding, target_embedding, output
        self.embedding_scale = float(embedding_scale)
        table = None if positions is None else _table("positions", positions, source_embedding)
        other = table if target_positions is None else _table("target_positions", target_positions, target_embedding)
        self.register_buffer("positions", table)
        self.register_buffer("target_positions", other)
        self.positions: Tensor | None
        self.target_positions: Tensor | None

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Tensor:
        """Encoder states [B,S,E]."""
        x = self._embed(self.source_embedding, self.positions, input_ids)
        return self._run(self.encoder, x, src_key_padding_mask=~source_mask.bool())

    def decode(self, states: Tensor, source_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Logits [B,T,V] after each token of decoder_input_ids [B,T]."""
        x = self._embed(self.target_embedding, self.target_positions, decoder_input_ids)
        later = torch.ones((x.shape[1], x.shape[1]), dtype=torch.bool).triu(1)
        states = states if self._is_batch_first(self.decoder) else states.transpose(0, 1)
        found = self._run(self.decoder, x, states, tgt_mask=later, memory_key_padding_mask=~source_mask.bool())
        logits: Tensor = self.output(found)
        return logits

    def _embed(self, embedding: nn.Embedding, positions: Tensor | None, ids: Tensor) -> Tensor:
        x = embedding(ids) * self.embedding_scale
        return x if positions is None else x + positions[: ids.shape[1]]

    def _run(self, layers: Any, x: Tensor, *others: Tensor, **masks: Tensor) -> Tensor:
        if self._is_batch_first(layers):
            return layers(x, *others, **masks)
        return layers(x.transpose(0, 1), *others, **masks).transpose(0, 1)

    @staticmethod
    def _is_batch_first(layers: Any) -> bool:
        return bool(layers.layers[0].self_attn.batch_first)


def _table(name: str, given: Tensor, embedding: nn.Embedding) -> Tensor:
    """[P, E]"""
    table = given.detach()
    if table.dim() == 3 and 1 in table.shape[:2]:
        table = table.flatten(0, 1)
    if table.dim() != 2 or table.shape[1] != embedding.embedding_dim:
        raise InvalidOption(
            f"{name} has shape {list(given.shape)}; expected [P, {embedding.embedding_dim}], a row for each position"
        )
    return table


def refuse_bare_transformer(model: nn.Module) -> None:
    """Raises UnsupportedModel for a module around torch's Transformer that has no functions of its own."""
    if all(callable(getattr(model, name, None)) for name in ("encode", "start", "step")):
        return
    inside = [name for name, module in model.named_modules() if isinstance(module, nn.Transformer)]
    if isinstance(model, nn.Transformer) or inside:
        embeddings = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
        linears = [name for name, module in model.named_children() if isinstance(module, nn.Linear)]
        raise UnsupportedModel(
            f"{type(model).__name__} holds a torch.nn.Transformer"
            f"{f' ({inside[0]})' if inside and inside[0] else ''}; put it into a s2s_export.TransformerModule with its "
            f"embeddings ({', '.join(embeddings) or 'none in the module'}), output projection "
            f"({', '.join(linears) or 'none in the module'}) and table of positions"
        )


def structure_of(model: TransformerModule) -> Transformer:
    encoder, decoder = model.encoder, model.decoder
    norm_first = [bool(layers.layers[0].norm_first) for layers in (encoder, decoder)]
    return Transformer(
        _stack(model, model.source_embedding, model.positions, encoder),
        _stack(model, model.target_embedding, model.target_positions, decoder),
        norm_first=norm_first[0],
        decoder_norm_first=norm_first[1],
        head=Linear.of(model.output),
    )


def _stack(model: TransformerModule, embedding: nn.Embedding, positions: Tensor | None, layers: Any) -> Stack:
    return Stack(
        embedding=embedding.weight,
        embedding_scale=model.embedding_scale,
        positions=None if positions is None else PositionTable(positions),
        blocks=tuple(_block(layer, f"layer {i}") for i, layer in enumerate(layers.layers)),
        final_norm=None if layers.norm is None else _norm(layers.norm, "the final norm"),
    )


def _block(layer: Any, name: str) -> Block:
    crossed = isinstance(layer, nn.TransformerDecoderLayer)
    if not crossed and not isinstance(layer, nn.TransformerEncoderLayer):
        raise UnsupportedModel(f"{name} is a {type(layer).__name__}; expected torch's own layers")
    return Block(
        self_attention=_attention(layer.self_attn, name),
        self_norm=_norm(layer.norm1, name),
        cross_attention=_attention(layer.multihead_attn, name) if crossed else None,
        cross_norm=_norm(layer.norm2, name) if crossed else None,
        feed_forward=FeedForward(Linear.of(layer.linear1), Linear.of(layer.linear2), _activation(layer, name)),
        feed_forward_norm=_norm(layer.norm3 if crossed else layer.norm2, name),
    )


def _activation(layer: Any, name: str) -> str:
    given = layer.activation
    for known, functions, module in (("relu", (F.relu, torch.relu), nn.ReLU), ("gelu", (F.gelu,), nn.GELU)):
        if given in functions:
            return known
        if isinstance(given, module):
            return "gelu_new" if getattr(given, "approximate", "none") == "tanh" else known
    raise UnsupportedModel(f"{name} has the activation {given!r}; expected relu or gelu")


def _norm(module: Any, name: str) -> Norm:
    if not isinstance(module, nn.LayerNorm) or module.weight is None:
        raise UnsupportedModel(f"{name} has the norm {module!r}; expected an nn.LayerNorm with a weight")
    bias = torch.zeros_like(module.weight) if module.bias is None else module.bias
    return Norm(module.weight, bias, module.eps)


def _attention(module: nn.MultiheadAttention, name: str) -> Attention:
    if module.bias_k is not None or module.add_zero_attn:
        raise UnsupportedModel(f"{name} has add_bias_kv or add_zero_attn, which no graph of ours has")
    biases: Any = (None, None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    if module.in_proj_weight is not None:
        weights: Any = module.in_proj_weight.chunk(3)
    else:  # keys and values of another width
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    query, key, value = (Linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return Attention(
        query, key, value, Linear.of(module.out_proj), n_heads=module.num_heads, scale=float(module.head_dim) ** -0.5
    )


class TransformerReference:
    """A TransformerModule seen as the three graphs (`parity.Reference`). PyTorch computes the sequences."""

    def __init__(self, model: TransformerModule) -> None:
        self.model = model

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> dict[str, Tensor]:
        return {"encoder_states": self.model.encode(inputs[INPUT_IDS], inputs[MASK])}

    @torch.no_grad()
    def cross(self, inputs: Inputs) -> dict[str, Tensor]:
        states = self.model.encode(inputs[INPUT_IDS], inputs[MASK])
        found = {}
        for i, layer in enumerate(self.model.decoder.layers):
            attention = _attention(layer.multihead_attn, f"layer {i}")
            for name, part in (("key", attention.key), ("value", attention.value)):
                heads = F.linear(states, part.weight, part.bias).unflatten(-1, (attention.n_heads, -1))
                found[f"cross_{name}.{i}"] = heads.transpose(1, 2)
        return found

    @torch.no_grad()
    def step(self, inputs: Inputs, history: Tensor) -> tuple[Tensor, Tensor | None]:
        repeats = history.shape[0] // inputs[MASK].shape[0]
        ids, mask = (inputs[name].repeat_interleave(repeats, 0) for name in (INPUT_IDS, MASK))
        return self.model.decode(self.model.encode(ids, mask), mask, history)[:, -1], None
