"""Writes alignments: those of all sources as JSON, or one as a heat map (arXiv 1409.0473, figure 3).

Row t of an alignment has the attention weight of each source token when target token t was predicted. Beside it stands
the token's probability. `Chosen` says whose weights: by default the mean over the heads of the last decoder layer.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import replacing
from ..errors import InputError, InvalidOption, MissingExtra, shortened
from . import confidence
from .decoding import Hypothesis
from .decoding.state import Floats
from .session import Session
from .sources import Source

PICTURES = (".png", ".svg", ".pdf")
INCH_PER_TOKEN = 0.34
SMALLEST = 4.8, 3.6  # inches: width and height of a picture
LINE = 48  # characters of a line of the title


def check_path(path: str) -> None:
    """Raises InvalidOption for a file that is neither JSON nor a picture, MissingExtra for what a picture needs."""
    if Path(path).suffix.lower() not in (".json", *PICTURES):
        raise InvalidOption(f"alignments can't be written to '{path}'; expected .json, {', '.join(PICTURES)}")
    if Path(path).suffix.lower() in PICTURES and find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "plot", "drawing an alignment")


@dataclass(frozen=True)
class Chosen:
    """layer, head: numbered from 0, from the last one backwards if negative. head: None is the mean over all heads."""

    layer: int | None = None
    head: int | None = None

    @property
    def wanted(self) -> bool | str:
        """What to ask a session for as `alignments`."""
        return True if self.layer is None and self.head is None else "heads"

    def of(self, hypothesis: Hypothesis) -> Floats:
        """[T, S]. Raises InvalidOption for a layer or head that the model does not have."""
        if hypothesis.alignment_heads is None:
            assert hypothesis.alignment is not None
            return hypothesis.alignment
        weights = hypothesis.alignment_heads  # [L, H, T, S]
        layer = -1 if self.layer is None else self.layer
        for name, value, count in (("layer", layer, len(weights)), ("head", self.head or 0, weights.shape[1])):
            if not -count <= value < count:
                raise InvalidOption(
                    f"--alignment-{name} is {value}; the decoder has {count}: expected 0 to {count - 1}"
                )
        of_layer = weights[layer]
        chosen: Floats = of_layer.mean(axis=0) if self.head is None else of_layer[self.head]
        return chosen

    def describe(self) -> str:
        layer = {None: "last decoder layer", -1: "last decoder layer"}.get(self.layer, f"decoder layer {self.layer}")
        return f"{layer}, {'mean over heads' if self.head is None else f'head {self.head}'}"


LAST = Chosen()


def write_alignments(
    path: str,
    session: Session,
    sources: Sequence[Source],
    found: Sequence[Sequence[Hypothesis]],
    chosen: Chosen = LAST,
) -> None:
    """Write the alignment of every hypothesis as JSON, or the first one as a picture, by the ending of `path`."""
    check_path(path)
    records = [
        describe(session, source, hypothesis, chosen)
        for source, hypotheses in zip(sources, found, strict=True)
        for hypothesis in hypotheses
    ]
    if not records:
        raise InputError("there is no text to align; give at least one")
    if Path(path).suffix.lower() == ".json":
        replacing.write_text(path, json.dumps(records, ensure_ascii=False) + "\n")
    else:
        draw(path, records[0])


def describe(session: Session, source: Source, hypothesis: Hypothesis, chosen: Chosen = LAST) -> dict[str, Any]:
    """The tokens, the weights [T, S] and the target tokens' probabilities of a hypothesis that has an alignment."""
    weights = chosen.of(hypothesis)
    target = hypothesis.token_ids[len(hypothesis.token_ids) - len(weights) :]
    return {
        "source_tokens": session.source_tokens(source),
        "target_tokens": session.target_tokens(target),
        "weights": [[round(float(value), 5) for value in row] for row in weights],
        "attention": chosen.describe(),
        "probabilities": [round(math.exp(min(0.0, score)), 5) for score in hypothesis.token_scores],
        "confidence": confidence.sentence(hypothesis),
        "calibrated": None if session.calibration is None else session.calibration.of(hypothesis),
        "text": hypothesis.text,
    }


def draw(path: str, record: dict[str, Any]) -> None:
    """A heat map: source tokens along the top, target tokens with their probabilities down the side."""
    import matplotlib

    matplotlib.use("agg")
    with matplotlib.rc_context({"text.parse_math": False}):  # a text's dollar signs are no formula
        _draw(path, record)


def _draw(path: str, record: dict[str, Any]) -> None:
    from matplotlib import pyplot

    source, target = record["source_tokens"], record["target_tokens"]
    size = [
        max(smallest, INCH_PER_TOKEN * len(tokens) + 2.5)
        for smallest, tokens in zip(SMALLEST, (source, target), strict=True)
    ]
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    image = axes.imshow(record["weights"], cmap="gray_r", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(source)), source, rotation=90)
    sure = record["probabilities"]
    axes.set_yticks(range(len(target)), [f"{token}  {p:.0%}" for token, p in zip(target, sure, strict=True)])
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("source tokens")
    axes.set_ylabel("target tokens\nand probabilities")
    title = shortened(f"{record['text'] or ''}", 2 * LINE)
    figure.suptitle(f"{textwrap.fill(title, LINE)}\n({record['attention']}{_sureness(record)})".lstrip(), fontsize=11)
    figure.colorbar(image, ax=axes, label="attention weight")
    try:
        with replacing.file(path) as work:
            figure.savefig(work, dpi=150, format=Path(path).suffix.lower()[1:])
    finally:
        pyplot.close(figure)


def _sureness(record: dict[str, Any]) -> str:
    """For the title: how likely the output is right, where the bundle is calibrated, else the model's own opinion."""
    if record["calibrated"] is not None:
        return f"; right in {record['calibrated']:.0%}"
    return "" if record["confidence"] is None else f"; confidence {record['confidence']:.0%}"
