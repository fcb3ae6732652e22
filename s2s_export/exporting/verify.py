"""A bundle against the checkpoint that it came from: the error of each graph, and the decoded tokens.

Both programs get the same sources and options; the tokens of `transformers.generate` are the truth. A source whose
tokens differ although its scores agree to a rounding error is a tie, and counted as one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle import read
from ..errors import InvalidOption
from ..runtime.session import Session, load
from .checkpoint import open_checkpoint, quiet_transformers
from .tolerances import SCORE_TOLERANCE, TOKEN_AGREEMENT

if TYPE_CHECKING:
    from .parity import OutputError

SEARCHES: tuple[dict[str, Any], ...] = ({"num_beams": 1, "do_sample": False}, {"num_beams": 4, "do_sample": False})
N_SOURCES = 8
MAX_NEW_TOKENS = 32
SEED = 5


@dataclass(frozen=True)
class SearchAgreement:
    """How one search fared: sources whose tokens are equal, sources that differ by a tie, largest score error."""

    options: dict[str, Any]
    n_sources: int
    n_equal: int
    n_ties: int
    max_score_error: float
    needed: float

    @property
    def is_enough(self) -> bool:
        return self.n_equal + self.n_ties >= self.needed * self.n_sources

    def line(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        ties = f", {self.n_ties} ties" if self.n_ties else ""
        verdict = "ok" if self.is_enough else "OUTSIDE TOLERANCE"
        return (
            f"tokens ({options}): {self.n_equal} of {self.n_sources} sources equal{ties}, "
            f"max score error {self.max_score_error:.1e}  {verdict}"
        )


@dataclass(frozen=True)
class Verification:
    outputs: list[OutputError]
    searches: list[SearchAgreement]

    @property
    def is_close(self) -> bool:
        return all(o.is_close for o in self.outputs) and all(s.is_enough for s in self.searches)


def verify(
    bundle_path: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    backend: str = "auto",
    target: str | None = None,
    threads: int | None = None,
    search: str = "auto",
) -> Verification:
    """Compare a bundle with its checkpoint. Options are those of `load`.

    Raises what opening either raises; disagreement is in the result.
    """
    from . import parity

    opened = read(bundle_path)
    source = open_checkpoint(os.fspath(checkpoint))
    if source.model_type != opened.manifest["model_type"]:
        raise InvalidOption(
            f"the checkpoint is of type '{source.model_type}', "
            f"but the bundle was made from '{opened.manifest['model_type']}'"
        )
    model = source.load_model()
    make = getattr(source.family, "Reference", parity.TransformersReference)
    session = load(bundle_path, backend, target, threads, verify=False, search=search)
    searches = [_compare_search(session, model, source.family, options) for options in SEARCHES]
    return Verification(parity.measure(opened, make(model)), searches)


def _compare_search(session: Session, model: Any, family: Any, options: dict[str, Any]) -> SearchAgreement:
    from .parity import random_sources

    rng = np.random.default_rng(SEED)
    sources: list[list[int]] = []
    while len(sources) < N_SOURCES:
        sources += random_sources(session.bundle, rng)
    sources = sources[:N_SOURCES]
    limit = min(MAX_NEW_TOKENS, (session.bundle.max_target_length or MAX_NEW_TOKENS + 1) - 1)
    options = {**options, "max_new_tokens": limit}
    found = session.generate(sources, **options)
    precision = session.bundle.manifest["precision"]
    n_equal = n_ties = 0
    worst = 0.0
    for source, (best, *_) in zip(sources, found, strict=True):
        tokens, score = generate_one(model, family, source, options)
        n = max(len(tokens), len(best.token_ids))
        fill = tokens[-1]
        is_equal = [*tokens, *[fill] * (n - len(tokens))] == [*best.token_ids, *[fill] * (n - len(best.token_ids))]
        n_equal += is_equal
        if score is not None:
            error = abs(score - best.score)
            n_ties += not is_equal and error < SCORE_TOLERANCE["fp32"]
            worst = max(worst, error if is_equal else 0.0)
    return SearchAgreement(options, len(sources), n_equal, n_ties, worst, TOKEN_AGREEMENT[precision])


def generate_one(model: Any, family: Any, source: list[int], options: dict[str, Any]) -> tuple[list[int], float | None]:
    """Tokens and score of the best hypothesis by `generate`; the score is None where generate gives none (one beam)."""
    import torch

    generate = getattr(family, "generate", None) or type(model).generate
    ids = torch.tensor([source])
    with torch.no_grad(), quiet_transformers():
        out = generate(
            model, input_ids=ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_scores=True,
            **options,
        )  # fmt: skip
    score = getattr(out, "sequences_scores", None)
    return out.sequences[0].tolist(), None if score is None else float(score[0])
