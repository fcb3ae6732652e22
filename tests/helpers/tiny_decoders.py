"""Tiny random decoders of every family that goes on with a prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

CHAT = (
    "{{ bos_token }} {% for message in messages %}{{ message['role'] }} : {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}bot :{% endif %}"
)


def _config(name: str, **options: Any) -> Any:
    sizes: dict[str, Any] = dict(
        vocab_size=61, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, max_position_embeddings=64, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    return getattr(transformers, f"{name}Config")(**(sizes | options))


CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=61, n_embd=24, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    ),
    "gpt2-scaled": lambda: transformers.GPT2Config(
        vocab_size=61, n_embd=24, n_layer=2, n_head=3, n_positions=64, initializer_range=0.3, bos_token_id=1,
        eos_token_id=2, scale_attn_by_inverse_layer_idx=True, activation_function="relu", tie_word_embeddings=False,
    ),
    "llama": lambda: _config("Llama"),
    "llama-biases": lambda: _config(
        "Llama", attention_bias=True, mlp_bias=False, num_key_value_heads=4, tie_word_embeddings=True, head_dim=8,
        rope_parameters={"rope_type": "llama3", "rope_theta": 1000.0, "factor": 4.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    ),
    "mistral": lambda: _config("Mistral", sliding_window=5),
    "qwen2": lambda: _config("Qwen2", bos_token_id=None),
    "qwen2-windows": lambda: _config(
        "Qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1, tie_word_embeddings=True,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
                         "original_max_position_embeddings": 16},
    ),
    "qwen3": lambda: _config("Qwen3", head_dim=8),
    "gemma": lambda: _config("Gemma", head_dim=8, num_key_value_heads=1),
    "gemma2": lambda: _config("Gemma2", head_dim=6, query_pre_attn_scalar=6, sliding_window=4),
    "gemma2-plain": lambda: _config(
        "Gemma2", head_dim=6, query_pre_attn_scalar=6, attn_logit_softcapping=None, final_logit_softcapping=None,
        attention_bias=True,
    ),
    "phi": lambda: _config("Phi", hidden_size=32, num_key_value_heads=4),
    "phi-norms": lambda: _config("Phi", hidden_size=32, qk_layernorm=True, hidden_act="gelu"),
    "phi3": lambda: _config("Phi3"),
    "phi3-part": lambda: _config("Phi3", hidden_size=32, sliding_window=5, rope_parameters={
        "rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5}),
}  # fmt: skip


def make(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("bias", "norm.weight", "layernorm.weight", "ln_1.weight", "ln_2.weight")):
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def save(name: str, folder: Path, seed: int = 0) -> Path:
    make(name, seed).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, chat_template: str | None = CHAT) -> None:
    """61 words with blanks between them."""
    import tokenizers

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "user", "bot", ":"])}
    vocabulary |= {f"w{i}": i for i in range(len(vocabulary), 61)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    found.chat_template = chat_template
    found.save_pretrained(folder)
