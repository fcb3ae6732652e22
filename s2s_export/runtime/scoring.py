"""Scores pairs of sources and targets with a session: `Session.score` and `s2s score`.

    for score in session.score(["a text"], ["ein Text"]): print(score.log_prob, score.mean)

A target that is text is scored with the end token, which is part of how likely it is; one that is token ids is scored
as it is, after the decoder prompt if it begins with that (as `Hypothesis.token_ids` does). A `forced_bos_token_id`,
such as the language token of mBART and NLLB, belongs to the prompt: the model is not asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..bundle import Bundle
from ..errors import InputError, InvalidOption
from . import scheduling
from .decoding import DecodeState, GenerationOptions
from .decoding.scoring import Score, score_targets
from .sources import Source

MOST_TARGETS = 16  # of one source that are scored side by side, as its beams
Begin = Callable[[Sequence[Source], int], DecodeState]  # a batch's sources, and the beams of each


@dataclass(frozen=True)
class _Group:
    """Targets of one source that share a row of the encoder. places: their indices among all pairs."""

    source: Source
    places: tuple[int, ...]


def prompt_of(options: GenerationOptions) -> tuple[int, ...]:
    """What the decoder is fed before the first token that is scored."""
    forced = options.forced_bos_token_id
    return options.prompt if forced is None or len(options.prompt) != 1 else (*options.prompt, forced)


def check_target(ids: Sequence[int], options: GenerationOptions, bundle: Bundle, n_source: int = 0) -> list[int]:
    """The tokens to score: `ids` without the decoder prompt. Raises InputError for what the decoder can't be fed.

    n_source: tokens of the source where that is the prompt (of a decoder alone), which `ids` then don't begin with.
    """
    prompt, found = options.prompt, list(ids)
    if n_source:
        prompt = (0,) * n_source
    else:
        if tuple(found[: len(prompt)]) == prompt:
            found = found[len(prompt) :]
        prompt = prompt_of(options)
        if len(prompt) > len(options.prompt) and found[:1] == [prompt[-1]]:
            found = found[1:]
    size = bundle.vocabulary_size
    wrong = next((i for i in found if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < size), None)
    if wrong is not None:
        raise InputError(f"the target has the token id {wrong!r}; expected ids from 0 to {size - 1}")
    if not found:
        raise InputError("the target is empty; expected at least one token")
    limit, fed = bundle.max_target_length, len(prompt) + len(found) - 1
    if limit is not None and fed > limit:
        raise InputError(
            f"the target has {len(found)} tokens, but the model allows {limit - len(prompt) + 1}; shorten it, or "
            "export with a larger --max-target-length"
        )
    return found


def score_pairs(
    begin: Begin,
    length_of: Callable[[Source], int],
    sources: Sequence[Source],
    targets: Sequence[Sequence[int]],
    prompt: Sequence[int] | None,
    *,
    batch_size: int,
    workers: int = 1,
) -> Iterator[tuple[int, Score]]:
    """The index and score of each pair, as batches finish, for checked sources and targets.

    prompt: None where each source is its own. batch_size: pairs that are scored together. Pairs of equal sources share
    the encoder's work.
    """
    if batch_size < 1:
        raise InvalidOption(f"batch_size is {batch_size}; expected at least 1")
    groups = _groups(sources, targets, min(batch_size, MOST_TARGETS))
    for n_rows in sorted({len(group.places) for group in groups}):
        alike = [group for group in groups if len(group.places) == n_rows]
        lengths = [length_of(group.source) + max(len(targets[i]) for i in group.places) for group in alike]
        batches = scheduling.plan_batches(lengths, max(1, batch_size // n_rows), workers)

        def score(batch: list[int], alike: list[_Group] = alike, n_rows: int = n_rows) -> list[list[Score]]:
            of_batch = [alike[i].source for i in batch]
            state = begin(of_batch, n_rows)
            # A state that was begun with prompts holds them but for the last token.
            prompts = [source[-1:] if prompt is None else prompt for source in of_batch]
            return score_targets(state, prompts, [[targets[place] for place in alike[i].places] for i in batch])

        for batch, found in scheduling.run(batches, score, workers):
            for i, scores in zip(batch, found, strict=True):
                yield from zip(alike[i].places, scores, strict=True)


def _groups(sources: Sequence[Source], targets: Sequence[Sequence[int]], most: int) -> list[_Group]:
    """Pairs with equal sources together, at most `most` in a group, those of like length beside each other."""
    by_source: dict[object, list[int]] = {}
    for i, source in enumerate(sources):
        key = tuple(source) if isinstance(source, (list, tuple)) else i
        by_source.setdefault(key, []).append(i)
    found = []
    for places in by_source.values():
        ordered = sorted(places, key=lambda i: len(targets[i]))
        found += [
            _Group(sources[ordered[first]], tuple(ordered[first : first + most]))
            for first in range(0, len(ordered), most)
        ]
    return found
