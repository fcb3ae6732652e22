"""`bad_words_ids`: bans the token that would complete a sequence."""

from __future__ import annotations

from .. import option_values as values
from ..completions import Completions
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View, compact

ORDER = 60
OPTIONS = {
    "bad_words_ids": Option(
        values.words,
        example=[[4], [3, 5], [4, 4, 6]],
        token_ids=lambda words: [i for word in words for i in word],
    )
}


class BadWords(SparseRule):
    """`NoBadWordsLogitsProcessor`: like `sequence_bias` with minus infinity. Entries that are an end token are ignored.

    Device: the sequences as padded ids [W, n] with lengths [W].
    """

    def __init__(self, words: list[tuple[int, ...]]) -> None:
        self._completions = Completions(words)
        self._words = tuple(words)
        self.reads_history = self._completions.reads_history
        self._constant = Edit("ban", self._completions.constant) if self._completions.constant is not None else None

    def edit(self, view: View) -> Edit:
        if self._constant is not None:
            return self._constant
        ids = self._completions.find(view)
        return Edit("ban", compact(ids, ids >= 0))

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("ban", "sequences", sequences=self._words)


def from_options(options: GenerationOptions, vocabulary_size: int) -> BadWords | None:
    words = [word for word in options.bad_words_ids or () if not (len(word) == 1 and word[0] in options.eos_token_id)]
    return BadWords(words) if words else None
