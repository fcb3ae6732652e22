"""ProphetNet (2001.04063).

The decoder carries two streams: the main one, whose keys and values are cached, and one that predicts the next token.
Of the n streams that predict n tokens only the first is used in decoding, and none looks at another but the main one.
Both biases by distance are computed from hidden states, so that the step is traced and not described as a structure.

Letters as in docs/architecture.md.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModel
from ...runtime.sources import MASK
from ..graphs.traced import MEMORY, TracedModule
from ..own_module import interface, trace
from ..own_module.check import ModuleReference
from ..own_module.sources import Ids
from ..parity import Inputs, named
from . import Family

MODEL_TYPES = ("prophetnet",)


def describe(model: Any) -> Family:
    config = model.config
    if config.pad_token_id != 0:
        raise UnsupportedModel(
            f"prophetnet: pad_token_id is {config.pad_token_id}; expected 0, as transformers decodes with no other"
        )
    if not config.add_cross_attention:
        raise UnsupportedModel("prophetnet: add_cross_attention is false, so that the decoder does not see the source")
    if _buckets(config).min() < 0:
        raise UnsupportedModel(
            f"prophetnet: relative_max_distance is {config.relative_max_distance} and num_buckets "
            f"{config.num_buckets}; expected a distance above half of the buckets, as transformers finds no bucket for "
            "far tokens otherwise"
        )
    steps, sources = Steps(model), Ids(config.vocab_size)
    found, example = interface.probe(steps, sources, 0)
    traced = TracedModule(trace.trace(steps, sources, found, example), found, sources)
    # A step needs the position of its token, counted from 1, and the one after it.
    return Family("prophetnet", traced, None, config.max_position_embeddings - 2)


class Memory(NamedTuple):
    """states [B,S,E], mask [B,S]"""

    states: Tensor
    mask: Tensor


class Steps(nn.Module):
    """The model with `encode`, `start` and `step`, as a module of one's own has them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        self.encoder, self.decoder, self.head = model.prophetnet.encoder, model.prophetnet.decoder, model.lm_head
        self.n_heads, self.n_buckets = config.num_decoder_attention_heads, config.num_buckets
        self.layers = self.decoder.layers
        kept = [f"{name}_{i}" for i in range(len(self.layers)) for name in ("cross_key", "cross_value")]
        grown = [f"{name}_{i}" for i in range(len(self.layers)) for name in ("key", "value")]
        self.state: Any = namedtuple("State", ["position", "mask", *kept, *grown])  # type: ignore[misc]
        self.buckets: Tensor
        self.register_buffer("buckets", _buckets(config), persistent=False)

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Memory:
        return Memory(self.encoder(input_ids, attention_mask=source_mask)[0], source_mask)

    def start(self, memory: Memory) -> Any:
        """position [R], mask [R,S], cross_key and cross_value [R,H,S,D], key and value [R,H,C,D]"""
        kept = [
            self._heads(projection(memory.states))
            for layer in self.layers
            for projection in (layer.cross_attn.key_proj, layer.cross_attn.value_proj)
        ]
        rows, _, width = memory.states.shape
        empty = memory.states.new_zeros(rows, self.n_heads, 0, width // self.n_heads)
        position = torch.ones_like(memory.mask[:, 0])
        return self.state(position, memory.mask, *kept, *[empty for _ in self.layers for _ in range(2)])

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any, Tensor]:
        decoder, position = self.decoder, state.position
        places = decoder.position_embeddings.weight
        main = decoder.word_embeddings(token) + places[position]
        predicting = decoder.ngram_embeddings.weight[-1] + places[position + 1]
        x = decoder.embeddings_layer_norm(torch.stack([main, predicting], dim=1))  # [R,2,E]
        unseen = (1.0 - state.mask[:, None, None].to(x.dtype)) * torch.finfo(x.dtype).min
        changed, weights = {"position": position + 1}, []
        for i, layer in enumerate(self.layers):
            past = (getattr(state, f"key_{i}"), getattr(state, f"value_{i}"))
            attended, changed[f"key_{i}"], changed[f"value_{i}"] = self._self_attention(layer.self_attn, x, *past)
            x = layer.self_attn_layer_norm(x + attended)
            cross = layer.cross_attn
            query = self._heads(cross.query_proj(x) / self._head_size(x) ** 0.5)
            scores = query @ getattr(state, f"cross_key_{i}").transpose(2, 3) + unseen
            shares = scores.softmax(-1)  # [R,H,2,S]
            mixed = self._joined(shares @ getattr(state, f"cross_value_{i}"))
            x = layer.cross_attn_layer_norm(cross.out_proj(mixed) + x)
            x = layer.feed_forward_layer_norm(layer.feed_forward(x) + x)
            weights.append(shares[:, :, 1])
        return self.head(x[:, 1]), state._replace(**changed), torch.stack(weights, dim=1)

    def _self_attention(self, layer: Any, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of both streams: each sees the main one's tokens so far, the predicting one itself as well, at distance 0."""
        query = self._heads(layer.query_proj(x) / self._head_size(x) ** 0.5)  # [R,H,2,D]
        new_keys, new_values = self._heads(layer.key_proj(x)), self._heads(layer.value_proj(x))
        keys = torch.cat([keys, new_keys[:, :, :1]], dim=2)  # [R,H,C+1,D]
        values = torch.cat([values, new_values[:, :, :1]], dim=2)
        by_bucket = layer.relative_pos_embeddings(x).unflatten(-1, (self.n_buckets, self.n_heads))
        by_bucket = by_bucket.permute(0, 3, 1, 2)  # [R,H,2,buckets]
        n = keys.shape[2]
        far = self.buckets[n - torch.arange(n + 1)]  # of distances n, n - 1, ... 0
        main = query[:, :, :1] @ keys.transpose(2, 3) + by_bucket[:, :, :1, far[1:]]
        seen = torch.cat([keys, new_keys[:, :, 1:]], dim=2)
        predicting = query[:, :, 1:] @ seen.transpose(2, 3) + by_bucket[:, :, 1:, far]
        found = torch.cat(
            [
                main.softmax(-1) @ values,
                predicting.softmax(-1) @ torch.cat([values, new_values[:, :, 1:]], dim=2),
            ],
            dim=2,
        )
        return layer.out_proj(self._joined(found)), keys, values

    def _head_size(self, x: Tensor) -> int:
        return x.shape[-1] // self.n_heads

    def _heads(self, x: Tensor) -> Tensor:
        """[R,T,E] -> [R,H,T,D]"""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def _joined(self, x: Tensor) -> Tensor:
        """[R,H,T,D] -> [R,T,E]"""
        return x.transpose(1, 2).flatten(2)


def _buckets(config: Any) -> Tensor:
    """The bucket of each distance to an earlier token, as transformers computes it."""
    from transformers.models.prophetnet.modeling_prophetnet import compute_relative_buckets

    distances = torch.arange(config.max_position_embeddings + 1)
    return compute_relative_buckets(config.num_buckets, config.relative_max_distance, -distances).long()


class Reference:
    """The model seen as the three graphs (`parity.Reference`): transformers computes the states and the logits."""

    def __init__(self, model: Any) -> None:
        self.model = model
        steps, sources = Steps(model), Ids(model.config.vocab_size)
        self._steps = ModuleReference(steps, interface.probe(steps, sources, 0)[0], sources)

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> dict[str, Tensor]:
        states = self.model.get_encoder()(**named(inputs))[0]
        return {f"{MEMORY}states": states, f"{MEMORY}mask": inputs[MASK]}

    def cross(self, inputs: Inputs) -> dict[str, Tensor]:
        return self._steps.cross(inputs)

    @torch.no_grad()
    def step(self, inputs: Inputs, history: Tensor) -> tuple[Tensor, Tensor | None]:
        """A token at a time, as generate() does: given several, transformers mixes up the places of their biases."""
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        repeats = history.shape[0] // inputs[MASK].shape[0]
        states = self.encode(inputs)[f"{MEMORY}states"].repeat_interleave(repeats, 0)
        mask = inputs[MASK].repeat_interleave(repeats, 0)
        encoded = BaseModelOutput(last_hidden_state=states)
        past = EncoderDecoderCache(DynamicCache(), DynamicCache())  # of any number of layers
        for token in history.T:
            out = self.model(
                encoder_outputs=encoded,
                attention_mask=mask,
                decoder_input_ids=token[:, None],
                past_key_values=past,
                use_cache=True,
            )
        return out.logits[:, -1], self._steps.step(inputs, history)[1]
