"""All tolerances of exported graphs, in one table.

The error of an output is its largest absolute difference from the reference, divided by the reference's largest
absolute value, so that it means the same for states around 10 and logits around 0.1.
"""

from __future__ import annotations

# fp32: sums of a few thousand products, added in another order, differ by about 1e-6 of the largest term. The depth of
# a model adds a factor of ten, and saturated softmaxes (T5 does not scale its scores) another. A wrong graph has an
# error of 1e-2 or more. fp16, bf16: weights are rounded (relative error 2^-11, 2^-8), arithmetic stays fp32; the error
# grows with the depth.
GRAPH_TOLERANCE = {"fp32": 5e-4, "fp16": 2e-2, "bf16": 1e-1}
SCORE_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}  # sequence scores, absolute
# The share of sources whose decoded tokens must equal PyTorch's. Rounded weights may reverse a near tie.
TOKEN_AGREEMENT = {"fp32": 1.0, "fp16": 0.9, "bf16": 0.8}
# An engine of lower precision rounds in every product, so that one token differs and the rest of the text follows it:
# it is judged by the share of tokens before the first that differs. One that computes something else has next to none.
LOSSY_AGREEMENT = 0.5
TIE = 1e-5  # candidates whose scores are closer may be in another order in another correct program
