"""The entry point: decodes the sources of a decode state with given options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .constrained import ConstrainedSearch
from .draws import Draws
from .groups import GroupSearch
from .hypothesis import Hypothesis
from .options import GenerationOptions
from .prompts import Prompts
from .rows import RowSearch
from .search import BeamSearch
from .state import DecodeState

Search = BeamSearch | RowSearch
# Makes another search than these for a batch, or none. It takes what they do, and `is_watched`: whether the caller does
# something after each token.
Make = Callable[..., Any]


def decode(
    state: DecodeState,
    sources: Sequence[Sequence[int]],
    options: GenerationOptions,
    *,
    alignments: bool | str = False,
    on_prefix: Callable[[int, list[int]], None] | None = None,
    source_numbers: Sequence[int] | None = None,
    leave_early: bool = True,
    source_lengths: Sequence[int] | None = None,
    wanted: Callable[[int], bool] | None = None,
    sparse_sums: bool = False,
    make: Make | None = None,
) -> list[list[Hypothesis]]:
    """The outputs of every source, best first; samples in the order of their rows.

    state: holds the sources with `options.n_rows` beams each, and can't be used again. sources: token ids without
    padding, which rules about the source read; empty if a source is not text.
    alignments: True for `Hypothesis.alignment`, "heads" for `alignment_heads` as well.
    on_prefix: called with a source's index and the tokens, prompt included, that have become final since the last call.
    source_numbers: the numbers on which random draws depend; the sources' indices if None.
    leave_early: whether closed sources leave the batch. This changes no output.
    source_lengths: S of each source, to which its alignment is cut; the number of its ids if None.
    wanted: asked before each step about the sources that are still in the batch, by their indices. One that is not
    wanted any more leaves, and its outputs are []. This changes no output of the others.
    sparse_sums: whether to renormalise by the tokens that rules changed, which is faster; then `Imprecise` may be
    raised, and the sources are to be decoded again without.
    make: what may make another search than this package's, such as `native_search`'s.
    """
    search = make_search(
        state,
        sources,
        options,
        alignments,
        on_prefix is not None,
        source_numbers,
        leave_early,
        source_lengths,
        sparse_sums=sparse_sums,
        make=make,
        is_watched=on_prefix is not None or wanted is not None,
    )
    n_told = [0] * len(sources)
    goes_on = True
    while goes_on and let_unwanted_leave(search, wanted):
        goes_on = search.advance()
        if on_prefix is not None:
            tell_prefixes(search, on_prefix, n_told)
    return search.results


def tell_prefixes(search: Search, on_prefix: Callable[[int, list[int]], None], n_told: list[int]) -> None:
    """Tell of each source what has become final since the last call. n_told [B]: how many ids were told; updated."""
    in_batch = {int(source): place for place, source in enumerate(search.steps.present)}
    for source, told in enumerate(n_told):
        if search.results[source]:
            sure = search.results[source][0].token_ids
        elif source in in_batch:
            sure = search.stable(in_batch[source])
        else:  # it left because nobody wants it
            continue
        if len(sure) > told:
            on_prefix(source, sure[told:])
            n_told[source] = len(sure)


def let_unwanted_leave(search: Search, wanted: Callable[[int], bool] | None) -> bool:
    """Whether any source is left."""
    if wanted is None:
        return True
    present = search.steps.present.tolist()
    staying = [place for place, source in enumerate(present) if search.results[source] or wanted(source)]
    if not any(not search.results[present[place]] for place in staying):
        return False
    if len(staying) < len(present):
        search.leave(np.array(staying, dtype=np.int64))
    return True


def decode_stream(
    state: DecodeState,
    source: Sequence[int],
    options: GenerationOptions,
    *,
    source_number: int = 0,
    sparse_sums: bool = False,
    make: Make | None = None,
) -> Iterator[list[int]]:
    """Token ids of one source's best output as they become final: together its `token_ids`, including the prompt.

    With one beam, a token is final at once. With several, tokens are final as far as all running beams and the best
    finished output agree. source: its ids, or `Prompts` of one. sparse_sums, make: as of `decode`.
    """
    sources = source if isinstance(source, Prompts) else [source]
    search = make_search(
        state, sources, options, False, True, [source_number], True, sparse_sums=sparse_sums, make=make
    )
    n_told = 0
    goes_on = True
    while goes_on:
        goes_on = search.advance()
        sure = search.results[0][0].token_ids if search.results[0] else search.stable(0)
        if len(sure) > n_told:
            yield sure[n_told:]
            n_told = len(sure)


def make_search(
    state: DecodeState,
    sources: Sequence[Sequence[int]],
    options: GenerationOptions,
    alignments: bool | str,
    keep_history: bool,
    source_numbers: Sequence[int] | None,
    leave_early: bool,
    source_lengths: Sequence[int] | None = None,
    *,
    sparse_sums: bool = False,
    make: Make | None = None,
    is_watched: bool = True,
) -> Search:
    if make is not None:
        made: Search | None = make(
            state,
            sources,
            options,
            is_watched=is_watched,
            alignments=alignments,
            keep_history=keep_history,
            leave_early=leave_early,
            source_lengths=source_lengths,
            sparse_sums=sparse_sums,
        )
        if made is not None:
            return made
    draws = Draws(options.seed, range(len(sources)) if source_numbers is None else source_numbers)
    return _kind(options)(
        state,
        sources,
        options,
        draws,
        alignments=alignments,
        keep_history=keep_history,
        leave_early=leave_early,
        source_lengths=source_lengths,
        source_numbers=source_numbers,
        sparse_sums=sparse_sums,
    )


def _kind(options: GenerationOptions) -> type[BeamSearch] | type[RowSearch]:
    if options.return_alternatives or (options.num_beam_groups or 1) > 1:
        return GroupSearch
    if options.force_words_ids or options.terms:
        return ConstrainedSearch
    return BeamSearch if options.num_beams > 1 else RowSearch
