"""`eta_cutoff`, when sampling: like `epsilon_cutoff`, with a threshold that falls as the entropy rises."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..numerics import keep_best, log_softmax, softmax
from ..option import FROM_0_TO_1, Option
from ..rule import DenseRule, View
from ..state import Floats

ORDER = 220
OPTIONS = {"eta_cutoff": Option(values.number(), default=0.0, example=0.01, kind="filter", sampling_range=FROM_0_TO_1)}


class EtaCutoff(DenseRule):
    """`EtaLogitsWarper` (arXiv 2210.15191): the threshold is min(eta, sqrt(eta) * exp(-entropy)).

    Device: eta, least number of tokens to keep; a sum over the vocabulary.
    """

    def __init__(self, eta: float, keep: int) -> None:
        self._eta = np.float32(eta)
        self._keep = keep

    def apply(self, scores: Floats, view: View) -> Floats:
        probabilities = softmax(scores)
        # 0 * -inf counts as 0: torch's Categorical clamps the logarithm to the smallest float32.
        log_probs = np.maximum(log_softmax(scores), np.finfo(np.float32).min)
        entropy = -(log_probs * probabilities).sum(axis=-1, keepdims=True)
        threshold = np.minimum(self._eta, np.sqrt(self._eta) * np.exp(-entropy))
        return keep_best(scores, probabilities < threshold, self._keep)

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("eta_cutoff", n=self._keep, amount=float(self._eta))


def from_options(options: GenerationOptions, vocabulary_size: int) -> EtaCutoff | None:
    if not options.do_sample or options.eta_cutoff is None or not 0.0 < options.eta_cutoff < 1.0:
        return None
    return EtaCutoff(options.eta_cutoff, options.min_tokens_to_keep)
