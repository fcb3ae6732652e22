"""Sources that are prompts: a decoder alone goes on with them, so that they are the beginning of every output.

Prompts of unequal length share a batch: the text so far is filled up on the left with NO_TOKEN, which no rule takes for
a token. Where an option counts tokens from a text's beginning, only prompts of equal length do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ...errors import InputError
from .generation_options import GenerationOptions
from .rule import NO_TOKEN
from .state import Ints

# Options of rules that look at the beginning of a text, or hand it to the caller's code.
FROM_THE_BEGINNING = ("prefix_allowed_tokens_fn", "forced_bos_token_id", "force_words_ids", "terms")


class Prompts(list[Sequence[int]]):
    """The token ids of each source's prompt, at least one each. The state that decodes them holds them already."""


def needs_equal_lengths(options: GenerationOptions, n_longest: int, longest: int | None) -> bool:
    """Whether outputs would depend on what other prompts are in the batch.

    n_longest: tokens of the longest prompt. longest: as of `with_prompts`.
    """
    if options.max_new_tokens is None or (options.min_new_tokens is None and options.min_length):
        return True
    if longest is not None and n_longest + options.max_new_tokens > longest + 1:
        return True
    return any(getattr(options, name, None) is not None for name in FROM_THE_BEGINNING)


def with_prompts(options: GenerationOptions, prompts: Prompts, longest: int | None) -> GenerationOptions:
    """The options of a batch of these prompts, whose lengths count them; `options` were made for a prompt of one token.

    longest: the most tokens that the decoder can be fed; an output ends there. Raises InputError for a prompt that
    leaves no room.
    """
    n = max(map(len, prompts))
    is_relative = options.max_new_tokens is not None
    max_length = n + options.max_new_tokens if options.max_new_tokens is not None else options.max_length
    if longest is not None:
        max_length = min(max_length, longest + 1)
    if n >= max_length:
        limit = f"the model allows {longest}" if is_relative else f"max_length, which counts them, is {max_length}"
        raise InputError(f"the prompt has {n} tokens, but {limit}; shorten it, or give max_new_tokens")
    min_length = options.min_length if options.min_new_tokens is None else n + options.min_new_tokens
    # Of the prompt as the options have it only the length is read: Steps takes the tokens from the sources.
    return dataclasses.replace(
        options, max_length=max_length, min_length=min_length, decoder_start_token_id=0, decoder_input_ids=(0,) * n
    )


def beginnings(sources: Sequence[Sequence[int]], options: GenerationOptions) -> Ints:
    """The text before the first token that is chosen, [B, P]; shorter prompts have NO_TOKEN before them."""
    if not isinstance(sources, Prompts):
        return np.tile(np.asarray(options.prompt, dtype=np.int64), (len(sources), 1))
    found = np.full((len(sources), len(options.prompt)), NO_TOKEN, dtype=np.int64)
    for row, prompt in zip(found, sources, strict=True):
        row[len(row) - len(prompt) :] = prompt
    return found


def without_gaps(tokens: Sequence[int]) -> list[int]:
    """Without what fills up a shorter prompt."""
    return [token for token in tokens if token != NO_TOKEN]
