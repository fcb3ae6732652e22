"""Tiny random checkpoints of every family, made on the spot from transformers' own configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

VOCABULARY = 61


def _bart_like(name: str, **options: Any) -> Any:
    sizes: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=3,
        encoder_ffn_dim=40,
        decoder_ffn_dim=36,
        max_position_embeddings=48,
        init_std=0.3,
    )
    return getattr(transformers, f"{name}Config")(**(sizes | options))


def _t5(name: str = "T5", **options: Any) -> Any:
    sizes: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        d_model=24,
        d_kv=8,
        d_ff=40,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
        decoder_start_token_id=0,
        initializer_factor=1.5,
    )
    return getattr(transformers, f"{name}Config")(**(sizes | options))


def _pair(encoder: str, decoder: str, width: int = 24, **options: Any) -> Any:
    """An encoder and a decoder with cross-attention, each of another family."""
    sizes: dict[str, Any] = dict(
        vocab_size=VOCABULARY, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=48, initializer_range=0.3, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    source = getattr(transformers, f"{encoder}Config")(**sizes, hidden_size=24, type_vocab_size=2)
    target = getattr(transformers, f"{decoder}Config")(
        **sizes, hidden_size=width, is_decoder=True, add_cross_attention=True, **options
    )
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(source, target)
    config.update({"decoder_start_token_id": 0, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2})
    return config


def _t5gemma(**options: Any) -> Any:
    side: dict[str, Any] = dict(
        vocab_size=VOCABULARY, hidden_size=24, head_dim=6, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, query_pre_attn_scalar=6,
        sliding_window=4, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    side |= options
    return transformers.T5GemmaConfig(
        encoder=dict(side), decoder=dict(side) | {"hidden_size": 36, "num_hidden_layers": 3}, vocab_size=VOCABULARY,
        decoder_start_token_id=2, initializer_range=0.3,
    )  # fmt: skip


def _t5gemma2(**options: Any) -> Any:
    side: dict[str, Any] = dict(
        vocab_size=VOCABULARY, hidden_size=24, head_dim=6, intermediate_size=40, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, query_pre_attn_scalar=6,
        sliding_window=5, sliding_window_pattern=2, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    side |= options
    picture: dict[str, Any] = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4
    )
    return transformers.T5Gemma2Config(
        encoder={"text_config": dict(side), "vision_config": picture, "mm_tokens_per_image": 4},
        decoder=dict(side), eoi_token_index=58, image_token_index=59, decoder_start_token_id=2, initializer_range=0.3,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip


CONFIGS: dict[str, Callable[[], Any]] = {
    "marian": lambda: _bart_like(
        "Marian", pad_token_id=60, eos_token_id=0, decoder_start_token_id=60, activation_function="swish",
        scale_embedding=True, forced_eos_token_id=0,
    ),
    "marian-two-vocabularies": lambda: _bart_like(
        "Marian", pad_token_id=52, eos_token_id=0, decoder_start_token_id=52, decoder_vocab_size=53,
        share_encoder_decoder_embeddings=False, tie_word_embeddings=False, forced_eos_token_id=None,
        vocab_size=61,
    ),
    "bart": lambda: _bart_like(
        "Bart", pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
        forced_bos_token_id=0,
    ),
    "mbart": lambda: _bart_like(
        "MBart", pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, scale_embedding=True,
    ),
    "m2m_100": lambda: _bart_like(
        "M2M100", pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, scale_embedding=True,
    ),
    "pegasus": lambda: _bart_like("Pegasus", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0),
    "t5": lambda: _t5(),
    "t5-gated": lambda: _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": lambda: _t5("MT5", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "umt5": lambda: _t5("UMT5", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "umt5-tied": lambda: _t5("UMT5", feed_forward_proj="relu", tie_word_embeddings=True),
    "longt5": lambda: _t5("LongT5", local_radius=2, encoder_attention_type="local"),
    "longt5-gated": lambda: _t5(
        "LongT5", local_radius=3, encoder_attention_type="local", feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, initializer_factor=1.0,
    ),
    "longt5-global": lambda: _t5(
        "LongT5", local_radius=2, encoder_attention_type="transient-global", global_block_size=4,
        initializer_factor=1.0,
    ),
    "switch_transformers": lambda: _t5(
        "SwitchTransformers", num_experts=3, expert_capacity=4, num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1, router_bias=True,
    ),
    "switch_transformers-untied": lambda: _t5(
        "SwitchTransformers", num_experts=5, expert_capacity=64, num_sparse_encoder_layers=3,
        num_sparse_decoder_layers=2, tie_word_embeddings=False, initializer_factor=1.0,
    ),
    "blenderbot": lambda: _bart_like(
        "Blenderbot", pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, scale_embedding=True,
    ),
    "blenderbot-small": lambda: _bart_like(
        "BlenderbotSmall", pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        forced_eos_token_id=2,
    ),
    "plbart": lambda: _bart_like(
        "PLBart", pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    ),
    "mvp": lambda: _bart_like(
        "Mvp", pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, scale_embedding=True,
        forced_eos_token_id=2, tie_word_embeddings=True,
    ),
    "led": lambda: _bart_like(
        "LED", pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, attention_window=[4, 8],
        max_encoder_position_embeddings=48, max_decoder_position_embeddings=40, encoder_attention_heads=4,
        scale_embedding=True,
    ),
    "bigbird_pegasus": lambda: _bart_like(
        "BigBirdPegasus", pad_token_id=0, bos_token_id=2, eos_token_id=1, decoder_start_token_id=2,
        attention_type="block_sparse", block_size=4, num_random_blocks=1, use_bias=True, scale_embedding=False,
    ),
    "bigbird_pegasus-full": lambda: _bart_like(
        "BigBirdPegasus", pad_token_id=0, bos_token_id=2, eos_token_id=1, decoder_start_token_id=2,
        attention_type="original_full", use_bias=False, scale_embedding=True,
    ),
    "fsmt": lambda: _bart_like(
        "FSMT", langs=["en", "de"], src_vocab_size=VOCABULARY, tgt_vocab_size=53, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, decoder_start_token_id=2, scale_embedding=True, encoder_attention_heads=3,
        tie_word_embeddings=False, vocab_size=53,
    ),
    "bert-bert": lambda: _pair("Bert", "Bert"),
    "roberta-gpt2": lambda: _pair("Roberta", "GPT2", width=40, activation_function="gelu_new"),
    "xlmr-roberta": lambda: _pair("XLMRoberta", "Roberta", width=40, hidden_act="relu"),
    "t5gemma": lambda: _t5gemma(),
    "t5gemma2": lambda: _t5gemma2(),
    "t5gemma2-capped": lambda: _t5gemma2(final_logit_softcapping=5.0, num_key_value_heads=4, attention_bias=True),
    "t5gemma-plain": lambda: _t5gemma(
        attn_logit_softcapping=None, final_logit_softcapping=None, num_key_value_heads=4, layer_types=None,
        attention_bias=True,
    ),
}  # fmt: skip


# Of a family that another name stands for, or near another: compiled for a CPU in the slow tests only.
VARIANTS = (
    "umt5-tied", "longt5-gated", "switch_transformers-untied", "plbart", "mvp", "blenderbot", "bigbird_pegasus-full",
    "xlmr-roberta", "t5gemma-plain", "t5gemma2-capped",
)  # fmt: skip
SWEPT = [pytest.param(name, marks=pytest.mark.slow if name in VARIANTS else ()) for name in CONFIGS]


def make(name: str, seed: int = 0) -> Any:
    """A random model of the family, with some weight on EOS so that sentences end."""
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("bias", "layer_norm.weight", "layernorm_embedding.weight")):
                parameter += 0.2 * torch.randn_like(parameter)
        bias = getattr(model, "final_logits_bias", None)
        if bias is not None:
            bias[...] = 0.5 * torch.randn_like(bias)
    return model


def save(name: str, folder: Path, seed: int = 0) -> Path:
    make(name, seed).save_pretrained(folder)
    return folder
