"""The one table of tolerances.

An error is the largest absolute difference over an output, divided by the largest absolute value of the reference (so
that it means the same for states of size 10 and logits of size 0.1).
"""

from __future__ import annotations

# fp32: sums of some thousand products in another order differ by about 1e-6 of the largest term; depth adds a factor of
# ten, saturated softmaxes (T5 does not scale its scores) another. A wrong graph is off by 1e-2 and more.
# fp16, bf16: weights are rounded (relative 2^-11, 2^-8), arithmetic stays fp32; the error grows with depth.
GRAPH_TOLERANCE = {"fp32": 5e-4, "fp16": 2e-2, "bf16": 1e-1}
SCORE_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}  # sequence scores, absolute
# The share of sources whose decoded tokens must equal PyTorch's. Rounded weights may flip a near tie.
TOKEN_AGREEMENT = {"fp32": 1.0, "fp16": 0.9, "bf16": 0.8}
TIE = 1e-5  # candidates nearer than this may change places between two correct programs
