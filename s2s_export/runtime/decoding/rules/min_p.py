"""`min_p`, when sampling: keeps the tokens that are at least p times as likely as the most likely one."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..numerics import softmax
from ..option import FROM_0_TO_1, Option
from ..rule import MINUS_INFINITY, DenseRule, View
from ..state import Floats

ORDER = 190
OPTIONS = {"min_p": Option(values.number(), example=0.1, kind="filter", sampling_range=FROM_0_TO_1)}


class MinP(DenseRule):
    """`MinPLogitsWarper` (arXiv 2407.01082).

    Device: p, least number of tokens to keep.
    """

    def __init__(self, p: float, keep: int) -> None:
        self._p = np.float32(p)
        self._keep = keep

    def apply(self, scores: Floats, view: View) -> Floats:
        probabilities = softmax(scores)
        remove = probabilities < self._p * probabilities.max(axis=-1, keepdims=True)
        best = np.argsort(-probabilities, axis=-1, kind="stable")[..., : self._keep]
        np.put_along_axis(remove, best, False, axis=-1)
        return np.where(remove, MINUS_INFINITY, scores)

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("min_p", n=self._keep, amount=float(self._p))


def from_options(options: GenerationOptions, vocabulary_size: int) -> MinP | None:
    if not options.do_sample or options.min_p is None:
        return None
    return MinP(options.min_p, options.min_tokens_to_keep)
