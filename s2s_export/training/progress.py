"""The progress of a training run: a bar on a terminal, and one line for each evaluation."""

from __future__ import annotations

from typing import TextIO

from .run import Evaluation, Progress

WIDTH = 24  # characters of the bar
SMOOTHING = 0.95  # weight of the past in the running means of loss and speed


class ProgressBar:
    """Call it with each `Progress`. Writes to `stream`, by default standard error, if that is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.moving = stream.isatty()
        self.loss = self.speed = 0.0
        self.steps = 0

    def __call__(self, progress: Progress) -> None:
        self.steps += 1
        keep = min(SMOOTHING, 1 - 1 / self.steps)  # a plain mean during the first steps
        self.loss = keep * self.loss + (1 - keep) * progress.loss
        self.speed = keep * self.speed + (1 - keep) * progress.tokens_per_second
        if progress.evaluation:
            self.clear()
            self.stream.write(describe(progress.evaluation) + "\n")
        elif self.moving:
            full = WIDTH * progress.step // progress.max_steps
            self.stream.write(
                f"\r[{'#' * full}{'.' * (WIDTH - full)}] {progress.step}/{progress.max_steps} loss {self.loss:.3f} "
                f"rate {progress.learning_rate:.1e} {self.speed:,.0f} tokens/s\033[K"
            )
        self.stream.flush()

    def clear(self) -> None:
        """Remove the bar, before something else is written."""
        if self.moving:
            self.stream.write("\r\033[K")
            self.stream.flush()


def describe(evaluation: Evaluation) -> str:
    line = f"step {evaluation.step}: training loss {evaluation.training_loss:.3f}, validation loss "
    line += f"{evaluation.validation_loss:.3f}"
    if evaluation.scores:
        scores = evaluation.scores
        line += f", exact {100 * scores['exact_match']:.1f} %, BLEU {scores['bleu']:.1f}, chrF {scores['chrf']:.1f}"
    return line
