"""The options of speech beside those of the search, by their names in transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ...errors import InvalidOption
from ..decoding.generation_options import GenerationOptions
from .prompts import TASKS, language_id, task_id
from .tokens import SpeechTokens

NAMES = ("language", "task", "return_timestamps", "prompt_ids", "condition_on_prev_tokens")


@dataclass(frozen=True)
class SpeechOptions(GenerationOptions):
    """One way to decode sound. Hashable, like its base.

    language: a code, a name or a token; None to find it from the sound. task: "transcribe" or "translate".
    return_timestamps: whether times are written. prompt_ids: token ids put before every window, startofprev first.
    condition_on_prev_tokens: whether the text so far is put before a window.
    """

    language: str | None = None
    task: str | None = None
    return_timestamps: bool | None = None
    prompt_ids: tuple[int, ...] | None = None
    condition_on_prev_tokens: bool = False


def take(overrides: Mapping[str, Any], speech: SpeechTokens) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the search, and those of speech, checked. Raises InvalidOption, UnknownOption."""
    search = {name: value for name, value in overrides.items() if name not in NAMES}
    own = {name: overrides[name] for name in NAMES if name in overrides}
    for name in ("language", "task"):
        if not isinstance(own.get(name), (str, type(None))):
            raise InvalidOption(
                f"{name} is {own[name]!r}; expected text such as '{'es' if name == 'language' else TASKS[0]}'"
            )
    for name in ("return_timestamps", "condition_on_prev_tokens"):
        if not isinstance(own.get(name), (bool, type(None))):
            raise InvalidOption(f"{name} is {own[name]!r}; expected True or False")
    if own.get("language") is not None:
        language_id(speech, own["language"])
    if own.get("task") is not None:
        task_id(speech, own["task"])
    if (ids := own.get("prompt_ids")) is not None:
        if isinstance(ids, str) or not isinstance(ids, Sequence) or not all(type(i) is int and i >= 0 for i in ids):
            raise InvalidOption(f"prompt_ids is {ids!r}; expected a list of token ids")
        own["prompt_ids"] = tuple(ids) or None
    own["condition_on_prev_tokens"] = bool(own.get("condition_on_prev_tokens"))
    return search, own


def combine(resolved: GenerationOptions, own: Mapping[str, Any]) -> SpeechOptions:
    """Both as one."""
    return SpeechOptions(**{field.name: getattr(resolved, field.name) for field in fields(GenerationOptions)}, **own)


def search_of(
    options: GenerationOptions,
    prompt: Sequence[int],
    timestamp_begin: int | None,
    max_target_length: int,
    **changes: Any,
) -> GenerationOptions:
    """The search of one window: the same options behind this prompt, with the rule of times where wanted.

    max_target_length: tokens that the decoder can be fed. Raises InvalidOption where prompt and text don't fit it.
    """
    longest = options.max_length
    if options.max_new_tokens is not None:
        longest = len(prompt) + options.max_new_tokens
        if longest > max_target_length:
            raise InvalidOption(
                f"max_new_tokens is {options.max_new_tokens}, and with the prompt's {len(prompt)} tokens that is more "
                f"than the {max_target_length} of the model; lower it"
            )
    if len(prompt) >= longest:
        raise InvalidOption(f"the prompt has {len(prompt)} tokens of {longest} that are allowed; shorten it")
    own = {field.name: getattr(options, field.name) for field in fields(GenerationOptions) if field.name != "of_rules"}
    rules = {**dict(options.of_rules), "timestamp_begin": timestamp_begin}
    rules |= {name: value for name, value in changes.items() if name in rules}
    own |= {name: value for name, value in changes.items() if name in own}
    own |= {"decoder_input_ids": tuple(prompt), "decoder_start_token_id": None, "bos_token_id": None}
    own |= {"max_length": longest, "max_new_tokens": None}
    return GenerationOptions(**own, of_rules=tuple(sorted(rules.items(), key=lambda pair: pair[0])))
