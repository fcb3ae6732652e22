"""A picture of the words of a transcript over its waveform. Needs matplotlib (extra `plot`)."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ... import replacing
from ...errors import InvalidOption, MissingExtra
from ..audio.log_mel import SAMPLE_RATE
from ..decoding.state import Floats
from .formats import Transcript

ENDINGS = (".png", ".svg", ".pdf")
SECONDS_PER_ROW = 10.0
POINTS_PER_ROW = 2000  # of the outline of the waveform


def check_path(path: str) -> None:
    """Raises InvalidOption for a file that is no picture, MissingExtra for what drawing needs."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise InvalidOption(f"a picture can't be written to '{path}'; expected {', '.join(ENDINGS)}")
    if find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "plot", "drawing words over a waveform")


def draw(path: str, samples: Floats, transcript: Transcript) -> None:
    """samples [L] at 16 kHz. Ten seconds a row; each word stands over its time, paler where it is less probable."""
    check_path(path)
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    duration = len(samples) / SAMPLE_RATE
    n_rows = max(1, math.ceil(duration / SECONDS_PER_ROW))
    figure, rows = pyplot.subplots(n_rows, figsize=(13, 1.7 * n_rows + 0.6), layout="constrained", squeeze=False)
    try:
        highest = float(np.abs(samples).max(initial=1e-6))
        words = [word for segment in transcript.segments for word in segment.words or ()]
        for i, axes in enumerate(rows[:, 0]):
            begin = i * SECONDS_PER_ROW
            part = samples[int(begin * SAMPLE_RATE) : int((begin + SECONDS_PER_ROW) * SAMPLE_RATE)]
            step = max(1, len(part) * 2 // POINTS_PER_ROW)
            blocks = part[: len(part) // step * step].reshape(-1, step)
            times = begin + np.arange(len(blocks)) * step / SAMPLE_RATE
            axes.fill_between(times, blocks.min(axis=1), blocks.max(axis=1), color="#9db4c8", linewidth=0)
            for word in words:
                if not begin <= word.start < begin + SECONDS_PER_ROW:
                    continue
                axes.axvspan(word.start, word.end, color="#1f6fb2", alpha=0.08 + 0.17 * word.probability, linewidth=0)
                axes.text(
                    word.start, highest * 1.05, word.word.strip(), fontsize=8, rotation=35, ha="left", va="bottom",
                    parse_math=False,
                )  # fmt: skip
            axes.set_xlim(begin, begin + SECONDS_PER_ROW)
            axes.set_ylim(-highest, highest)
            axes.set_yticks([])
            axes.spines[["top", "right", "left"]].set_visible(False)
        rows[-1, 0].set_xlabel("seconds")
        with replacing.file(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:].lower(), dpi=110)
    finally:
        pyplot.close(figure)
