"""Which nodes can't be fp16, because a value that they read or write would not fit.

T5 models were trained in bf16. Outputs of their feed-forward layers exceed 65504, the largest number of fp16, and
become infinite, so that the output text is noise. Such nodes are found by measured values, not by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..graphs.graph import Graph
from .activations import Activations
from .precision import BENDS, MOVES, PRODUCTS, TYPES

FP16_MAX = float(np.finfo(np.float16).max)


def overflowing(
    graphs: Mapping[str, Graph], seen: Activations, margin: float, remedy: str
) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
    """By graph, the nodes that compute in `remedy` ("fp32" or "bf16") instead; and for each what was found.

    margin: how much larger than on the samples a value may become.
    """
    keep: dict[str, dict[str, int]] = {}
    report = []
    for name, graph in graphs.items():
        keep[name] = {}
        for node in graph.nodes:
            if node.op_type not in PRODUCTS | BENDS | MOVES:
                continue
            touched = [v for v in (*node.input, *node.output) if graph.is_float(v) and v not in graph.weights]
            largest = max((seen.largest(name, value) for value in touched), default=0.0)
            if largest * margin > FP16_MAX:
                keep[name][node.name] = TYPES[remedy]
                report.append(
                    {
                        "graph": name,
                        "node": node.name,
                        "op": node.op_type,
                        "largest": largest,
                        "limit": FP16_MAX / margin,
                        "kept_in": remedy,
                    }
                )
    return keep, report
