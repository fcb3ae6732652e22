"""`top_p`, when sampling: keeps the smallest set of most likely tokens whose probabilities reach p."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..numerics import cumulative, softmax
from ..option import FROM_0_TO_1, Option
from ..rule import MINUS_INFINITY, DenseRule, View
from ..state import Floats

ORDER = 180
OPTIONS = {"top_p": Option(values.number(), default=1.0, example=0.8, kind="filter", sampling_range=FROM_0_TO_1)}


class TopP(DenseRule):
    """`TopPLogitsWarper` (nucleus sampling, arXiv 1904.09751): removes the least likely tokens whose probabilities add
    up to at most 1 - p.

    Device: 1 - p, least number of tokens to keep; a threshold found by bisection.
    """

    def __init__(self, p: float, keep: int) -> None:
        self._removed = np.float32(1.0 - p)
        self._keep = keep

    def apply(self, scores: Floats, view: View) -> Floats:
        order = np.argsort(scores, axis=-1, kind="stable")
        ascending = np.take_along_axis(scores, order, axis=-1)
        remove = cumulative(softmax(ascending)) <= self._removed
        remove[..., -self._keep :] = False
        out = np.empty_like(scores)
        np.put_along_axis(out, order, np.where(remove, MINUS_INFINITY, ascending), axis=-1)
        return out

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("top_p", n=self._keep, amount=float(self._removed))


def from_options(options: GenerationOptions, vocabulary_size: int) -> TopP | None:
    if not options.do_sample or options.top_p is None or options.top_p >= 1.0:
        return None
    return TopP(options.top_p, options.min_tokens_to_keep)
