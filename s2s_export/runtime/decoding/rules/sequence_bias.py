"""`sequence_bias`: adds a number to the token that would complete a sequence."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..completions import Completions
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View

ORDER = 10
OPTIONS = {
    "sequence_bias": Option(
        values.sequence_bias,
        example={(3,): -1.5, (4, 3): 2.0, (5, 4, 3): 0.25, (7, 9): 1.0},
        token_ids=lambda pairs: [i for word, _ in pairs for i in word],
    )
}


class SequenceBias(SparseRule):
    """`SequenceBiasLogitsProcessor`: if the text so far, including the prompt, ends with all tokens of a sequence but
    the last, the score of the last is changed. A sequence of one token always applies.

    A sequence may begin at the beginning of the text, as in transformers 5.23 (5.17 needed one more token before it).
    Device: the sequences as padded ids [W, n] with lengths [W], and a bias each [W].
    """

    def __init__(self, biases: tuple[tuple[tuple[int, ...], float], ...]) -> None:
        self._completions = Completions([word for word, _ in biases])
        self._words = tuple(biases[i][0] for i in self._completions.permutation)
        self._amounts = np.asarray([biases[i][1] for i in self._completions.permutation], dtype=np.float32)
        self.reads_history = self._completions.reads_history
        self._constant = (
            Edit("add", self._completions.constant, self._amounts) if self._completions.constant is not None else None
        )

    def edit(self, view: View) -> Edit:
        return self._constant or Edit("add", self._completions.find(view), self._amounts)

    def device_form(self, max_length: int) -> DeviceForm:
        amounts = tuple(float(amount) for amount in self._amounts)
        return DeviceForm("add", "sequences", sequences=self._words, amounts=amounts)


def from_options(options: GenerationOptions, vocabulary_size: int) -> SequenceBias | None:
    return SequenceBias(options.sequence_bias) if options.sequence_bias else None
