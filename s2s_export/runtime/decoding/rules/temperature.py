"""`temperature`, when sampling: above 1 flattens the distribution."""

from __future__ import annotations

import numpy as np

from ..device_form import DeviceForm
from ..options import GenerationOptions
from ..rule import DenseRule, View
from ..state import Floats

ORDER = 150


class Temperature(DenseRule):
    """`TemperatureLogitsWarper`.

    Device: elementwise division.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = np.float32(temperature)

    def apply(self, scores: Floats, view: View) -> Floats:
        return scores / self._temperature

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("temperature", amount=float(self._temperature))


def from_options(options: GenerationOptions, vocabulary_size: int) -> Temperature | None:
    if not options.do_sample or options.temperature is None or options.temperature == 1.0:
        return None
    return Temperature(options.temperature)
