"""`top_h`, when sampling: keeps the most likely tokens, up to a share of the distribution's entropy."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..numerics import cumulative, softmax
from ..option import ABOVE_0_TO_1, Option
from ..rule import MINUS_INFINITY, DenseRule, View
from ..state import Floats

ORDER = 160
OPTIONS = {"top_h": Option(values.number(), example=0.4, kind="filter", sampling_range=ABOVE_0_TO_1)}
# Only this many most likely tokens are considered, as in transformers.
MOST_LIKELY = 100


class TopH(DenseRule):
    """`TopHLogitsWarper` (arXiv 2509.02510): entropies are those of the 100 most likely tokens, renormalised.

    Device: the share, how many tokens it considers; the best of them sorted.
    """

    def __init__(self, share: float) -> None:
        self._share = np.float32(share)

    def apply(self, scores: Floats, view: View) -> Floats:
        best = np.argsort(-scores, axis=-1, kind="stable")[..., :MOST_LIKELY]
        top = np.take_along_axis(scores, best, axis=-1)
        # Like torch's Categorical, which replaces 0 by the smallest rounding step before it takes the logarithm.
        probabilities = softmax(top)
        tiny = np.finfo(np.float32).tiny
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -(probabilities * np.maximum(np.log(np.maximum(probabilities, tiny)), np.finfo(np.float32).min))
            terms = -probabilities * np.log(probabilities)
        budget = entropy.sum(axis=-1, keepdims=True) * self._share
        keep = cumulative(terms) <= budget
        keep[..., 0] = True
        out = np.full_like(scores, MINUS_INFINITY)
        np.put_along_axis(out, best, np.where(keep, top, MINUS_INFINITY), axis=-1)
        return out

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("top_h", n=MOST_LIKELY, amount=float(self._share))


def from_options(options: GenerationOptions, vocabulary_size: int) -> TopH | None:
    return TopH(options.top_h) if options.do_sample and options.top_h is not None else None
