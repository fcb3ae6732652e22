"""`frequency_penalty`: the score of a token falls by this much for each time that it has been generated."""

from __future__ import annotations

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View

ORDER = 32  # after repetition_penalty
OPTIONS = {"frequency_penalty": Option(values.number(), default=0.0, example=0.7)}


class FrequencyPenalty(SparseRule):
    """As OpenAI's API, vLLM and TensorRT-LLM have it. The decoder prompt does not count.

    Device: the row's tokens [T], and what each of them adds: nothing for the prompt, the penalty for the others.
    """

    reads_history = True

    def __init__(self, penalty: float, prompt_length: int) -> None:
        self._penalty = penalty
        self._prompt_length = prompt_length

    def edit(self, view: View) -> Edit | None:
        tokens = view.history()[:, :, self._prompt_length :]
        return Edit("add", tokens, -self._penalty) if tokens.shape[-1] else None

    def device_form(self, max_length: int) -> DeviceForm:
        n = max(0, max_length - self._prompt_length)
        return DeviceForm("add", "history", amounts=(0.0,) * self._prompt_length + (-self._penalty,) * n)


def from_options(options: GenerationOptions, vocabulary_size: int) -> FrequencyPenalty | None:
    return FrequencyPenalty(options.frequency_penalty, len(options.prompt)) if options.frequency_penalty else None
