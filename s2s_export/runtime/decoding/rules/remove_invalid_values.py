"""`remove_invalid_values`: no score is infinite or not a number."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import DenseRule, View
from ..state import Floats

ORDER = 110
OPTIONS = {"remove_invalid_values": Option(values.boolean, default=False, example=True)}


class RemoveInvalidValues(DenseRule):
    """`InfNanRemoveLogitsProcessor`: NaN becomes 0, and infinities become the largest and smallest finite float32.

    Device: elementwise.
    """

    shift_invariant = False

    def apply(self, scores: Floats, view: View) -> Floats:
        limits = np.finfo(np.float32)
        return np.nan_to_num(scores, copy=False, nan=0.0, posinf=float(limits.max), neginf=float(limits.min))

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("remove_invalid")


def from_options(options: GenerationOptions, vocabulary_size: int) -> RemoveInvalidValues | None:
    return RemoveInvalidValues() if options.remove_invalid_values else None
