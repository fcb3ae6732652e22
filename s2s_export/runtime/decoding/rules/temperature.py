"""`temperature`, when sampling: above 1 flattens the distribution."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import DenseRule, View
from ..state import Floats

ORDER = 150
OPTIONS = {
    "temperature": Option(
        values.number(),
        default=1.0,
        example=0.7,
        kind="sampling",
        sampling_range=(lambda v: v > 0.0, "a number above 0 (do_sample=False is what temperature 0 would mean)"),
    )
}


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
