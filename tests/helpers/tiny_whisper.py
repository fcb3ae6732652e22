"""A tiny random Whisper: windows of 0.8 s, a byte as a token, two languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

BYTES = 256
SPECIALS = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip
IDS = {name: BYTES + i for i, name in enumerate(SPECIALS)}
POSITIONS = 40  # of the encoder: two frames of 10 ms each
SAMPLES = POSITIONS * 2 * 160
BANDS = 8
VOCABULARY = BYTES + len(SPECIALS) + POSITIONS + 1
LAYERS, HEADS, WIDTH, INNER = 2, 2, 16, 24
LONGEST = 64


def config() -> Any:
    end = IDS["<|endoftext|>"]
    return transformers.WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=BANDS, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER,
        max_source_positions=POSITIONS, max_target_positions=LONGEST, pad_token_id=end, bos_token_id=end,
        eos_token_id=end, decoder_start_token_id=IDS["<|startoftranscript|>"], suppress_tokens=[3, 4],
        begin_suppress_tokens=[32, end], init_std=0.4,
    )  # fmt: skip


def generation(is_multilingual: bool) -> dict[str, Any]:
    end, none = IDS["<|endoftext|>"], IDS["<|notimestamps|>"]
    several = {
        "lang_to_id": {name: IDS[name] for name in ("<|en|>", "<|de|>")},
        "task_to_id": {name: IDS[f"<|{name}|>"] for name in ("transcribe", "translate")},
    }
    return {
        "alignment_heads": [[1, 0], [1, 1], [0, 1]], "begin_suppress_tokens": [32, end], "bos_token_id": end,
        "decoder_start_token_id": IDS["<|startoftranscript|>"], "eos_token_id": end, "pad_token_id": end,
        "forced_decoder_ids": [[1, None], [2, IDS["<|transcribe|>"]]] if is_multilingual else [[1, none]],
        "is_multilingual": is_multilingual, "max_initial_timestamp_index": 10, "max_length": LONGEST,
        "no_timestamps_token_id": none, "prev_sot_token_id": IDS["<|startofprev|>"], "return_timestamps": False,
        "suppress_tokens": [3, 4, *(IDS[name] for name in SPECIALS[1:9])], **(several if is_multilingual else {}),
    }  # fmt: skip


def save(folder: Path, seed: int = 0, *, is_multilingual: bool = True) -> Path:
    """A checkpoint that ends its texts and writes times."""
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter += 0.2 * torch.randn_like(parameter)
        model.model.decoder.embed_tokens.weight[BYTES:] *= 1.5  # special tokens and times are likelier
    model.generation_config = transformers.GenerationConfig(**generation(is_multilingual))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    from s2s_export.exporting.ctranslate2 import whisper

    whisper._write_tokenizer(tokenizer(), IDS["<|notimestamps|>"], VOCABULARY, folder)


def clip(seed: int, seconds: float) -> Any:
    """Noise that comes and goes."""
    rng = np.random.default_rng(seed)
    n = round(16000 * seconds)
    loudness = np.abs(np.sin(np.arange(n) / rng.uniform(500, 3000)))
    return (0.3 * loudness * rng.standard_normal(n)).astype(np.float32)


def tokenizer() -> dict[str, Any]:
    """tokenizer.json: bytes and special tokens, without times, as older files are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIALS))
    found: dict[str, Any] = json.loads(made.to_str())
    return found
