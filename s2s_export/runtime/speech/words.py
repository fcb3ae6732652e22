"""When each word was spoken: cross-attention, aligned by dynamic time warping.

Letters: A alignment heads, T tokens, S positions of 20 ms. The tokens' times are those of `generate()` of transformers
with `return_token_timestamps`, the words those of its pipeline.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..decoding.state import Floats
from .segments import Word
from .tokens import SECONDS_PER_TIMESTAMP

REPLACEMENT = "\ufffd"
JOINED_TO_NEXT = "\"'“¿([{-"
JOINED_TO_LAST = "\"'.。,，!！?？:：”)]}、"
WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})  # languages in which each character is a word

Decode = Callable[[Sequence[int]], str]


def token_times(attention: Floats, n_positions: int, filter_width: int) -> NDArray[np.float64]:
    """attention [A, T, S] -> seconds [T] at which each token ends, from the beginning of the window.

    n_positions: those with sound.
    """
    weights = attention[..., :n_positions]
    if not weights.shape[1] or not weights.shape[2]:
        return np.zeros(weights.shape[1])
    spread = weights.std(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.nan_to_num((weights - weights.mean(axis=1, keepdims=True)) / spread)
    weights = _median(weights, filter_width)
    text, time = warp(-weights.mean(axis=0))
    jumps = np.concatenate([[True], np.diff(text) > 0])
    found: NDArray[np.float64] = time[jumps] * SECONDS_PER_TIMESTAMP
    return found


def _median(values: Floats, width: int) -> Floats:
    """The median of `width` neighbours along the last axis, reflected at the ends."""
    side = width // 2
    if values.shape[-1] <= side:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(side, side)], mode="reflect")
    found: Floats = np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1), axis=-1)
    return found.astype(np.float32)


def warp(matrix: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cheapest path through a matrix [T, S] from its first to its last corner: rows and columns along it.

    By anti-diagonals, on which no cell depends on another; ties go left, as in transformers.
    """
    n, m = matrix.shape
    cost = np.full((n + 1, m + 1), np.inf, dtype=np.float32)
    trace = np.full((n + 1, m + 1), 2, dtype=np.int8)
    cost[0, 0] = 0
    values = matrix.astype(np.float64)
    for total in range(2, n + m + 1):
        i = np.arange(max(1, total - m), min(n, total - 1) + 1)
        j = total - i
        corner, up, left = cost[i - 1, j - 1], cost[i - 1, j], cost[i, j - 1]
        is_corner = (corner < up) & (corner < left)
        is_up = ~is_corner & (up < corner) & (up < left)
        best = np.where(is_corner, corner, np.where(is_up, up, left))
        cost[i, j] = values[i - 1, j - 1] + best
        trace[i, j] = np.where(is_corner, 0, np.where(is_up, 1, 2))
    trace[0, :], trace[:, 0] = 2, 1
    rows, columns = [], []
    i_at, j_at = n, m
    while i_at > 0 or j_at > 0:
        rows.append(i_at - 1)
        columns.append(j_at - 1)
        step = trace[i_at, j_at]
        i_at -= step != 2
        j_at -= step != 1
    return np.array(rows[::-1]), np.array(columns[::-1])


@dataclass
class _Part:
    """Some tokens that are one word, with the time at which they begin and end, and their log-probabilities."""

    text: str
    start: float
    end: float
    scores: list[float]


def words(
    tokens: Sequence[int],
    times: Sequence[float],
    scores: Sequence[float],
    decode: Decode,
    timestamp_begin: int,
    end_of_text: int,
    language: str | None = None,
    start: float = 0.0,
) -> list[Word]:
    """The words of one window's or segment's tokens.

    times: when each token ends; a token begins where the one before it ended. scores: log-probability of each token.
    decode: token ids to text. start: where the first token begins.
    """
    parts: list[_Part] = []
    last = start
    waiting: list[int] = []
    begun, of_waiting = last, list[float]()
    for token, end, score in zip(tokens, times, scores, strict=True):
        if token >= timestamp_begin or token >= end_of_text:
            last = end
            continue
        if not waiting:
            begun = last
        waiting.append(token)
        of_waiting.append(score)
        last = end
        text = decode(waiting)
        if REPLACEMENT in text and len(waiting) < 4:  # the bytes of a character are not all there
            continue
        parts.append(_Part(text, begun, end, of_waiting))
        waiting, of_waiting = [], []
    if waiting:
        parts.append(_Part(decode(waiting), begun, last, of_waiting))
    if language not in WITHOUT_SPACES:
        parts = _by_spaces(parts)
    return [
        Word(part.text, round(part.start, 2), round(part.end, 2), float(np.exp(np.mean(part.scores))))
        for part in _with_punctuation(parts)
    ]


def _by_spaces(parts: Sequence[_Part]) -> list[_Part]:
    """A word begins with a space, or is punctuation standing alone."""
    found: list[_Part] = []
    for part in parts:
        begins = part.text.startswith(" ") or part.text.strip() in string.punctuation
        if begins or not found:
            found.append(part)
        else:
            found[-1] = _Part(found[-1].text + part.text, found[-1].start, part.end, found[-1].scores + part.scores)
    return found


def _with_punctuation(parts: Sequence[_Part]) -> list[_Part]:
    """Punctuation joined to the word that it belongs to."""
    found: list[_Part] = []
    waiting: _Part | None = None
    for part in parts:
        if waiting is not None:
            part = _Part(waiting.text + part.text, waiting.start, part.end, waiting.scores + part.scores)
            waiting = None
        stripped = part.text.strip()
        if part.text.startswith(" ") and stripped and all(c in JOINED_TO_NEXT for c in stripped):
            waiting = part
        elif found and stripped and not part.text.startswith(" ") and all(c in JOINED_TO_LAST for c in stripped):
            found[-1] = _Part(found[-1].text + part.text, found[-1].start, part.end, found[-1].scores)
        else:
            found.append(part)
    if waiting is not None:
        found.append(waiting)
    return found
