"""The launches of the loop's kernels, beside those of launches.py. loop_kernels.cuh names the kernels."""

from __future__ import annotations

from ..common.nodes import Launch
from .launches import UPDATE_THREADS, check_update
from .structures import BeamStepParameters, DrawParameters, NormalizeParameters, RowStepParameters, RulesParameters

BLOCK_THREADS = 512
RACE_SLICE = 2048  # tokens: four a thread
MOST_RACE_LISTS = 128


def log_probs(element: str, given: NormalizeParameters) -> list[Launch]:
    """The log-probabilities of all tokens: two launches."""
    grid = (given.lists, given.rows, 1)
    return [Launch(f"{name}_{element}", grid, BLOCK_THREADS) for name in ("row_statistics", "write_scores")]


def rules(given: RulesParameters) -> Launch:
    return Launch("apply_decoding_rules", (given.n_sources * given.beams, 2 if given.choice else 1, 1), BLOCK_THREADS)


def draw_rows(given: DrawParameters) -> Launch:
    return Launch("draw_row_tokens", (given.n_sources * given.beams, 1, 1), BLOCK_THREADS)


def race_lists(beams: int, vocabulary: int) -> int:
    """Slices that the tokens of a source's beams are cut into, where continuations are drawn."""
    return max(1, min(-(-beams * vocabulary // RACE_SLICE), MOST_RACE_LISTS))


def draw_beams(given: DrawParameters) -> list[Launch]:
    """The draw of a source's continuations: one launch, or three where its tokens are cut into slices."""
    race = Launch("race_of_slices", (given.lists, given.n_sources, 1), BLOCK_THREADS)
    if given.lists == 1:
        return [race]
    counts = Launch("count_drawable_tokens", race.grid, BLOCK_THREADS)
    return [counts, race, Launch("merge_races", (given.n_sources, 1, 1), BLOCK_THREADS)]


def beam_step(given: BeamStepParameters) -> Launch:
    """What follows the candidates, in one launch: a block for each source."""
    check_update(given.update)
    return Launch("finish_beam_step", (given.update.sources, 1, 1), UPDATE_THREADS)


def row_step(given: RowStepParameters) -> Launch:
    """The same for independent rows: a warp merges the lists of each."""
    blocks = -(-given.rows.rows // (UPDATE_THREADS // 32)) if given.merges else 1
    return Launch("finish_row_step", (blocks, 1, 1), UPDATE_THREADS)
