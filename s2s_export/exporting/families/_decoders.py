"""Decoders alone, as transformers has them: rotary angles, grouped queries, and the model seen as the three graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...errors import UnsupportedModel
from ...runtime.sources import MASK
from ...runtime.sources.token_ids import INPUT_IDS
from ..graphs.decoder_only import DecoderOnly
from ..graphs.structure import Attention, FeedForward, Linear, Norm, Rotary
from ..parity import Inputs
from . import Family
from ._bart_like import activation
from .t5gemma import rotary as tables

AUTO_CLASS = "AutoModelForCausalLM"
SOURCE_KIND = "prompts"
POSITIONS = 8192  # of tables of angles; more take memory, and --max-target-length asks for them
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # whose angles do not depend on the length of a text


def family(name: str, model: Any, structure: DecoderOnly, n_positions: int) -> Family:
    """n_positions: the longest text, prompt included."""
    return Family(name, structure, n_positions, n_positions)


def stretch(model: Any, positions: int) -> None:
    """Tables of at least `positions` positions."""
    model.s2s_positions = max(positions, POSITIONS)


def n_positions(model: Any) -> int:
    longest: int = min(getattr(model, "s2s_positions", POSITIONS), model.config.max_position_embeddings)
    return longest


def rotary(config: Any, module: Any, positions: int, head_size: int) -> Rotary:
    """The angles of a model's rotary embedding; what it does not turn of a head gets angles of zero."""
    if module.rope_type not in ROPE_TYPES:
        raise UnsupportedModel(
            f"{config.model_type}: rope_type is '{module.rope_type}'; expected one of {', '.join(ROPE_TYPES)}"
        )
    found = tables(module, positions)
    rest = head_size // 2 - found.cosine.shape[1]
    if not rest:
        return found
    still = [torch.ones(positions, rest), torch.zeros(positions, rest)]
    return Rotary(*(torch.cat([part, more], 1) for part, more in zip((found.cosine, found.sine), still, strict=True)))


def attention(
    config: Any,
    projections: Sequence[Linear],
    output: Linear,
    angles: Rotary | None,
    *,
    scale: float,
    n_turned: int | None = None,
    n_key_heads: int | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    norms: Sequence[Norm | None] = (None, None),
) -> Attention:
    """projections: of queries, keys and values. n_turned: numbers of a head that are turned, None for all."""
    heads, key_heads = config.num_attention_heads, n_key_heads or config.num_key_value_heads
    query, key, value = projections
    size = query.weight.shape[0] // heads
    query_norm, key_norm = norms
    if n_turned is not None and n_turned != size:
        order = _halves(n_turned, size)
        query, key = _ordered(query, heads, order), _ordered(key, key_heads, order)
        query_norm, key_norm = (
            None if n is None else Norm(n.weight[order], None if n.bias is None else n.bias[order], n.epsilon)
            for n in norms
        )
    return Attention(
        query,
        key,
        value,
        output,
        n_heads=heads,
        scale=scale,
        n_key_heads=key_heads,
        rotary=angles,
        window=None if window is None else (window - 1, 0),
        soft_cap=soft_cap,
        query_norm=query_norm,
        key_norm=key_norm,
    )


def _halves(n_turned: int, size: int) -> list[int]:
    """The order in which the halves of a head are turned against each other, where only its beginning is turned."""
    half, rest = n_turned // 2, list(range(n_turned, size))
    middle = len(rest) // 2
    return [*range(half), *rest[:middle], *range(half, n_turned), *rest[middle:]]


def _ordered(linear: Linear, n_heads: int, order: Sequence[int]) -> Linear:
    size = linear.weight.shape[0] // n_heads
    rows = torch.tensor([head * size + i for head in range(n_heads) for i in order])
    return Linear(linear.weight[rows], None if linear.bias is None else linear.bias[rows])


def projections(module: Any, names: Sequence[str] = ("q_proj", "k_proj", "v_proj")) -> list[Linear]:
    return [Linear.of(getattr(module, name)) for name in names]


def rms_norm(module: Any) -> Norm:
    return Norm(module.weight, None, module.variance_epsilon)


def gated(config: Any, module: Any, name: str) -> FeedForward:
    return FeedForward(
        inner=Linear.of(module.up_proj),
        outer=Linear.of(module.down_proj),
        activation=activation(config, name),
        gate=Linear.of(module.gate_proj),
    )


class Reference:
    """A causal language model of transformers, with eager attention, seen as the three graphs."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """The embeddings at their positions: what the first layer reads."""
        out = self.model(input_ids=inputs[INPUT_IDS], output_hidden_states=True, use_cache=False)
        return {"encoder_states": out.hidden_states[0]}

    @torch.no_grad()
    def cross(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Prompts are filled up on the right, which no token before sees."""
        from transformers import DynamicCache

        past = DynamicCache()  # of all positions, also where a window sees few
        self.model(input_ids=inputs[INPUT_IDS], use_cache=True, past_key_values=past)
        order = self._key_order()
        found = {}
        if hasattr(past, "layers"):
            pairs = [(layer.keys, layer.values) for layer in past.layers]
        else:  # transformers before 4.54
            pairs = list(zip(past.key_cache, past.value_cache, strict=True))
        for i, (key, value) in enumerate(pairs):
            found[f"cross_key.{i}"] = key if order is None else key[..., order]
            found[f"cross_value.{i}"] = value
        return found

    def _key_order(self) -> list[int] | None:
        """The order in which the graphs have a key's numbers, where only a part of it is turned."""
        body = self.model.base_model
        if not hasattr(body, "rotary_emb"):
            return None
        size, n_turned = int(body.layers[0].self_attn.head_dim), 2 * len(body.rotary_emb.inv_freq)
        return None if n_turned == size else _halves(n_turned, size)

    @torch.no_grad()
    def step(self, inputs: Inputs, history: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The history begins with a token in the place of the prompt's last."""
        lengths = inputs[MASK].sum(dim=1).tolist()
        rows = history.shape[0] // len(lengths)
        found = []
        for b, length in enumerate(lengths):
            own = history[b * rows : (b + 1) * rows]
            before = inputs[INPUT_IDS][b : b + 1, : length - 1].expand(rows, -1)
            found.append(self.model(input_ids=torch.cat([before, own], dim=1), use_cache=False).logits[:, -1])
        return torch.cat(found), None
