"""A recipe's ranges fitted to one model, and the size of its caches.

A cache has a fixed number of slots, N, whatever the number of beams, since TensorRT's cache layer needs a fixed size.
With K beams it holds C = N / K positions, so N is a multiple of every K that is to be served exactly; other numbers of
beams run as the next larger one that divides N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...bundle import Bundle
from ...errors import InvalidOption
from ...recipes import LETTERS, Range, Recipe
from ...runtime.sources import kind_of

DEFAULTS = {"B": Range(1, 1, 8), "K": Range(1, 4, 8), "S": Range(1, 32, 256), "T": Range(1, 64, 256)}
# Numbers of beams that divide N where the range has them. Their least common multiple is 240, a few slots of waste; 7
# and 9 to 15 would multiply it by thousands.
SERVED_BEAMS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)


@dataclass(frozen=True)
class Dimensions:
    """ranges: by letter, B K S C. slots: N, or 0 for a model without caches. notes: what was changed, in sentences."""

    ranges: Mapping[str, Range]
    slots: int
    target_length: int
    notes: tuple[str, ...] = field(default=())

    def beams_for(self, wanted: int) -> int:
        """The least number of beams in range that serves `wanted`: it divides N."""
        top = self.ranges["K"].max
        for beams in range(max(wanted, self.ranges["K"].min), top + 1):
            if not self.slots or self.slots % beams == 0:
                return beams
        raise InvalidOption(f"{wanted} beams; expected at most {top}, which the engine was built for; raise ranges.K")


def fit(bundle: Bundle, recipe: Recipe) -> Dimensions:
    """The ranges that the engine is built for. Raises InvalidOption for one that the model can't serve."""
    ranges = {letter: recipe.ranges.get(letter, DEFAULTS[letter]) for letter in LETTERS}
    limits = {"S": bundle.max_source_length, "T": bundle.max_target_length}
    if fixed := getattr(kind_of(bundle), "fixed_length", None):  # of pictures, and of windows of sound
        ranges["S"] = Range(fixed, fixed, fixed)
    notes, wrong = [], []
    if any("W" in entry["shape"] for entry in bundle.manifest["graphs"]["encoder"]["inputs"]):
        wrong.append("its encoder reads samples of sound, for which engines have no range; build for a CPU")
    is_recurrent, letters = bundle.manifest["decoder"] == "recurrent", _letters(bundle)
    if (is_recurrent and "C" in letters) or "F" in letters:
        what = "grow with every step" if is_recurrent and "C" in letters else "have a length of their own"
        wrong.append(f"its decoder has states that {what}, for which engines have no range; build for a CPU")
    for letter, limit in limits.items():
        asked = ranges[letter]
        if limit is None or asked.max <= limit:
            continue
        if asked.min > limit:
            wrong.append(f"ranges.{letter} begins at {asked.min}, but the model's limit is {limit} ({LETTERS[letter]})")
            continue
        ranges[letter] = Range(asked.min, min(asked.opt, limit), limit)
        notes.append(
            f"ranges.{letter} ends at {limit} instead of {asked.max}: the model's limit of its {LETTERS[letter]}"
        )
    vocabulary = bundle.vocabulary_size
    if ranges["K"].min > vocabulary:
        wrong.append(f"ranges.K begins at {ranges['K'].min}, but the vocabulary has {vocabulary} tokens")
    if wrong:
        advice = "; lower the range in the recipe" if any(reason.startswith("ranges.") for reason in wrong) else ""
        raise InvalidOption(f"target '{recipe.name}': {'; '.join(wrong)}{advice}")
    slots = 0
    beams, length = ranges["K"], ranges.pop("T").max
    if "N" in _letters(bundle):
        served = [k for k in SERVED_BEAMS if beams.min <= k <= beams.max] or [beams.max]
        step = math.lcm(*served, beams.max)
        slots = -(-length * beams.max // step) * step
        ranges["C"] = Range(slots // beams.max, slots // beams.opt, slots // beams.min)
    return Dimensions(ranges, slots, length, tuple(notes))


def _letters(bundle: Bundle) -> set[int | str]:
    """Sizes and letters of the decoder step's inputs."""
    return {size for entry in bundle.manifest["graphs"]["decoder_step"]["inputs"] for size in entry["shape"]}


def check(bundle: Bundle, recipe: Recipe) -> None:
    """Raises InvalidOption for a range that the model can't serve."""
    fit(bundle, recipe)
