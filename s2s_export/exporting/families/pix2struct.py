"""Pix2Struct (2210.03347), DePlot and MatCha: pictures of any proportions to text.

The encoder is a pre-norm ViT with RMSNorm and gated layers, whose patches have a learned row and column; the decoder is
T5 1.1's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import UnsupportedModel
from ...runtime.sources.flattened_patches import KIND
from ..graphs.stems import PlacedPatches
from ..graphs.structure import Attention, Block, Linear, Stack, Transformer
from ..pictures import patching_of
from . import Family
from ._t5_like import dense, norm, relative_positions

MODEL_TYPES = ("pix2struct",)
AUTO_CLASS = "Pix2StructForConditionalGeneration"
SOURCE_KIND = KIND.name


def describe(model: Any) -> Family:
    source, target = model.config.vision_config, model.config.text_config
    if target.num_heads * target.d_kv != target.hidden_size:
        raise UnsupportedModel(
            f"pix2struct: text_config has num_heads {target.num_heads} and d_kv {target.d_kv}; expected a product of "
            f"{target.hidden_size}, its hidden_size, as transformers computes no other"
        )
    if source.hidden_size != target.hidden_size:
        raise UnsupportedModel(
            f"pix2struct: vision_config has hidden_size {source.hidden_size}, text_config {target.hidden_size}; "
            "expected the same, as transformers computes no others"
        )
    first = model.decoder.layer[0].self_attention.attention
    structure = Transformer(
        _encoder(source, model.encoder),
        Stack(
            embedding=model.decoder.embed_tokens.weight,
            embedding_scale=1.0,
            positions=relative_positions(target, first, bidirectional=False),
            blocks=tuple(_decoder_block(target, layer) for layer in model.decoder.layer),
            final_norm=norm(model.decoder.final_layer_norm),
        ),
        norm_first=True,
        head=Linear.of(model.decoder.lm_head),
    )
    # Rows and columns are counted from 1, and a picture of n patches may have n of either.
    return Family("pix2struct", structure, source.seq_len - 1, None)


def _encoder(config: Any, module: Any) -> Stack:
    embeddings = module.embeddings
    return Stack(
        embedding=PlacedPatches(
            Linear.of(embeddings.patch_projection), embeddings.row_embedder.weight, embeddings.column_embedder.weight
        ),
        embedding_scale=1.0,
        positions=None,
        blocks=tuple(
            Block(
                self_attention=_attention(layer.attention),
                self_norm=norm(layer.pre_attention_layer_norm),
                feed_forward=dense(config, layer.mlp),
                feed_forward_norm=norm(layer.pre_mlp_layer_norm),
            )
            for layer in module.encoder.layer
        ),
        final_norm=norm(module.layernorm),
    )


def _decoder_block(config: Any, layer: Any) -> Block:
    own, cross = layer.self_attention, layer.encoder_decoder_attention
    return Block(
        self_attention=_attention(own.attention),
        self_norm=norm(own.layer_norm),
        cross_attention=_attention(cross.attention),
        cross_norm=norm(cross.layer_norm),
        feed_forward=dense(config, layer.mlp.DenseReluDense),
        feed_forward_norm=norm(layer.mlp.layer_norm),
    )


def _attention(module: Any) -> Attention:
    """Scores are not scaled, as in T5."""
    query, key, value, output = (Linear.of(getattr(module, name)) for name in ("query", "key", "value", "output"))
    return Attention(query, key, value, output, n_heads=module.n_heads, scale=1.0)


def source(model: Any) -> dict[str, Any]:
    return {"patch_size": int(model.encoder.embeddings.patch_projection.in_features)}


def prepare_sources(path: Path, source: dict[str, Any]) -> dict[str, Any]:
    """What the manifest's source has of the checkpoint's preprocessor_config.json."""
    return {"patching": patching_of(path, source["patch_size"])}
