"""How far a kernel may be from its reference, and why.

Both start from the same rounded inputs and weights; the reference goes on in float64, the kernel in fp32, which loses
about 1e-6 of the sum of the terms' sizes over a few thousand terms. What a kernel rounds on the way (a norm's result,
attention weights) shifts the result by half a unit of the element for every term, which adds up like noise; and the
result itself is rounded where it is stored in the element.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNIT = {"fp16": 2.0**-10, "bf16": 2.0**-7, "fp32": 2.0**-23}
SMALLEST = {"fp16": 2.0**-24, "bf16": 0.0, "fp32": 0.0}
ACCUMULATION = 2e-6


def allowed(stored: str, expected: NDArray, size: NDArray | float, rounded_first: str = "") -> NDArray:
    """The largest difference allowed for each element of `expected`.

    stored: the element in which the result is stored. size: sum of the sizes of the terms that were added up.
    rounded_first: the element to which one factor of each term was rounded in the kernel, and not in the reference.
    """
    found = UNIT[stored] * np.abs(expected) + SMALLEST[stored] + ACCUMULATION * np.asarray(size)
    return found + (0.5 * UNIT[rounded_first] * np.asarray(size) if rounded_first else 0.0)
