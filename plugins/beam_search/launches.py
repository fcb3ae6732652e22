"""The launches of one step of beam search, for those who load the binary and queue kernels from Python.

Each function returns what `LoadedBinary.run` (s2s_export/runtime/cuda/binary.py) takes, in the order in which to queue
it. The arguments come from structures.py, with device addresses filled in; they do not change from step to step.
"""

from __future__ import annotations

from s2s_export.errors import BuildError

from ..common.nodes import ELEMENTS, MAX_BEAMS, Launch
from .structures import BeamStopParameters, BeamUpdateParameters, LogSoftmaxTopParameters

LIST_WARPS = 4
UPDATE_THREADS = 256
MOST_LISTS = 128
MOST_OFFERS = 2048
MOST_CHOSEN = 128


def top_lists(vocabulary: int) -> int:
    """Lists that a row of logits is cut into: the middle extent of the scratch arrays."""
    return max(1, min(-(-vocabulary // 512), MOST_LISTS))


def chosen(beams: int, n_end: int) -> int:
    """Candidates that a step looks at."""
    return max(2, 1 + n_end) * beams


def top_of_slices(element: str, given: LogSoftmaxTopParameters) -> Launch:
    """The best tokens of each slice of the vocabulary: lists, which a step's last launch merges."""
    if element not in ELEMENTS:
        raise BuildError(f"no log-softmax for '{element}'; expected one of {', '.join(ELEMENTS)}; cast the logits")
    if not 1 <= given.candidates <= given.vocabulary:
        raise BuildError(
            f"{given.candidates} candidates of {given.vocabulary} tokens; expected 1 to as many as there are tokens; "
            "ask for fewer"
        )
    return Launch(f"top_of_slices_{element}", (-(-given.lists // LIST_WARPS), given.rows, 1), LIST_WARPS * 32)


def log_softmax_top(element: str, given: LogSoftmaxTopParameters) -> list[Launch]:
    """Both stages by themselves."""
    return [top_of_slices(element, given), Launch("merge_top_lists", (given.rows, 1, 1), 32)]


def check_update(given: BeamUpdateParameters) -> None:
    """Raises BuildError for sizes that the update has no room for."""
    n_chosen, n_offers = chosen(given.beams, given.n_end), given.beams * given.candidates
    if not 1 <= given.beams <= MAX_BEAMS:
        raise BuildError(f"{given.beams} beams; the kernel takes 1 to {MAX_BEAMS}; search with fewer")
    if n_chosen > MOST_CHOSEN or not n_chosen <= n_offers <= MOST_OFFERS:
        raise BuildError(
            f"{given.candidates} candidates for each of {given.beams} beams and {given.n_end} end tokens; expected "
            f"{n_chosen} to {MOST_OFFERS} in all, and at most {MOST_CHOSEN} to choose from; "
            "change the number of candidates or beams"
        )


def beam_update(given: BeamUpdateParameters) -> Launch:
    """The update by itself."""
    check_update(given)
    return Launch("beam_update_step", (given.sources, 1, 1), UPDATE_THREADS)


def beam_stop(given: BeamStopParameters) -> Launch:
    return Launch("beam_stop_step", (1, 1, 1), 32)
