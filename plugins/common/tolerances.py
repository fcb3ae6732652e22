"""How far an attention kernel may be from its reference, and why.

Both start from the same rounded inputs; the reference goes on in float64, the kernel in fp32. What remains is fp32's
rounding over sums of up to a few thousand terms, relative to the largest value that is averaged, and one rounding of
the result to its storage type: half a unit in the last place, or the whole of it where fp32's error tips the rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNIT = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}  # spacing of numbers at 1.0
SMALLEST = {"fp32": 0.0, "fp16": 2.0**-24, "bf16": 0.0}  # spacing of subnormals, where it matters
ACCUMULATION = 1e-6  # of the largest value; fp32 sums and exponentials of scores up to about 30


def allowed(element: str, expected: NDArray, values: NDArray) -> NDArray:
    """The largest difference allowed for each element of `expected`, an average of `values`."""
    largest = float(np.abs(values.astype(np.float64)).max(initial=0.0))
    return UNIT[element] * np.abs(expected) + SMALLEST[element] + ACCUMULATION * largest
