"""From the tables of a finished search to hypotheses. On the device nothing but records was kept; here they are walked.

Letters: B sources, K rows, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..decoding.hypothesis import Hypothesis
from ..decoding.options import GenerationOptions

Tables = Mapping[str, NDArray[Any]]
BEAM_TABLES = (
    *("tokens", "parents", "token_scores", "finished_scores"),
    *("pool_scores", "pool_steps", "pool_parents", "pool_tokens"),
)
ROW_TABLES = ("tokens", "token_scores", "n_generated")


def beams(tables: Tables, options: GenerationOptions) -> list[list[Hypothesis]]:
    """The outputs of every source, best first: the pool's records, each walked back through the parents."""
    n_sources = tables["pool_scores"].shape[0]
    return [
        [_of_pool(tables, options, source, place) for place in range(options.num_return_sequences)]
        for source in range(n_sources)
    ]


def _of_pool(tables: Tables, options: GenerationOptions, source: int, place: int) -> Hypothesis:
    prompt, score = list(options.prompt), float(tables["pool_scores"][source, place])
    steps = tables["pool_steps"][source]
    step = int(steps[place])
    if step < 0:  # an empty place: generate() returns the prompt alone
        return Hypothesis(prompt, score, [])
    tokens, scores = walk(tables, source, step, int(tables["pool_parents"][source, place]))
    # Outputs that finished at one step stay in order in the pool, and only the last of them ever leave it.
    earlier = int((steps[:place] == step).sum())
    tokens.append(int(tables["pool_tokens"][source, place]))
    scores.append(float(tables["finished_scores"][step, source, earlier]))
    return Hypothesis([*prompt, *tokens], score, scores)


def walk(tables: Tables, source: int, n: int, beam: int) -> tuple[list[int], list[float]]:
    """The first n generated tokens of a beam's text, and their log-probabilities."""
    tokens, scores = [], []
    for step in range(n - 1, -1, -1):
        tokens.append(int(tables["tokens"][step, source, beam]))
        scores.append(float(tables["token_scores"][step, source, beam]))
        beam = int(tables["parents"][step, source, beam])
    return tokens[::-1], scores[::-1]


def rows(tables: Tables, options: GenerationOptions) -> list[list[Hypothesis]]:
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
            outputs.append(
                Hypothesis([*options.prompt, *tokens], sum(scores) / float(n) ** options.length_penalty, scores)
            )
        found.append(outputs)
    return found
