"""A tiny random Moonshine, and clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tiny_pictures
import torch
import transformers

SPECIAL = {"decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "biased": {"attention_bias": True, "pad_head_dim_to_multiple_of": 8, "encoder_hidden_act": "relu",
               "decoder_hidden_act": "gelu"},
    "half-turned": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.62}},
}  # fmt: skip


def make(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        vocab_size=tiny_pictures.VOCABULARY, hidden_size=40, intermediate_size=48, encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2, encoder_num_attention_heads=4, decoder_num_attention_heads=4,
        max_position_embeddings=48, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.MoonshineForConditionalGeneration(
        transformers.MoonshineConfig(**sizes | SPECIAL | options)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    model.generation_config = transformers.GenerationConfig(max_length=20, **SPECIAL)
    return model


def save(folder: Path, **options: Any) -> Path:
    make(**options).save_pretrained(folder)
    tiny_pictures.write_tokenizer(folder)
    return folder


def clip(seed: int, n_samples: int) -> Any:
    """Noise that comes and goes, at 16 kHz."""
    rng = np.random.default_rng(seed)
    loudness = np.abs(np.sin(np.arange(n_samples) / rng.uniform(300, 2000)))
    return (0.3 * loudness * rng.standard_normal(n_samples)).astype(np.float32)
