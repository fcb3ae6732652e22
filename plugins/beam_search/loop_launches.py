"""The launches of the loop's kernels, beside those of launches.py. loop_kernels.cuh names the kernels."""

from __future__ import annotations

from collections.abc import Iterable

from ..common.nodes import Launch
from .launches import UPDATE_THREADS, check_update
from .structures import BeamStepParameters, ChainParameters, DrawParameters, NormalizeParameters, RowStepParameters

BLOCK_THREADS = 512
FILTER_SLICE = 2048  # tokens at most: DigitShared in filters.cuh
FILTERS = ("top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
SPLIT = (*FILTERS, "renormalize")  # the effects that have launches of their own
DRAW_SLICE = 2048  # S2S_DRAW_SLICE of loop_parameters.h


def log_probs(element: str, given: NormalizeParameters) -> list[Launch]:
    """The log-probabilities of all tokens: two launches."""
    grid = (given.lists, given.rows, 1)
    return [Launch(f"{name}_{element}", grid, BLOCK_THREADS) for name in ("row_statistics", "write_scores")]


def filter_lists(vocabulary: int) -> int:
    """Slices that a row is cut into by filters."""
    return -(-vocabulary // FILTER_SLICE)


def rules(given: ChainParameters, chain: Iterable[tuple[str, int, int]]) -> list[tuple[Launch, ChainParameters]]:
    """The launches that apply the rules, each with its arguments. chain: (effect, first rule, end) in order, the effect
    one of SPLIT, or another for rules that one launch applies."""
    rows, texts = given.rules.n_sources * given.rules.beams, 2 if given.rules.choice else 1
    found = []
    for effect, first, end in chain:
        steps: list[tuple[str, int]] = [("apply_decoding_rules", 0)]
        grid = (rows, texts, 1)
        if effect in FILTERS:
            steps = [("filter_statistics", 0)] * (effect not in ("top_k", "top_h"))
            steps += [("filter_entropy", 0)] * (effect in ("typical_p", "eta_cutoff"))
            steps += [("filter_digit", digit) for digit in range(3)] + [("apply_filter", 0)]
            grid = (given.lists, rows, texts)
        elif effect == "renormalize":
            steps = [(kernel, 0) for kernel in ("slice_maxima", "slice_weights", "renormalize_slices")]
            grid = (given.lists, rows, texts)
        for kernel, digit in steps:
            own = ChainParameters.from_buffer_copy(given)
            own.first, own.end, own.digit = first, end, digit
            found.append((Launch(kernel, grid, BLOCK_THREADS), own))
    return found


def draw_lists(tokens: int) -> int:
    """Slices that the tokens which are drawn from are cut into."""
    return -(-tokens // DRAW_SLICE)


def draw_rows(given: DrawParameters) -> list[Launch]:
    """The draw of a token for each row: two launches."""
    grid = (given.lists, given.n_sources * given.beams, 1)
    return [Launch(kernel, grid, BLOCK_THREADS) for kernel in ("find_row_maxima", "draw_row_tokens")]


def draw_beams(given: DrawParameters) -> list[Launch]:
    """The draw of a source's continuations: one launch."""
    return [Launch("draw_beam_tokens", (given.lists, given.n_sources, 1), BLOCK_THREADS)]


def beam_step(given: BeamStepParameters) -> Launch:
    """What follows the candidates, in one launch: a block for each source."""
    check_update(given.update)
    return Launch("finish_beam_step", (given.update.sources, 1, 1), UPDATE_THREADS)


def row_step(given: RowStepParameters) -> Launch:
    """The same for independent rows: a warp merges the lists of each."""
    blocks = -(-given.rows.rows // (UPDATE_THREADS // 32)) if given.merges else 1
    return Launch("finish_row_step", (blocks, 1, 1), UPDATE_THREADS)
