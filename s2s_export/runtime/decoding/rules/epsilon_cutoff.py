"""`epsilon_cutoff`, when sampling: keeps the tokens whose probability is at least this."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..numerics import keep_best, softmax
from ..option import FROM_0_TO_1, Option
from ..rule import DenseRule, View
from ..state import Floats

ORDER = 210
OPTIONS = {
    "epsilon_cutoff": Option(values.number(), default=0.0, example=0.01, kind="filter", sampling_range=FROM_0_TO_1),
}


class EpsilonCutoff(DenseRule):
    """`EpsilonLogitsWarper` (arXiv 2210.15191).

    Device: epsilon, least number of tokens to keep.
    """

    def __init__(self, epsilon: float, keep: int) -> None:
        self._epsilon = np.float32(epsilon)
        self._keep = keep

    def apply(self, scores: Floats, view: View) -> Floats:
        return keep_best(scores, softmax(scores) < self._epsilon, self._keep)

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("epsilon_cutoff", n=self._keep, amount=float(self._epsilon))


def from_options(options: GenerationOptions, vocabulary_size: int) -> EpsilonCutoff | None:
    if not options.do_sample or options.epsilon_cutoff is None or not 0.0 < options.epsilon_cutoff < 1.0:
        return None
    return EpsilonCutoff(options.epsilon_cutoff, options.min_tokens_to_keep)
