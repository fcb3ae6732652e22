"""BigBird-Pegasus (2007.14062): pre-norm blocks, learned positions, a final norm on both sides.

Its block-sparse attention sees blocks that transformers draws at random. Up to (5 + 2 * num_random_blocks) * block_size
tokens, 704 as published, transformers itself computes full attention: sources of that length are read, and longer ones
are refused.
"""

from __future__ import annotations

from typing import Any

from ..graphs.structure import Attention, Linear, PositionTable, Transformer
from . import Family
from ._bart_like import attention, head, stack

MODEL_TYPES = ("bigbird_pegasus",)


def describe(model: Any) -> Family:
    config = model.config
    sides = [
        stack(
            config, side, PositionTable(side.embed_positions.weight), describe_attention,
            embedding_norm="none", final_norm="layernorm_embedding",
        )
        for side, describe_attention in ((model.model.encoder, _full), (model.model.decoder, attention))
    ]  # fmt: skip
    structure = Transformer(sides[0], sides[1], norm_first=True, head=head(model))
    positions = config.max_position_embeddings
    full = (5 + 2 * config.num_random_blocks) * config.block_size
    longest = positions if config.attention_type == "original_full" else min(positions, full)
    return Family("bigbird_pegasus", structure, longest, positions)


def _full(module: Any) -> Attention:
    inner = module.self
    return Attention(
        query=Linear.of(inner.query),
        key=Linear.of(inner.key),
        value=Linear.of(inner.value),
        output=Linear.of(module.output),
        n_heads=inner.num_attention_heads,
        scale=float(inner.attention_head_size) ** -0.5,
    )
