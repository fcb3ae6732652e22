"""`renormalize_logits`: the scores are log-probabilities again after all other rules."""

from __future__ import annotations

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..numerics import normalised
from ..option import Option
from ..rule import DenseRule, View
from ..state import Floats

ORDER = 230
OPTIONS = {"renormalize_logits": Option(values.boolean, example=True)}


class Renormalize(DenseRule):
    """`LogitNormalization`: log-softmax.

    Device: a sum over the vocabulary.
    """

    is_normalisation = True

    def apply(self, scores: Floats, view: View) -> Floats:
        return normalised(scores)

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("renormalize")


def from_options(options: GenerationOptions, vocabulary_size: int) -> Renormalize | None:
    return Renormalize() if options.renormalize_logits else None
