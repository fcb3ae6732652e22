"""`presence_penalty`: the score of every token that has been generated falls by this much."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import NO_TOKEN, Edit, SparseRule, View

ORDER = 31  # after repetition_penalty
OPTIONS = {"presence_penalty": Option(values.number(), default=0.0)}


class PresencePenalty(SparseRule):
    """As OpenAI's API, vLLM and TensorRT-LLM have it: once for a token, however often it occurs. The decoder prompt
    does not count.

    Device: none.
    """

    reads_history = True

    def __init__(self, penalty: float, prompt_length: int) -> None:
        self._penalty = penalty
        self._prompt_length = prompt_length

    def edit(self, view: View) -> Edit | None:
        tokens = np.sort(view.history()[:, :, self._prompt_length :], axis=-1)
        if not tokens.shape[-1]:
            return None
        tokens[..., 1:][tokens[..., 1:] == tokens[..., :-1]] = NO_TOKEN
        return Edit("add", tokens, -self._penalty)


def from_options(options: GenerationOptions, vocabulary_size: int) -> PresencePenalty | None:
    return PresencePenalty(options.presence_penalty, len(options.prompt)) if options.presence_penalty else None
