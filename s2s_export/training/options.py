"""Every option of a training run, checked in one place."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidOption

DEFAULT_VOCAB_SIZE = 2000  # pieces
# Options that may change when a run is resumed. Only the last two change what is learned; they are for resuming after a
# loss that was not finite.
MAY_CHANGE = ("max_steps", "patience", "evaluate_every", "device", "metric_pairs", "learning_rate", "clip_norm")


@dataclass(frozen=True)
class TrainingOptions:
    """seed: of weights, batches and dropout. max_steps: updates of the weights.
    batch_tokens: tokens of a batch, source and target together, including padding.
    learning_rate: its maximum, which is reached after `warmup_steps`; then it falls as 1 / sqrt(step).
    label_smoothing: share of the target that is spread over the vocabulary. clip_norm: largest norm of the gradient.
    evaluate_every: steps between evaluations, each of which saves the checkpoint.
    patience: training stops after so many evaluations without a lower validation loss; 0: it never stops early.
    metric_pairs: number of validation pairs that an evaluation translates; 0: it computes the loss only.
    device: auto, cpu, cuda or cuda:N; auto is the GPU if torch finds one.
    """

    seed: int = 1
    max_steps: int = 5000
    batch_tokens: int = 4096
    learning_rate: float = 1e-3
    warmup_steps: int = 400
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    evaluate_every: int = 500
    patience: int = 5
    metric_pairs: int = 100
    device: str = "auto"

    def __post_init__(self) -> None:
        problems = []
        for name in ("max_steps", "batch_tokens", "warmup_steps", "evaluate_every"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("seed", "patience", "metric_pairs"):
            if getattr(self, name) < 0:
                problems.append(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                problems.append(f"{name} is {getattr(self, name)}, expected a positive number")
        if not 0 <= self.label_smoothing < 1:
            problems.append(f"label_smoothing is {self.label_smoothing}, expected 0 or more and below 1")
        if problems:
            raise InvalidOption("; ".join(problems))

    def rate_at(self, step: int) -> float:
        """The learning rate of update `step` = 1, 2, ...: equation 3 of 1706.03762, scaled to `learning_rate`."""
        return self.learning_rate * min(step / self.warmup_steps, math.sqrt(self.warmup_steps / step))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
