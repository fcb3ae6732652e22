"""Writes alignments: those of all sources as JSON, or one as a heat map (arXiv 1409.0473, figure 3).

Row t of an alignment has the attention weight of each source token when target token t was predicted. Beside it stands
the token's probability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import replacing
from ..errors import InputError, InvalidOption, MissingExtra
from .decoding import Hypothesis
from .session import Session
from .sources import Source

PICTURES = (".png", ".svg", ".pdf")
INCH_PER_TOKEN = 0.34
SMALLEST_SIDE = 3.0  # inches


def check_path(path: str) -> None:
    """Raises InvalidOption for a file that is neither JSON nor a picture."""
    if Path(path).suffix.lower() not in (".json", *PICTURES):
        raise InvalidOption(f"alignments can't be written to '{path}'; expected .json, {', '.join(PICTURES)}")


def write_alignments(
    path: str, session: Session, sources: Sequence[Source], found: Sequence[Sequence[Hypothesis]]
) -> None:
    """Write the alignment of every hypothesis as JSON, or the first one as a picture, by the ending of `path`."""
    check_path(path)
    records = [
        describe(session, source, hypothesis)
        for source, hypotheses in zip(sources, found, strict=True)
        for hypothesis in hypotheses
    ]
    if not records:
        raise InputError("there is no text to align; give at least one")
    if Path(path).suffix.lower() == ".json":
        replacing.write_text(path, json.dumps(records, ensure_ascii=False) + "\n")
    else:
        draw(path, records[0])


def describe(session: Session, source: Source, hypothesis: Hypothesis) -> dict[str, Any]:
    """The tokens, the weights [T, S] and the target tokens' probabilities of a hypothesis that has an alignment."""
    weights = hypothesis.alignment
    assert weights is not None
    target = hypothesis.token_ids[len(hypothesis.token_ids) - len(weights) :]
    return {
        "source_tokens": session.source_tokens(source),
        "target_tokens": session.target_tokens(target),
        "weights": [[round(float(value), 5) for value in row] for row in weights],
        "probabilities": [round(math.exp(min(0.0, score)), 5) for score in hypothesis.token_scores],
        "text": hypothesis.text,
    }


def draw(path: str, record: dict[str, Any]) -> None:
    """A heat map: source tokens along the top, target tokens with their probabilities down the side."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "drawing an alignment") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    source, target = record["source_tokens"], record["target_tokens"]
    size = [max(SMALLEST_SIDE, INCH_PER_TOKEN * len(tokens) + 1.5) for tokens in (source, target)]
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    image = axes.imshow(record["weights"], cmap="gray_r", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(source)), source, rotation=90)
    sure = record["probabilities"]
    axes.set_yticks(range(len(target)), [f"{token}  {p:.0%}" for token, p in zip(target, sure, strict=True)])
    axes.xaxis.tick_top()
    figure.colorbar(image, ax=axes, label="attention weight")
    try:
        with replacing.file(path) as work:
            figure.savefig(work, dpi=150, format=Path(path).suffix.lower()[1:])
    finally:
        pyplot.close(figure)
