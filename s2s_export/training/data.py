"""Pairs from a file, and batches of pairs of similar length.

The file is a TSV in UTF-8: each line has a source, a tab and its target. If some lines are wrong, they are reported
with their numbers, and nothing is used.

The batches of an epoch and their order depend on the pairs, the seed and the number of the epoch only. So a training
run that is resumed needs to know only how many batches of its epoch it has used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import TrainingError
from ..runtime.text import lines_of
from .corpus import Pair
from .tokenizer import Tokenizer

SHOWN = 5  # wrong lines that a message shows
POOL = 50  # batches within which pairs are sorted by length: more means less padding, fewer more randomness


class Example(NamedTuple):
    """Token ids; both end with the end token."""

    source: list[int]
    target: list[int]


@dataclass(frozen=True)
class Batch:
    """input_ids [B, S], source_mask [B, S] bool, decoder_input_ids [B, T], labels [B, T]; pad_token_id at padding.

    decoder_input_ids are the labels shifted to the right by one, with bos_token_id first.
    """

    input_ids: Tensor
    source_mask: Tensor
    decoder_input_ids: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """The pairs of a TSV file. Raises TrainingError, with line numbers, unless all of it can be used."""
    path = Path(path)
    try:
        lines = lines_of(path)
    except OSError as error:
        raise TrainingError(f"can't read {path}: {error.strerror}; give a file of source TAB target lines") from error
    pairs, problems = [], []
    for number, line in enumerate(lines, start=1):
        pair, problem = _parse(line)
        pairs.append(pair)
        if problem:
            problems.append(f"line {number} {problem}")
    if problems:
        more = f"; and {len(problems) - SHOWN} more lines" if len(problems) > SHOWN else ""
        raise TrainingError(
            f"{path}: {'; '.join(problems[:SHOWN])}{more}; expected source TAB target in UTF-8, neither of them empty; "
            "correct or remove these lines"
        )
    if not pairs:
        raise TrainingError(f"{path} is empty, expected lines of source TAB target; give a file with pairs")
    return pairs


def _parse(line: bytes) -> tuple[Pair, str]:
    """A pair, and a description of what is wrong with it, or an empty text."""
    try:
        columns = line.decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        return Pair("", ""), f"is not UTF-8 (byte {error.start + 1} of it)"
    columns = [column.strip() for column in columns]
    if columns == [""]:
        return Pair("", ""), "is empty"
    if len(columns) != 2:
        return Pair("", ""), f"has {len(columns)} column{'s' * (len(columns) > 1)}"
    if not columns[0] or not columns[1]:
        return Pair("", ""), f"has an empty {'target' if columns[0] else 'source'}"
    return Pair(*columns), ""


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: Tokenizer, max_source_length: int, max_target_length: int
) -> tuple[list[Example], list[Pair]]:
    """Token ids of the pairs that fit, and these pairs. A target's length includes its start token."""
    examples, fitting = [], []
    for pair in pairs:
        example = Example(tokenizer.encode(pair.source), tokenizer.encode(pair.target))
        if len(example.source) <= max_source_length and len(example.target) < max_target_length:
            examples.append(example)
            fitting.append(pair)
    return examples, fitting


def make_batches(examples: Sequence[Example], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of `examples` in batches of up to `batch_tokens` tokens, source and target together, including padding.

    All pairs are shuffled, sorted by length within pools of about POOL batches, and cut into batches, which are
    shuffled.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(examples))
    total = sum(len(example.source) + len(example.target) for example in examples)
    pool = max(1, POOL * batch_tokens * len(examples) // max(1, total))  # number of pairs in POOL batches
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        chunk = sorted(
            order[start : start + pool].tolist(), key=lambda i: (len(examples[i].source), len(examples[i].target))
        )
        batches += cut_batches(examples, chunk, batch_tokens)
    return [batches[i] for i in rng.permutation(len(batches))]


def cut_batches(examples: Sequence[Example], order: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Cut `order` into runs whose padded size is at most `batch_tokens`; a larger pair is a batch by itself."""
    batches: list[list[int]] = []
    batch: list[int] = []
    source = target = 0  # the longest of the batch
    for index in order:
        longer = max(source, len(examples[index].source)), max(target, len(examples[index].target))
        if batch and (len(batch) + 1) * sum(longer) > batch_tokens:
            batches.append(batch)
            batch, longer = [], (len(examples[index].source), len(examples[index].target))
        batch.append(index)
        source, target = longer
    return [*batches, batch] if batch else batches


def collate(examples: Sequence[Example], pad: int, bos: int) -> Batch:
    """One batch of the given examples, padded at the end."""
    labels = _pad([example.target for example in examples], pad)
    shifted = _pad([[bos, *example.target[:-1]] for example in examples], pad)
    input_ids = _pad([example.source for example in examples], pad)
    lengths = torch.tensor([len(example.source) for example in examples])
    return Batch(input_ids, torch.arange(input_ids.shape[1]) < lengths[:, None], shifted, labels)


def check_size(examples: Sequence[Example], batch_tokens: int) -> None:
    """Raises TrainingError when the examples do not fill one batch."""
    total = sum(len(example.source) + len(example.target) for example in examples)
    if total < batch_tokens:
        raise TrainingError(
            f"found {len(examples)} training pairs of {total} tokens together, expected at least one batch of "
            f"{batch_tokens}; give more pairs, or lower --batch-tokens"
        )


def _pad(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows], dtype=torch.int64)
