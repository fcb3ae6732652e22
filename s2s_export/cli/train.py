"""`s2s train`: a reference model from pairs of texts, or from the built-in corpus."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import click

from ..errors import CheckpointError, InvalidOption, MissingExtra, TrainingError
from ..reference import MODELS, ReferenceConfig
from ..training.options import DEFAULT_VOCAB_SIZE, TrainingOptions
from ._common import output_options, print_json, tell
from ._help import MAKE, Command
from ._options import Name

N_PAIRS = 20000  # of the built-in corpus
HELD_OUT = 0.05  # of the pairs, where no validation data is given
PACKAGES = ("torch", "safetensors", "sacrebleu", "transformers", "num2words", "babel")

SIZES = {field.name: field for field in dataclasses.fields(ReferenceConfig)}
OPTIONS = {field.name: field.default for field in dataclasses.fields(TrainingOptions)}


def option(name: str, kind: Any, text: str) -> Any:
    """A flag for a size or a training option. It is None if left out, so that a resumed run keeps its first value."""
    default = OPTIONS.get(name, SIZES[name].default if name in SIZES else None)
    shown = f" [default: {default}]" if default is not None else ""
    return click.option("--" + name.replace("_", "-"), name, type=kind, default=None, help=text + shown)


@click.command("train", cls=Command, section=MAKE, short_help="Train a reference model on your own pairs of texts.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--model", type=Name(MODELS), help="The kind of model; not needed with --from and --resume.")
@click.option("--data", type=click.Path(path_type=Path), help="Pairs in UTF-8; each line is source, tab, target. "
              "[default: generated English numbers, dates, times and amounts]")  # fmt: skip
@click.option("--validation-data", type=click.Path(path_type=Path), help="Pairs to validate on. "
              f"[default: {HELD_OUT:.0%} of the pairs, which are then not trained on]")  # fmt: skip
@click.option("--languages", help="Target languages of the built-in corpus. [default: de,fr]")
@click.option("--n-pairs", type=int, help=f"Size of the built-in corpus. [default: {N_PAIRS}]")
@click.option(
    "--from", "start", metavar="CHECKPOINT", type=click.Path(path_type=Path),
    help="Begin with the weights, sizes and vocabulary of this checkpoint of `s2s train`, and train them further.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Continue the interrupted run in CHECKPOINT.")
@option("max_steps", int, "Updates of the weights.")
@option("seed", int, "Seed of initial weights, batches and dropout.")
@option("batch_tokens", int, "Tokens of a batch: source and target, padding included.")
@option("learning_rate", float, "The highest learning rate; after the warm-up it falls as 1 / sqrt(step).")
@option("warmup_steps", int, "Steps in which the learning rate rises to the highest.")
@option("label_smoothing", float, "Share of each target's probability that is spread over the vocabulary.")
@option("clip_norm", float, "The gradient is scaled down to at most this norm.")
@option("evaluate_every", int, "Steps between evaluations; each saves the checkpoint.")
@option("patience", int, "Stop after this many evaluations without a better validation loss; 0: never.")
@option("metric_pairs", int, "Validation pairs to translate at each evaluation; 0: loss only.")
@option("device", str, "Where to train: auto, cpu, cuda or cuda:N.")
@click.option("--vocab-size", type=int, help="Most subwords of the vocabulary. "
              f"[default: {DEFAULT_VOCAB_SIZE}, fewer for small data]")  # fmt: skip
@option("d_model", int, "Width of embeddings.")
@option("hidden_size", int, "Units of a recurrent layer. [default: d_model]")
@option("encoder_layers", int, "Layers of the encoder.")
@option("decoder_layers", int, "Layers of the decoder.")
@option("dropout", float, "Dropout probability.")
@option("max_source_length", int, "Most tokens of a source; longer pairs are left out.")
@option("max_target_length", int, "Most tokens of a target; longer pairs are left out.")
@click.option(
    "--tie-embeddings/--no-tie-embeddings",
    default=None,
    help="Use one matrix for both embeddings and the output projection.",
)
@click.option(
    "--reverse-source/--keep-source-order",
    default=None,
    help="lstm: the direction in which the source is read. [default: reverse]",
)
@option("cell", str, "attention: gru or lstm. [default: gru]")
@option("score", str, "attention: additive, dot or general. [default: additive]")
@option("heads", int, "transformer: attention heads. [default: 4]")
@option("ff_size", int, "transformer: width of the feed-forward layers. [default: 4 d_model]")
@option("norm", str, "transformer: pre or post. [default: pre]")
@option("positions", str, "transformer: sinusoidal or learned. [default: sinusoidal]")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads. A run with the same number gives the same bits."
)
@output_options
def command(
    checkpoint: Path,
    model: str | None,
    data: Path | None,
    validation_data: Path | None,
    languages: str | None,
    n_pairs: int | None,
    start: Path | None,
    resume: bool,
    vocab_size: int | None,
    threads: int | None,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a reference model, and write it to the folder CHECKPOINT, which `s2s export` takes.

    \b
    s2s train --model transformer --data pairs.tsv checkpoint
    s2s export checkpoint bundle

    The weights with the best validation loss are kept. Ctrl-C saves the run, and --resume continues it exactly there:
    with the same data, and with other values of --max-steps, --evaluate-every, --patience, --metric-pairs, --device,
    --learning-rate and --clip-norm if you like. docs/training.md goes from your own data to a bundle.
    """
    if model is None and start is None and not resume:
        raise InvalidOption(f"found no --model; expected one of {', '.join(MODELS)}, or --from or --resume")
    if start is not None and resume:
        raise InvalidOption("--resume goes on with CHECKPOINT's own run, but --from is given too; expected one of them")
    if data is not None and (languages is not None or n_pairs is not None):
        raise InvalidOption(
            "--languages and --n-pairs choose the built-in corpus, but --data is given too; leave out one or the other"
        )
    for path in filter(None, (data, validation_data)):
        if not path.is_file():
            raise TrainingError(f"{path}: no such file; expected lines of source TAB target")
    if (folder := start or (checkpoint if resume else None)) is not None and not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected a checkpoint that `s2s train` wrote")
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "train", "s2s train")
    import torch

    from ..training.corpus import generate_pairs, split
    from ..training.data import read_pairs
    from ..training.progress import ProgressBar
    from ..training.trainer import train

    if threads is not None:
        torch.set_num_threads(threads)
    if data is not None:
        pairs = read_pairs(data)
    else:
        codes = [code.strip() for code in (languages or "de,fr").split(",") if code.strip()]
        pairs = generate_pairs(N_PAIRS if n_pairs is None else n_pairs, 1, languages=codes)
    if validation_data is not None:
        validation = read_pairs(validation_data)
    else:
        given_pairs = pairs
        pairs, validation = split(pairs, fraction=HELD_OUT)
        if not validation or not pairs:
            which = "too few to hold out" if not validation else "all of which fall into the held-out"
            raise TrainingError(
                f"found {len(given_pairs)} pairs, {which} {HELD_OUT:.0%} (chosen by a hash of the source); expected "
                "some to train on and some to validate on; give more, or --validation-data"
            )
    given = {name: value for name, value in given.items() if value is not None}
    progress = None if quiet else ProgressBar()
    try:
        report = train(
            checkpoint,
            model,
            pairs,
            validation,
            sizes={name: value for name, value in given.items() if name in SIZES},
            options={name: value for name, value in given.items() if name in OPTIONS},
            vocab_size=vocab_size,
            resume=resume,
            start=start,
            on_notice=lambda text: tell(f"note: {text}", quiet),
            **({} if progress is None else {"on_progress": progress}),
        )
    except KeyboardInterrupt as interruption:
        if interruption.args:
            click.echo(interruption.args[0], err=True)
        raise
    finally:
        if progress:
            progress.clear()
    if report.n_skipped:
        tell(f"{report.n_skipped} pairs are longer than the lengths allow, and were left out", quiet)
    if as_json:
        print_json(report.to_dict())
        return
    click.echo(
        f"{report.folder}: {report.model} model, {report.n_parameters:,} parameters, {report.vocab_size} subwords"
    )
    why = "the last step" if report.stopped == "max_steps" else "no better validation loss for a while"
    click.echo(f"stopped after {report.steps} steps ({why}), {report.seconds:.0f} s; best at step {report.best_step}")
    click.echo(f"validation loss {report.validation_loss:.4f} nats a token")
    if report.scores:
        scores = report.scores
        rates = f"exact {scores.exact_match:.1%}, BLEU {scores.bleu:.1f}, chrF {scores.chrf:.1f}"
        click.echo(f"{scores.n} validation pairs: {rates}")
