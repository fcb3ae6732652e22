"""From the tables of a finished search to hypotheses. On the device nothing but records was kept; here they are walked.

Letters: B sources, K rows, T steps, S source length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decoding.hypothesis import Hypothesis
from ..decoding.options import GenerationOptions

Tables = Mapping[str, NDArray[Any]]
BEAM_TABLES = (
    *("tokens", "parents", "token_scores", "finished_scores"),
    *("pool_scores", "pool_steps", "pool_parents", "pool_tokens"),
)
ROW_TABLES = ("tokens", "token_scores", "n_generated")


def beams(tables: Tables, options: GenerationOptions, source_lengths: Sequence[int]) -> list[list[Hypothesis]]:
    """The outputs of every source, best first: the pool's records, each walked back through the parents."""
    return [
        [_of_pool(tables, options, source, length, place) for place in range(options.num_return_sequences)]
        for source, length in enumerate(source_lengths)
    ]


def _of_pool(tables: Tables, options: GenerationOptions, source: int, length: int, place: int) -> Hypothesis:
    prompt, score = list(options.prompt), float(tables["pool_scores"][source, place])
    steps = tables["pool_steps"][source]
    step = int(steps[place])
    if step < 0:  # an empty place: generate() returns the prompt alone
        return Hypothesis(prompt, score, [])
    parent = int(tables["pool_parents"][source, place])
    tokens, scores, looked_at = walk(tables, source, step, parent)
    # Outputs that finished at one step stay in order in the pool, and only the last of them ever leave it.
    earlier = int((steps[:place] == step).sum())
    tokens.append(int(tables["pool_tokens"][source, place]))
    scores.append(float(tables["finished_scores"][step, source, earlier]))
    alignment = _alignment(tables, source, length, [*looked_at, parent])
    return Hypothesis([*prompt, *tokens], score, scores, alignment)


def walk(tables: Tables, source: int, n: int, beam: int) -> tuple[list[int], list[float], list[int]]:
    """The first n generated tokens of a beam's text, their log-probabilities, and the beams they were predicted by."""
    tokens, scores, looked_at = [], [], []
    for step in range(n - 1, -1, -1):
        tokens.append(int(tables["tokens"][step, source, beam]))
        scores.append(float(tables["token_scores"][step, source, beam]))
        beam = int(tables["parents"][step, source, beam])
        looked_at.append(beam)
    return tokens[::-1], scores[::-1], looked_at[::-1]


def _alignment(tables: Tables, source: int, length: int, looked_at: list[int]) -> NDArray[Any] | None:
    """[T, S] of the beams that predicted each token, from `alignment` [T, B, K, padded S]; None where none was kept."""
    if "alignment" not in tables or not looked_at:
        return None
    found: NDArray[Any] = tables["alignment"][np.arange(len(looked_at)), source, looked_at, : length or None]
    return found


def rows(tables: Tables, options: GenerationOptions, source_lengths: Sequence[int]) -> list[list[Hypothesis]]:
    """The outputs of greedy search and of independent samples, in the order of the rows."""
    n_rows = options.n_rows
    n_generated = tables["n_generated"].reshape(-1, n_rows)
    found = []
    for source, lengths in enumerate(n_generated):
        outputs = []
        for row in range(options.num_return_sequences):
            n = int(lengths[row])
            tokens = tables["tokens"][:n, source, row].tolist()
            scores = tables["token_scores"][:n, source, row].tolist()
            score = sum(scores) / float(n) ** options.length_penalty
            alignment = _alignment(tables, source, source_lengths[source], [row] * n)
            outputs.append(Hypothesis([*options.prompt, *tokens], score, scores, alignment))
        found.append(outputs)
    return found
