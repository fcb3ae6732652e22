"""`exponential_decay_length_penalty`: from some length on, the end becomes more and more likely."""

from __future__ import annotations

from .. import option_values as values
from ..device_form import DeviceForm, distinct
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View, shared_ids

ORDER = 120
OPTIONS = {"exponential_decay_length_penalty": Option(values.decay, example=(1, 1.3))}


class ExponentialDecay(SparseRule):
    """`ExponentialDecayLengthPenalty`: the score of the end tokens grows by |score| * (factor**n - 1), where n is the
    number of generated tokens beyond `start`, without the prompt.

    A banned end token stays banned, as in transformers 5.23 (in 5.17 it became NaN).
    Device: the end tokens, start, factor.
    """

    shift_invariant = False

    def __init__(self, start: int, factor: float, prompt_length: int, eos: tuple[int, ...]) -> None:
        self._start = start + prompt_length
        self._factor = factor
        self._ids = shared_ids(eos)

    def edit(self, view: View) -> Edit | None:
        n = view.length - self._start
        return Edit("grow", self._ids, self._factor**n - 1.0) if n > 0 else None

    def device_form(self, max_length: int) -> DeviceForm:
        lengths = range(1, max(max_length - self._start, 0) + 1)
        amounts = tuple(self._factor**n - 1.0 for n in lengths)
        first = self._start + 1
        ids = distinct(self._ids.ravel())
        return DeviceForm("grow", first_length=first, last_length=first + len(amounts) - 1, ids=ids, amounts=amounts)


def from_options(options: GenerationOptions, vocabulary_size: int) -> ExponentialDecay | None:
    if options.exponential_decay_length_penalty is None:
        return None
    start, factor = options.exponential_decay_length_penalty
    return ExponentialDecay(start, factor, len(options.prompt), options.eos_token_id)
