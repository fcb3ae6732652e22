"""`top_k`, when sampling: keeps the k most likely tokens."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import MINUS_INFINITY, DenseRule, View
from ..state import Floats

ORDER = 170
OPTIONS = {"top_k": Option(values.integer(0, whole_floats=True), default=50, example=50, kind="filter")}


class TopK(DenseRule):
    """`TopKLogitsWarper`: tokens as likely as the k-th are kept, too.

    Device: k.
    """

    def __init__(self, k: int) -> None:
        self._k = k

    def apply(self, scores: Floats, view: View) -> Floats:
        k = min(self._k, scores.shape[-1])
        threshold = -np.partition(-scores, k - 1, axis=-1)[..., k - 1 : k]
        return np.where(scores < threshold, MINUS_INFINITY, scores)

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("top_k", n=self._k)


def from_options(options: GenerationOptions, vocabulary_size: int) -> TopK | None:
    if not options.do_sample or not options.top_k:
        return None
    return TopK(max(options.top_k, options.min_tokens_to_keep))
