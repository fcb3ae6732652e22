"""`typical_p`, when sampling: keeps the tokens whose information is nearest to the entropy, up to a mass of p."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..numerics import cumulative, log_softmax, softmax
from ..option import ABOVE_0_TO_1, Option
from ..rule import MINUS_INFINITY, DenseRule, View
from ..state import Floats

ORDER = 200
OPTIONS = {"typical_p": Option(values.number(), default=1.0, example=0.6, kind="filter", sampling_range=ABOVE_0_TO_1)}


class TypicalP(DenseRule):
    """`TypicalLogitsWarper` (arXiv 2202.00666).

    Device: p, least number of tokens to keep; a threshold found by bisection.
    """

    def __init__(self, mass: float, keep: int) -> None:
        self._mass = np.float32(mass)
        self._keep = keep

    def apply(self, scores: Floats, view: View) -> Floats:
        log_probs = log_softmax(scores)
        with np.errstate(invalid="ignore"):
            entropy = -np.nansum(log_probs * np.exp(log_probs), axis=-1, keepdims=True)
        distance = np.abs(-log_probs - entropy)
        order = np.argsort(distance, axis=-1, kind="stable")
        distance = np.take_along_axis(distance, order, axis=-1)
        nearest_first = np.take_along_axis(scores, order, axis=-1)
        last = (cumulative(softmax(nearest_first)) < self._mass).sum(axis=-1, keepdims=True)
        last = np.minimum(last, scores.shape[-1] - 1)
        remove = distance > np.take_along_axis(distance, last, axis=-1)
        remove[..., : self._keep] = False
        out = np.empty_like(scores)
        np.put_along_axis(out, order, np.where(remove, MINUS_INFINITY, nearest_first), axis=-1)
        return out

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("typical_p", n=self._keep, amount=float(self._mass))


def from_options(options: GenerationOptions, vocabulary_size: int) -> TypicalP | None:
    if not options.do_sample or options.typical_p is None or options.typical_p >= 1.0:
        return None
    return TypicalP(options.typical_p, options.min_tokens_to_keep)
