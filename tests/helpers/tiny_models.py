"""Tiny random checkpoints of every family, made on the spot from transformers' own configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
}  # fmt: skip


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
