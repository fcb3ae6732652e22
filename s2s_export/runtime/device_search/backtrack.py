"""From the tables of a finished search to hypotheses, by following each one's parents back from its last token.

The device keeps no texts: at each step it records the token that every beam took and the beam that it continued.

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
    """The outputs of every source, best first: the pool's records, each followed back through its parents."""
    return [
        [_of_pool(tables, options, source, length, rank) for rank in range(options.num_return_sequences)]
        for source, length in enumerate(source_lengths)
    ]


def _of_pool(tables: Tables, options: GenerationOptions, source: int, length: int, rank: int) -> Hypothesis:
    prompt, score = list(options.prompt), float(tables["pool_scores"][source, rank])
    steps = tables["pool_steps"][source]
    step = int(steps[rank])
    if step < 0:  # nothing finished there: generate() returns the prompt alone
        return Hypothesis(prompt, score, [])
    parent = int(tables["pool_parents"][source, rank])
    tokens, scores, predicted_by = backtrack(tables, source, step, parent)
    # Hypotheses that finished at the same step keep their order in the pool, and better ones only push out the last.
    earlier = int((steps[:rank] == step).sum())
    tokens.append(int(tables["pool_tokens"][source, rank]))
    scores.append(float(tables["finished_scores"][step, source, earlier]))
    found = Hypothesis([*prompt, *tokens], score, scores)
    _align(found, tables, source, length, [*predicted_by, parent])
    return found


def backtrack(tables: Tables, source: int, n: int, beam: int) -> tuple[list[int], list[float], list[int]]:
    """The first n generated tokens of a beam's text, their log-probabilities, and the beams they were predicted by."""
    tokens, scores, predicted_by = [], [], []
    for step in range(n - 1, -1, -1):
        tokens.append(int(tables["tokens"][step, source, beam]))
        scores.append(float(tables["token_scores"][step, source, beam]))
        beam = int(tables["parents"][step, source, beam])
        predicted_by.append(beam)
    return tokens[::-1], scores[::-1], predicted_by[::-1]


def _align(found: Hypothesis, tables: Tables, source: int, length: int, predicted_by: list[int]) -> None:
    """Sets the alignment from the beams that predicted each token, where the table `alignment` was kept: [T, B, K, S],
    or [T, B, K, L, H, S] of all heads, with the padded S. length: of the source, 0 for all of them."""
    if "alignment" not in tables or not predicted_by:
        return
    kept: NDArray[Any] = tables["alignment"][np.arange(len(predicted_by)), source, predicted_by][..., : length or None]
    if kept.ndim == 2:
        found.alignment = kept
    else:
        found.alignment_heads = np.ascontiguousarray(kept.transpose(1, 2, 0, 3))  # [L, H, T, S]
        found.alignment = found.alignment_heads[-1].mean(axis=0)


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
            outputs.append(Hypothesis([*options.prompt, *tokens], score, scores))
            _align(outputs[-1], tables, source, source_lengths[source], [row] * n)
        found.append(outputs)
    return found
