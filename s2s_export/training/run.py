"""The training loop.

    for each step:  loss = -sum log p(y_t | y_<t, x) / n_tokens;  clip its gradient's norm;  Adam
    every so often: validation loss and scores;  save

A step depends on the weights, the optimizer's moments, the seed and the number of the step only: batches are a function
of seed and epoch (data.py), dropout's noise one of seed and step. The checkpoint holds all of these, so that a run that
is interrupted and resumed ends with the same weights as one that is not: bit for bit on a CPU with the same number of
threads; on a GPU the order of additions varies.

The checkpoint's model.safetensors has the weights with the lowest validation loss so far; the latest weights are in its
training state.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, TrainingError
from ..reference import build
from ..reference.checkpoint import Checkpoint, load_weights, save_checkpoint, weights_of
from .corpus import Pair
from .data import Example, collate, make_batches
from .metrics import Scores, loss_sum, mean_loss, score_texts, translate
from .options import TrainingOptions
from .tokenizer import Tokenizer

BETAS, EPSILON = (0.9, 0.98), 1e-9  # 1706.03762, section 5.3
MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of Adam's two moments


@dataclass
class Evaluation:
    """An entry of the history. training_loss: mean since the last evaluation, with label smoothing and dropout."""

    step: int
    validation_loss: float
    training_loss: float
    scores: dict[str, float] | None


@dataclass
class Progress:
    """What the caller is told after each step. evaluation: of this step, or None."""

    step: int
    max_steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    evaluation: Evaluation | None = None


@dataclass
class Report:
    """The result. stopped: "max_steps" or "patience". scores: of the best weights on the validation pairs."""

    folder: str
    model: str
    n_parameters: int
    vocab_size: int
    n_training_pairs: int
    n_validation_pairs: int
    n_skipped: int
    steps: int
    stopped: str
    best_step: int
    validation_loss: float
    scores: Scores | None
    seconds: float
    history: list[Evaluation] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Run:
    """One training run, new or resumed. checkpoint: what is in the folder, or will be after the next save."""

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        examples: Sequence[Example],
        held_out: Sequence[Example],
        validation: Sequence[Pair],
        tokenizer: Tokenizer,
        options: TrainingOptions,
        device: torch.device,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.folder, self.checkpoint, self.tokenizer = folder, checkpoint, tokenizer
        self.examples, self.held_out, self.validation = examples, held_out, validation
        self.options, self.device, self.on_progress = options, device, on_progress
        with torch.random.fork_rng():  # the random weights made here are replaced below
            self.model = build(checkpoint.config).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.0, betas=BETAS, eps=EPSILON)
        self.state = checkpoint.training
        self.history = [Evaluation(**line) for line in self.state["history"]]
        self.epoch, self.batches = -1, list[list[int]]()  # the epoch to which the batches belong
        self.saved_at: int | None = None  # the step of the checkpoint in the folder
        latest = {
            name.removeprefix("model."): value for name, value in checkpoint.tensors.items() if name[:6] == "model."
        }
        load_weights(self.model, latest or checkpoint.weights)
        if latest:
            self.saved_at = self.state["step"]
            if self.saved_at:
                self._restore_moments()

    def execute(self, n_skipped: int) -> Report:
        start = time.monotonic()
        stopped = "patience" if self._out_of_patience() else "max_steps"
        self.model.train()
        with torch.random.fork_rng(), interruptible() as interrupted:
            if self.state.get("start") and not self.history:  # training must not leave it worse than it was
                begun = self._evaluate()
                self.on_progress(Progress(0, self.options.max_steps, begun.validation_loss, 0.0, 0.0, begun))
            while self.state["step"] < self.options.max_steps and not self._out_of_patience():
                evaluation = self._step()
                if evaluation and self._out_of_patience():
                    stopped = "patience"
                if interrupted.is_set():
                    self._save()
                    raise KeyboardInterrupt(f"{self._what_is_kept()}; go on from there with --resume")
            if self.saved_at != self.state["step"] or not self.history:
                self._evaluate()
            return self._report(stopped, n_skipped, time.monotonic() - start)

    def _step(self) -> Evaluation | None:
        """One update of the weights, and an evaluation if one is due."""
        start, step = time.monotonic(), self.state["step"] + 1
        options, pad = self.options, self.model.config.pad_token_id
        batch = collate([self.examples[i] for i in self._next_batch()], pad, self.model.config.bos_token_id)
        n_tokens = int((batch.labels != pad).sum())
        batch = batch.to(self.device)
        torch.manual_seed((options.seed << 32) + step)  # for dropout
        logits = self.model(batch.input_ids, batch.source_mask, batch.decoder_input_ids)
        loss = loss_sum(logits, batch.labels, pad, options.label_smoothing) / n_tokens
        self._check_finite(float(loss.detach()), "loss", step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_norm)
        self._check_finite(float(norm), "gradient's norm", step)
        self.optimizer.param_groups[0]["lr"] = options.rate_at(step)
        self.optimizer.step()
        state = self.state
        state["step"], state["batch"] = step, state["batch"] + 1
        state["losses"] = state["losses"] + float(loss.detach())
        state["n_losses"] += 1
        speed = n_tokens / max(1e-9, time.monotonic() - start)
        evaluation = self._evaluate() if step % options.evaluate_every == 0 or step == options.max_steps else None
        self.on_progress(
            Progress(step, options.max_steps, float(loss.detach()), options.rate_at(step), speed, evaluation)
        )
        return evaluation

    def _next_batch(self) -> list[int]:
        """The next batch; after an epoch's last one, the first of the next epoch."""
        state = self.state
        while True:
            if self.epoch != state["epoch"]:
                self.epoch = state["epoch"]
                self.batches = make_batches(self.examples, self.options.batch_tokens, self.options.seed, self.epoch)
            if state["batch"] < len(self.batches):
                return self.batches[state["batch"]]
            state["epoch"], state["batch"] = state["epoch"] + 1, 0

    def _evaluate(self) -> Evaluation:
        """Evaluate on the validation pairs, keep the weights if they are the best so far, save the checkpoint."""
        loss = mean_loss(self.model, self.held_out, self.device)
        self._check_finite(loss, "validation loss", self.state["step"])
        scores = None
        if self.options.metric_pairs:
            scores = asdict(self._scores(self.options.metric_pairs))
        training_loss = self.state["losses"] / max(1, self.state["n_losses"])
        self.state["losses"], self.state["n_losses"] = 0.0, 0
        evaluation = Evaluation(self.state["step"], loss, training_loss, scores)
        if not self.history or loss < min(line.validation_loss for line in self.history):
            self.checkpoint.weights = weights_of(self.model)
            self.state["best_step"] = evaluation.step
        self.history.append(evaluation)
        self._save()
        return evaluation

    def _scores(self, n_pairs: int) -> Scores:
        pairs = self.validation[:n_pairs]
        return score_texts(translate(self.model, self.tokenizer, pairs, self.device), [pair.target for pair in pairs])

    def _save(self) -> None:
        latest = weights_of(self.model)
        for name, value in latest.items():
            if not bool(torch.isfinite(value).all()):
                raise TrainingError(
                    f"the weights {name} are not finite after step {self.state['step']}; {self._what_is_kept()}"
                )
        if not self.history:
            self.checkpoint.weights = latest  # interrupted before the first evaluation: there are no best weights yet
        self.checkpoint.tensors = {f"model.{name}": value for name, value in latest.items()} | self._moments()
        self.checkpoint.training = {**self.state, "history": [asdict(line) for line in self.history]}
        save_checkpoint(self.folder, self.checkpoint)
        self.saved_at = self.state["step"]

    def _moments(self) -> dict[str, Tensor]:
        tensors = {}
        for name, parameter in self.model.named_parameters():
            for moment in MOMENTS:
                if parameter in self.optimizer.state:
                    tensors[f"{moment}.{name}"] = self.optimizer.state[parameter][moment].detach().cpu().clone()
        return tensors

    def _restore_moments(self) -> None:
        tensors, step = self.checkpoint.tensors, float(self.state["step"])
        for name, parameter in self.model.named_parameters():
            missing = [
                m for m in MOMENTS if f"{m}.{name}" not in tensors or tensors[f"{m}.{name}"].shape != parameter.shape
            ]
            if missing:
                raise CheckpointError(
                    f"{self.folder}/training_state.safetensors has no {missing[0]} of {name} that fits, expected one "
                    "per weight; restore the file, or train anew"
                )
            moments = {m: tensors[f"{m}.{name}"].to(self.device).clone() for m in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(step), **moments}

    def _out_of_patience(self) -> bool:
        if not self.history or not self.options.patience:
            return False
        best = min(range(len(self.history)), key=lambda i: self.history[i].validation_loss)
        return len(self.history) - 1 - best >= self.options.patience

    def _check_finite(self, value: float, what: str, step: int) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is {value} at step {step}, expected a finite number; {self._what_is_kept()}; "
                "go on from there with --resume and a lower --learning-rate or --clip-norm"
            )

    def _what_is_kept(self) -> str:
        if self.saved_at is None:
            return f"nothing was saved in {self.folder} yet"
        return f"{self.folder} keeps the checkpoint of step {self.saved_at}"

    def _report(self, stopped: str, n_skipped: int, seconds: float) -> Report:
        load_weights(self.model, self.checkpoint.weights)
        best = min(self.history, key=lambda line: line.validation_loss)
        n_pairs = 5 * self.options.metric_pairs
        return Report(
            folder=str(self.folder),
            model=self.checkpoint.config.model,
            n_parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            vocab_size=self.checkpoint.config.vocab_size,
            n_training_pairs=len(self.examples),
            n_validation_pairs=len(self.held_out),
            n_skipped=n_skipped,
            steps=self.state["step"],
            stopped=stopped,
            best_step=self.state["best_step"],
            validation_loss=best.validation_loss,
            scores=self._scores(n_pairs) if n_pairs else None,
            seconds=seconds,
            history=copy.deepcopy(self.history),
        )


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that the current step is completed. A second Ctrl-C interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(signum: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
