"""Emits the keys that an encoder has beside its tokens' own: one for each block of tokens (`structure.SummedBlocks`).

Letters: G blocks, the most that a source of the batch may have, and at least one, which a mask hides from shorter ones.
"""

from __future__ import annotations

import numpy as np
import onnx

from .biases import MASKED, bias_of
from .builder import FLOAT, GraphBuilder
from .structure import SummedBlocks


class BlockKeys:
    """What all layers share: which tokens are in which block, and the additive mask of the blocks."""

    def __init__(self, g: GraphBuilder, blocks: SummedBlocks, source_mask: str, length: str) -> None:
        self._g = g
        size, one = g.constant([blocks.size]), g.constant([1])
        n_tokens = g.op("ReduceSum", [source_mask, one], keepdims=1)  # [B,1]
        n_whole = g.op("Div", [n_tokens, size])  # [B,1]
        self.n_blocks = g.op("Max", [g.op("Div", [length, size]), one])
        steps = g.range(self.n_blocks)  # [G]
        own = g.op("Min", [g.op("Div", [g.range(length), size]), g.op("Sub", [n_whole, one])])  # [B,S]
        is_token = g.op("Cast", [g.op("Unsqueeze", [source_mask, one])], to=onnx.TensorProto.BOOL)
        is_inside = g.op("Equal", [g.op("Unsqueeze", [own, one]), g.op("Unsqueeze", [steps, one])])  # [B,G,S]
        self._membership = g.op("Cast", [g.op("And", [is_inside, is_token])], to=FLOAT)
        is_whole = g.op("Unsqueeze", [g.op("Less", [steps, n_whole]), g.constant([1, 2])])  # [B,1,1,G]
        hidden = g.op("Where", [is_whole, g.constant(0.0, np.float32), g.constant(MASKED, np.float32)])
        distance = g.op("Sub", [steps, g.op("Unsqueeze", [own, g.constant([2])])])  # [B,S,G]
        bias = g.transpose(bias_of(g, blocks.relative, distance), [1, 0, 2, 3])  # [B,H,S,G]
        self.mask = g.op("Add", [bias, hidden])

    def sums(self, x: str, batch: str, length: str, width: int) -> str:
        """x [B*S,E] -> the sum of each block's rows [B*G,E]."""
        g = self._g
        summed = g.op("MatMul", [self._membership, g.reshape(x, [batch, length, width])])
        return g.reshape(summed, [-1, width])
