#!/usr/bin/env python3
"""Word error rate of each target of a Whisper bundle on clips with known texts: what int8 costs against fp32.

    benchmarks/word_errors.py BUNDLE CLIPS [--targets portable,cpu-int8] [--num-beams 1,5] [--language en] [--json F]

CLIPS is a folder of NAME.wav with NAME.txt, such as speech_clips.py writes. Temperature 0 without thresholds, so that
nothing covers up what precision does. The first target is the measure: the difference to it is in points, with the
share of clips whose text is the same, and how often, in resamples of the clips, the difference is above 0.2 points.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import s2s_export  # noqa: E402 (after its folder is on the path)
from s2s_export.measuring.word_errors import WordErrors, word_errors, words_of  # noqa: E402

PLAIN: dict[str, Any] = {
    "temperature": 0.0, "compression_ratio_threshold": None, "logprob_threshold": None, "no_speech_threshold": None,
}  # fmt: skip
N_RESAMPLES = 2000


def transcribed(bundle: Path, target: str, clips: list[Path], n_beams: int, language: str) -> list[str]:
    session = s2s_export.load(bundle, target=target, threads=1)
    given = {"language": language} if session.speech and session.speech.is_multilingual else {}
    texts = []
    for i, clip in enumerate(clips, 1):
        texts.append(session.transcribe(str(clip), num_beams=n_beams, **given, **PLAIN).finish().text)
        if i % 50 == 0 or i == len(clips):
            print(f"{target}, {n_beams} beams: {i} of {len(clips)}", file=sys.stderr, flush=True)
    return texts


def counts(texts: list[str], references: list[str]) -> list[WordErrors]:
    return [word_errors(text, reference) for text, reference in zip(texts, references, strict=True)]


def share_above(counted: list[WordErrors], base: list[WordErrors], points: float) -> float:
    """How often the difference of the rates is above `points` where the clips are drawn anew."""
    rng = np.random.default_rng(0)
    n_words = np.array([one.n_words for one in base])
    more = np.array([a.n_errors - b.n_errors for a, b in zip(counted, base, strict=True)])
    drawn = rng.integers(len(base), size=(N_RESAMPLES, len(base)))
    return float((100 * more[drawn].sum(1) / n_words[drawn].sum(1) > points).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--targets", default="cpu-fp32,cpu-int8")
    parser.add_argument("--num-beams", default="1,5")
    parser.add_argument("--language", default="en")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    clips = sorted(path for path in arguments.clips.glob("*.wav") if path.with_suffix(".txt").is_file())
    if not clips:
        parser.error(f"{arguments.clips}: no clip has a text beside it; expected NAME.wav and NAME.txt")
    references = [clip.with_suffix(".txt").read_text() for clip in clips]
    rows = []
    print(f"{arguments.bundle.name}: {len(clips)} clips, {sum(len(words_of(text)) for text in references)} words")
    for n_beams in map(int, arguments.num_beams.split(",")):
        base: tuple[list[str], list[WordErrors]] | None = None
        for target in arguments.targets.split(","):
            texts = transcribed(arguments.bundle, target, clips, n_beams, arguments.language)
            counted = counts(texts, references)
            total = sum(counted, WordErrors(0, 0))
            row: dict[str, Any] = {"target": target, "num_beams": n_beams, "word_errors": total.rate}
            line = f"  {target:<12} {n_beams} beams  {total.rate:7.2%}"
            if base is None:
                base = texts, counted
            else:
                row["points"] = 100 * (total.rate - sum(base[1], WordErrors(0, 0)).rate)
                row["same"] = sum(words_of(a) == words_of(b) for a, b in zip(texts, base[0], strict=True)) / len(clips)
                row["above"] = share_above(counted, base[1], 0.2)
                line += f"  {row['points']:+.2f} points, {row['same']:.0%} of clips the same words, "
                line += f"above +0.2 in {row['above']:.0%} of resamples"
            rows.append(row)
            print(line, flush=True)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"bundle": arguments.bundle.name, "n_clips": len(clips), "rows": rows}) + "\n"
        )


if __name__ == "__main__":
    main()
