"""`repetition_penalty`: above 1 makes the tokens that were already used less likely."""

from __future__ import annotations

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View

ORDER = 30
OPTIONS = {"repetition_penalty": Option(values.above_0, default=1.0, example=1.7)}


class RepetitionPenalty(SparseRule):
    """`RepetitionPenaltyLogitsProcessor` (CTRL, arXiv 1909.05858): once for every token so far, also of the prompt.

    Device: the row's tokens [T], the penalty.
    """

    shift_invariant = False
    reads_history = True

    def __init__(self, penalty: float) -> None:
        self._penalty = penalty

    def edit(self, view: View) -> Edit:
        return Edit("scale", view.history(), self._penalty)

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("scale", "history", amount=self._penalty)


def from_options(options: GenerationOptions, vocabulary_size: int) -> RepetitionPenalty | None:
    penalty = options.repetition_penalty
    return RepetitionPenalty(penalty) if penalty is not None and penalty != 1.0 else None
