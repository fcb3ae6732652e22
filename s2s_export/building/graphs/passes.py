"""What a pass returns. Passes rewrite the portable graphs so that they run faster on a CPU; each has a file of its own.

A pass is a function `apply(graph, ...) -> Applied`. It looks for patterns of nodes and does not depend on the model
family. What it can't change it leaves as it was, and it reports why. Passes need onnx; an engine, once built, does not.

Letters as in docs/architecture.md, and G for the tokens of one group of the vocabulary.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Applied:
    """What a pass did to one graph: how many places it changed, and how many it left for which reason."""

    name: str
    count: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def record(self) -> dict[str, Any]:
        return {"pass": self.name, "count": self.count, "left": dict(self.left)}

    def line(self) -> str:
        reasons = "".join(f"; {n} not: {reason}" for reason, n in self.left.items())
        return f"{self.name}: {self.count}{reasons}"
