"""The progress of a training run: running means and the time left, and one line for each evaluation."""

from __future__ import annotations

from typing import TextIO

from .. import progress
from .run import Evaluation, Progress

SMOOTHING = 0.95  # weight of the past in the running means of loss and speed


class ProgressBar:
    """Call it with each `Progress`. It writes as all long work does (s2s_export/progress.py); `clear` ends it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """stream: None is standard error."""
        self.loss = self.speed = 0.0
        self.steps, self._is_open = 0, False
        self._shown = progress.Progress("training", stream=stream)

    def __call__(self, step: Progress) -> None:
        if not self._is_open:
            self._is_open = True
            self._shown.__enter__()
            self._shown.skip(max(0, step.step - 1), more=step.max_steps)
        if not step.step and step.evaluation:  # what a run began with
            self._shown.note(describe(step.evaluation))
            return
        self.steps += 1
        keep = min(SMOOTHING, 1 - 1 / self.steps)  # a plain mean during the first steps
        self.loss = keep * self.loss + (1 - keep) * step.loss
        self.speed = keep * self.speed + (1 - keep) * step.tokens_per_second
        text = f"loss {self.loss:.3f}, rate {step.learning_rate:.1e}, {self.speed:,.0f} tokens/s"
        self._shown.advance(1, text)
        if step.evaluation:
            self._shown.note(describe(step.evaluation))

    def clear(self) -> None:
        """Remove the bar, before something else is written; nothing more is written after that."""
        self._shown.close()


def describe(evaluation: Evaluation) -> str:
    trained = f"training loss {evaluation.training_loss:.3f}, " if evaluation.step else ""
    line = f"step {evaluation.step}: {trained}validation loss {evaluation.validation_loss:.3f}"
    if evaluation.scores:
        scores = evaluation.scores
        line += f", exact {100 * scores['exact_match']:.1f} %, BLEU {scores['bleu']:.1f}, chrF {scores['chrf']:.1f}"
    return line
