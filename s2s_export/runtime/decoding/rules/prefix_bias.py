"""`prefix_bias_beta`: draws the output towards a given beginning, `target_prefix_ids`, without forcing it."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..generation_options import GenerationOptions
from ..numerics import log_softmax
from ..option import Option
from ..rule import DenseRule, View
from ..state import Floats

ORDER = 5  # before all others, so that it mixes with the model's own probabilities
OPTIONS = {
    "target_prefix_ids": Option(values.prompt, token_ids=list),
    "prefix_bias_beta": Option(values.number("a number from 0 to below 1", lambda value: 0.0 <= value < 1.0)),
}


class PrefixBias(DenseRule):
    """Biased decoding as CTranslate2 has it (arXiv 1912.03393): while a text agrees with the prefix, the probability of
    the next token is (1 - beta) times the model's, plus beta for the prefix's token. A text that has left the prefix is
    not biased any more.

    Device: none.
    """

    shift_invariant = False
    reads_history = True

    def __init__(self, prefix: tuple[int, ...], beta: float, prompt_length: int) -> None:
        self._prefix = np.asarray(prefix, dtype=np.int64)
        self._beta = beta
        self._prompt_length = prompt_length

    def apply(self, scores: Floats, view: View) -> Floats:
        n = view.length - self._prompt_length
        if n >= len(self._prefix):
            return scores
        agrees = (view.history()[:, :, self._prompt_length :] == self._prefix[:n]).all(axis=-1)
        biased = log_softmax(scores) + np.float32(np.log1p(-self._beta))
        token = int(self._prefix[n])
        biased[..., token] = np.logaddexp(biased[..., token], np.float32(np.log(self._beta)))
        return np.where(agrees[..., None], biased, scores)


def from_options(options: GenerationOptions, vocabulary_size: int) -> PrefixBias | None:
    if not options.prefix_bias_beta or options.target_prefix_ids is None:
        return None
    return PrefixBias(options.target_prefix_ids, options.prefix_bias_beta, len(options.prompt))
