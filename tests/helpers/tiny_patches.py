"""Tiny random Pix2Structs, by the name of a switch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

VISION: dict[str, Any] = dict(
    hidden_size=24, patch_embed_hidden_size=4 * 6 * 3, d_ff=40, d_kv=8, num_hidden_layers=2, num_attention_heads=3,
    seq_len=40,
)  # fmt: skip
TEXT: dict[str, Any] = dict(
    vocab_size=61, hidden_size=24, d_kv=8, d_ff=36, num_layers=2, num_heads=3, relative_attention_num_buckets=8,
    relative_attention_max_distance=12, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
)  # fmt: skip
# Switches of the encoder, of the decoder, and of both.
SWITCHES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "heads": (
        {"d_kv": 4, "num_attention_heads": 5, "num_hidden_layers": 3, "layer_norm_eps": 1e-3},
        {"d_kv": 6, "num_heads": 4, "num_layers": 3, "relative_attention_num_buckets": 32},
        {"tie_word_embeddings": True},
    ),
    "activations": ({"dense_act_fn": "relu"}, {"dense_act_fn": "silu", "layer_norm_epsilon": 1e-3}, {}),
}


def make(switch: str = "plain", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    vision, text, both = SWITCHES[switch]
    config = transformers.Pix2StructConfig(
        vision_config={**VISION, **vision}, text_config={**TEXT, **text}, initializer_range=0.2, **both
    )
    model = transformers.Pix2StructForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or "embedder" in str(parameter.shape):
                parameter += 0.2 * torch.randn_like(parameter)
    model.generation_config.max_length = 16
    return model


def save(folder: Path, switch: str = "plain", **processor: Any) -> Path:
    make(switch).save_pretrained(folder)
    settings = {
        "image_processor_type": "Pix2StructImageProcessor", "patch_size": {"height": 4, "width": 6}, "max_patches": 30,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, **processor}))
    return folder
