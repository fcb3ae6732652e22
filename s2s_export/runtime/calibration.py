"""Calibration: from how likely the model finds its output to how likely that output is right, on the user's own pairs.

The mean log-probability of an output's tokens orders outputs well, but exp of it is no share of right ones: models are
too sure of themselves, or not sure enough. `fit` learns a rising step function from outputs that were judged (isotonic
regression by pooling adjacent violators, Ayer et al. 1955; Zadrozny and Elkan 2002), of which neighbouring steps are
joined by lines. What "right" means is the user's choice: equal to the reference, or near enough to it by chrF.

A bundle keeps it as calibration.json, format version 1:

    format, format_version    "s2s-calibration" and 1
    targets                   by target ("portable": the bundle's own graphs), each
        measure               "exact" or "chrf"; threshold: for chrF, from which value on an output is right
        n_pairs, share_right  how many outputs were judged, and the share that was right
        points                [[mean log-probability, probability], ...], both rising
        error, error_before   expected calibration error of held-out outputs, with it, and without: of exp(mean)
        made_from             sha256 of the decoder step's file: another model needs another calibration
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import replacing
from ..bundle import Bundle
from ..engines import PORTABLE
from ..errors import BundleError, InputError
from ..schema import Unreadable, integer, list_of, mapping_of, number, one_of, read_json, record, text
from .decoding import Hypothesis

Numbers = NDArray[np.float64]
FILE, FORMAT, VERSION = "calibration.json", "s2s-calibration", 1
LEAST_PAIRS = 50
STEP = 10  # the least outputs of one step
FOLDS, BINS = 5, 10
_TARGET = record(
    {
        "measure": one_of("exact", "chrf"),
        "n_pairs": integer(1),
        "points": list_of(list_of(number)),
        "made_from": text,
    }
)
_CHECK = record({"format": one_of(FORMAT), "format_version": integer(1), "targets": mapping_of(_TARGET)})


@dataclass(frozen=True)
class Calibration:
    """Of one target; the fields are those above."""

    measure: str
    threshold: float | None
    n_pairs: int
    share_right: float
    points: tuple[tuple[float, float], ...]
    error: float
    error_before: float

    def of(self, hypothesis: Hypothesis) -> float | None:
        """The probability that an output is right; None for one without tokens."""
        mean = mean_of(hypothesis)
        return None if mean is None else float(apply(self.points, np.array([mean]))[0])


def mean_of(hypothesis: Hypothesis) -> float | None:
    """The mean log-probability of an output's tokens."""
    scores = hypothesis.token_scores
    return min(0.0, sum(scores) / len(scores)) if scores else None


def fit(means: Sequence[float], right: Sequence[bool], measure: str, threshold: float | None) -> Calibration:
    """means: mean log-probability of each output. Raises InputError for fewer than LEAST_PAIRS."""
    if len(means) < LEAST_PAIRS:
        raise InputError(
            f"found {len(means)} outputs to judge; a calibration needs at least {LEAST_PAIRS}; give more pairs"
        )
    x, y = np.asarray(means, np.float64), np.asarray(right, np.float64)
    folds = np.random.default_rng(0).permutation(len(x)) % FOLDS
    held_out = np.empty(len(x))
    for fold in range(FOLDS):
        inside = folds != fold
        held_out[~inside] = apply(_points(x[inside], y[inside]), x[~inside])
    return Calibration(
        measure,
        threshold,
        len(x),
        float(y.mean()),
        _points(x, y),
        expected_error(held_out, y),
        expected_error(np.exp(x), y),
    )


def apply(points: Sequence[tuple[float, float]], means: Numbers) -> Numbers:
    """Probabilities; beyond the first and the last point, theirs."""
    found: Numbers = np.interp(means, [mean for mean, _ in points], [probability for _, probability in points])
    return found


def expected_error(probabilities: Numbers, right: Numbers) -> float:
    """The mean distance of probability and share of right outputs, over about BINS groups of equally many (Guo et al.
    2017). Equal probabilities are in one group."""
    _, group = np.unique(probabilities, return_inverse=True)
    before = np.concatenate([[0], np.cumsum(np.bincount(group))[:-1]])
    bins = (before * BINS // len(probabilities))[group]
    counts = np.bincount(bins)
    gaps = np.abs(np.bincount(bins, probabilities) - np.bincount(bins, right))
    return float(gaps.sum() / counts.sum())


def _points(x: Numbers, y: Numbers) -> tuple[tuple[float, float], ...]:
    """Isotonic steps by their middles. Each is drawn towards a half by two outputs, so that few are never certain."""
    parts = np.array_split(np.argsort(x, kind="stable"), max(1, len(x) // STEP))
    pooled = _pooled([(float(x[part].mean()), float(y[part].mean()), len(part)) for part in parts])
    drawn = _pooled([(mean, (share * n + 1) / (n + 2), n) for mean, share, n in pooled])
    return tuple((round(mean, 6), round(probability, 6)) for mean, probability, _ in drawn)


def _pooled(steps: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Neighbouring steps (mean, value, count) that do not rise become one."""
    found: list[tuple[float, float, int]] = []
    for step in steps:
        found.append(step)
        while len(found) > 1 and found[-2][1] >= found[-1][1]:
            (a, p, n), (b, q, m) = found[-2:]
            found[-2:] = [((a * n + b * m) / (n + m), (p * n + q * m) / (n + m), n + m)]
    return found


def write(bundle: Bundle, target: str | None, found: Calibration) -> None:
    """Put a target's calibration into the bundle, beside those of others. Raises OSError."""
    path = bundle.path / FILE
    targets = _read(bundle) if path.exists() else {}
    targets[target or PORTABLE] = {**asdict(found), "made_from": _made_from(bundle)}
    content = {"format": FORMAT, "format_version": VERSION, "targets": targets}
    replacing.write_text(path, json.dumps(content, indent=1) + "\n")


def read(bundle: Bundle, target: str | None) -> Calibration | None:
    """That of a target, or None where there is none for this model. Raises BundleError for a file that is none."""
    if not (bundle.path / FILE).exists():
        return None
    entry = _read(bundle).get(target or PORTABLE)
    if entry is None or entry["made_from"] != _made_from(bundle):
        return None
    known = {name: entry.get(name) for name in Calibration.__dataclass_fields__}
    points = tuple((float(mean), float(probability)) for mean, probability in known.pop("points"))
    return Calibration(**{**known, "points": points})


def _read(bundle: Bundle) -> dict[str, Any]:
    path = bundle.path / FILE
    again = "delete it, or make it again with s2s calibrate"
    try:
        content = read_json(path)
    except Unreadable as error:
        raise BundleError(f"{path}: not readable ({error}); {again}") from error
    if mistake := _CHECK(content, ""):
        raise BundleError(f"{path}: {mistake}; {again}")
    if content["format_version"] > VERSION:
        raise BundleError(
            f"{path}: has version {content['format_version']}; expected at most {VERSION}; upgrade s2s-export"
        )
    targets: dict[str, Any] = content["targets"]
    for name, entry in targets.items():
        points = entry["points"]
        rise = len({len(point) for point in points} - {2}) == 0 and points == sorted(points)
        if not points or not rise or not all(0 <= probability <= 1 for _, probability in points):
            raise BundleError(f"{path}: targets.{name}.points are no rising pairs of numbers; {again}")
    return targets


def _made_from(bundle: Bundle) -> str:
    return bundle.hashes()[bundle.manifest["graphs"]["decoder_step"]["file"]]
