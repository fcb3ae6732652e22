"""Trains a reference model: data, tokenizer, then the loop in run.py, in a new folder or resuming an earlier run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, InvalidOption, TrainingError
from ..reference import MODELS, ReferenceConfig, build
from ..reference.checkpoint import Checkpoint, load_checkpoint, weights_of
from .corpus import Pair
from .data import check_size, encode_pairs
from .options import DEFAULT_VOCAB_SIZE, MAY_CHANGE, TrainingOptions
from .run import Evaluation, Progress, Report, Run
from .tokenizer import UNK, Tokenizer, fitting_size, train_tokenizer

LOOKED_AT = 5000  # pairs of the data in which unknown tokens are counted
MOST_UNKNOWN = 0.001  # share of unknown tokens that nobody is told of


def train(
    folder: str | Path,
    model: str | None,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    *,
    sizes: Mapping[str, Any] | None = None,
    vocab_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    start: str | Path | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_notice: Callable[[str], None] = lambda text: None,
) -> Report:
    """Train a reference model, and save its checkpoint in `folder`.

    model: None is that of `start`, or of the run that is resumed. sizes: fields of ReferenceConfig. vocab_size: the
    most pieces that the tokenizer may have; None is what the data can teach. start: a checkpoint whose weights, sizes
    and vocabulary the run begins with. on_notice: called with what a user should know. options: fields of
    TrainingOptions. Options that are not given have their defaults. resume: continue the run that wrote `folder`, with
    the same pairs. Options that are not given keep their values; options that are given must be the same as before,
    except for options.MAY_CHANGE.
    Raises TrainingError (data that can't be used, a loss that is not finite), InvalidOption, CheckpointError, and,
    after Ctrl-C, KeyboardInterrupt once the checkpoint is saved.
    """
    folder, sizes, given = Path(folder), dict(sizes or {}), dict(options or {})
    digest = digest_of(pairs, validation)
    if resume:
        checkpoint = load_checkpoint(folder, expected=model, resume=True)
        chosen = _continued(folder, checkpoint, sizes, vocab_size, given, digest)
        device = find_device(chosen.device)
    else:
        chosen, device = TrainingOptions(**given), find_device(str(given.get("device", TrainingOptions.device)))
        if start is None:
            if model is None:
                raise InvalidOption(f"no model is named; expected one of {', '.join(MODELS)}; give --model")
            ReferenceConfig(model=model, vocab_size=vocab_size or DEFAULT_VOCAB_SIZE, **sizes)  # reports contradictions
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TrainingError(
                f"{folder} exists, expected a new folder; go on with its training by --resume, or give another one"
            )
        if start is not None:
            checkpoint = _started(start, model, sizes, vocab_size, chosen, digest)
        else:
            assert model is not None
            size = vocab_size or _fitting_size(pairs, on_notice)
            checkpoint = _new_checkpoint(model, pairs, sizes, size, chosen, digest)
    tokenizer = Tokenizer(checkpoint.tokenizer or b"")
    if start is not None and not resume:
        _warn_of_unknown(pairs, tokenizer, start, on_notice)
    source_length, target_length = checkpoint.config.max_source_length, checkpoint.config.max_target_length
    examples, fitting = encode_pairs(pairs, tokenizer, source_length, target_length)
    held_out, references = encode_pairs(validation, tokenizer, source_length, target_length)
    check_size(examples, chosen.batch_tokens)
    if not held_out:
        raise TrainingError(
            f"found {len(validation)} validation pairs and none of at most {source_length} source and "
            f"{target_length - 1} target tokens, expected at least one; give --validation-data or larger lengths"
        )
    run = Run(folder, checkpoint, examples, held_out, references, tokenizer, chosen, device, on_progress)
    return run.execute(n_skipped=len(pairs) - len(fitting) + len(validation) - len(references))


def find_device(name: str) -> torch.device:
    """The device called `name`. Raises InvalidOption if torch does not know the name or there is no such GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidOption(
            f"device '{name}' can't be used ({reason}), expected auto, cpu, or a GPU that torch sees; "
            "give --device auto"
        ) from error
    return device


def digest_of(pairs: Sequence[Pair], validation: Sequence[Pair]) -> str:
    """A hash of all texts in order, by which a resumed run recognises its data."""
    text = json.dumps([list(map(list, pairs)), list(map(list, validation))], ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _new_checkpoint(
    model: str, pairs: Sequence[Pair], sizes: dict[str, Any], vocab_size: int, options: TrainingOptions, digest: str
) -> Checkpoint:
    if not pairs:
        raise TrainingError("found no training pairs, expected at least one batch of them; give more data")
    tokenizer = train_tokenizer([text for pair in pairs for text in pair], vocab_size)
    config = ReferenceConfig(model=model, vocab_size=Tokenizer(tokenizer).size, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        weights = weights_of(build(config))
    asked = {"vocab_size": vocab_size, "options": options.to_dict(), "data": digest}
    return Checkpoint(config, weights, tokenizer, training={**asked, **_counters()})


def _fitting_size(pairs: Sequence[Pair], on_notice: Callable[[str], None]) -> int:
    texts = [text for pair in pairs for text in pair]
    size = fitting_size(texts, DEFAULT_VOCAB_SIZE)
    if size < DEFAULT_VOCAB_SIZE:
        on_notice(
            f"the data is small ({sum(map(len, texts)):,} characters), so the vocabulary has at most {size} subwords "
            f"instead of {DEFAULT_VOCAB_SIZE}: rarer ones would not be learned; --vocab-size chooses another size"
        )
    return size


def _started(
    start: str | Path,
    model: str | None,
    sizes: dict[str, Any],
    vocab_size: int | None,
    options: TrainingOptions,
    digest: str,
) -> Checkpoint:
    """The checkpoint `start` before its first step on other data. Raises InvalidOption for options that it settles."""
    found = load_checkpoint(start, expected=model)
    asked = {**sizes, **({} if vocab_size is None else {"vocab_size": vocab_size})}
    begun = found.config.to_dict()
    if changed := [f"{name} is {value} and is {begun.get(name)} there" for name, value in asked.items()
                   if begun.get(name) != value]:  # fmt: skip
        raise InvalidOption(
            f"the weights of {start} can't be trained further with other sizes: {'; '.join(changed)}; expected its "
            "own; leave them out, or train anew without --from"
        )
    if not found.tokenizer:
        raise CheckpointError(f"{start}: has no tokenizer.model, expected what `s2s train` writes; restore the file")
    asked = {"vocab_size": found.config.vocab_size, "options": options.to_dict(), "data": digest}
    training = {**asked, **_counters(), "start": Path(start).name}
    return Checkpoint(found.config, found.weights, found.tokenizer, found.generation, training=training)


def _warn_of_unknown(
    pairs: Sequence[Pair], tokenizer: Tokenizer, start: str | Path, on_notice: Callable[[str], None]
) -> None:
    ids = [i for pair in pairs[:LOOKED_AT] for text in pair for i in tokenizer.encode(text)]
    share = ids.count(UNK) / max(1, len(ids))
    if share > MOST_UNKNOWN:
        on_notice(
            f"{share:.1%} of the tokens of the data are unknown to the vocabulary of {start}, which is kept; they "
            "can't be learned: train anew without --from where they matter"
        )


def _counters() -> dict[str, Any]:
    return {"step": 0, "epoch": 0, "batch": 0, "losses": 0.0, "n_losses": 0, "best_step": 0, "history": []}


def _continued(
    folder: Path,
    checkpoint: Checkpoint,
    sizes: dict[str, Any],
    vocab_size: int | None,
    given: dict[str, Any],
    digest: str,
) -> TrainingOptions:
    """The options of a resumed run. Raises InvalidOption, which names every option that differs from before."""
    earlier = checkpoint.training
    try:
        begun = {**checkpoint.config.to_dict(), **earlier["options"], "vocab_size": earlier["vocab_size"]}
        options = TrainingOptions(**{**earlier["options"], **given})
        missing = {"step", "epoch", "batch", "losses", "n_losses", "best_step", "history"} - set(earlier)
        if missing:
            raise KeyError(min(missing))
        for line in earlier["history"]:
            Evaluation(**line)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}/training_state.json can't be used ({error}), expected what `s2s train` writes; "
            "restore it, or train anew"
        ) from error
    asked = {**sizes, **given, **({} if vocab_size is None else {"vocab_size": vocab_size})}
    changed = [
        f"{name} is {value} and was {begun.get(name)}"
        for name, value in asked.items()
        if name not in MAY_CHANGE and begun.get(name) != value
    ]
    if changed:
        raise InvalidOption(
            f"{folder} can't resume with other options: {'; '.join(changed)}; expected those it began with; "
            "leave them out, or train anew"
        )
    if digest != earlier.get("data"):
        raise TrainingError(
            f"{folder} was trained on other pairs, expected the same ones; give its data again, or train anew"
        )
    earlier["options"] = options.to_dict()
    return options
