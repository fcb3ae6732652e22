"""Options of transformers' generate() that this package does not have.

`IGNORED` has those that can't change a token: they are accepted, and have no effect. `NO_OPS` has those that can, with
the values at which they change nothing; with any other value, an option is refused by name. A key of a checkpoint's
generation_config.json that is in neither table is unknown to transformers as well, which keeps such keys without
reading them; `resolve` ignores them, but an unknown option from the user is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# What is returned, how the cache is stored or compiled, what saves time or memory only (looking tokens up in the prompt
# changes none: each is checked against the model), and settings of assistants that are refused themselves.
IGNORED = frozenset(
    {
        "use_cache",
        "low_memory",
        "prompt_lookup_num_tokens",
        "return_legacy_cache",
        "cache_config",
        "max_cache_len",
        "return_dict_in_generate",
        "output_scores",
        "output_logits",
        "output_attentions",
        "output_hidden_states",
        "compile_config",
        "disable_compile",
        "prefill_chunk_size",
        "synced_gpus",
        "trust_remote_code",
        "transformers_version",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "assistant_ensemble_weight",
        "max_matching_ngram_size",
        "speculation_type",
        "continuous_batching_config",
    }
)


def _unset(value: Any) -> bool:
    return value is None


def _off(value: Any) -> bool:
    return value is None or value is False


def _at_most(bound: float) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, (int, float)) and value <= bound)


# By name: a function that says whether a value changes nothing.
NO_OPS: Mapping[str, Callable[[Any], bool]] = {
    "penalty_alpha": _at_most(0),
    "guidance_scale": lambda value: value is None or value == 1,
    "constraints": _unset,
    "forced_decoder_ids": _unset,
    "watermarking_config": _unset,
    "max_time": _unset,
    "dola_layers": _unset,
    "token_healing": _off,
    "use_mtp": _off,
    "is_assistant": _off,
    "assistant_model": _unset,
    "assistant_tokenizer": _unset,
    "assistant_early_exit": _unset,
    "logits_processor": _unset,
    "stopping_criteria": _unset,
    "streamer": _unset,
    "negative_prompt_ids": _unset,
    "negative_prompt_attention_mask": _unset,
    "custom_generate": _unset,
    "decoder_attention_mask": _unset,
    "cache_implementation": lambda value: value not in ("quantized", "paged"),
}

# In a checkpoint's file, generate() of transformers 5 does not read these, so they are ignored there.
INERT_DEFAULTS = frozenset({"forced_decoder_ids"})


def refusal(name: str, value: Any, *, is_default: bool) -> str | None:
    """Why this option is not supported, or None if it has no effect or is not in the tables."""
    if name in IGNORED or name not in NO_OPS or (is_default and name in INERT_DEFAULTS):
        return None
    if NO_OPS[name](value):
        return None
    return f"{name}={value!r} is not supported"


def is_foreign(name: str) -> bool:
    return name in IGNORED or name in NO_OPS
