"""A target's recipe with what the command line changes, in place of a recipe of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidOption
from ..recipes import Range, Recipe


@dataclass(frozen=True)
class Changes:
    """max_batch: sources side by side. max_source_length: in tokens or frames. samples: a file of sources.
    processor: the kind that a CPU's engine is for, "x86_64" or "aarch64", where it isn't this machine's.
    """

    max_batch: int | None = None
    max_beams: int | None = None
    max_source_length: int | None = None
    samples: str | None = None
    processor: str | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in (*self._most().values(), self.samples, self.processor))

    def _most(self) -> dict[str, int | None]:
        return {"B": self.max_batch, "K": self.max_beams, "S": self.max_source_length}

    def apply(self, recipe: Recipe, defaults: Mapping[str, Range]) -> Recipe:
        """defaults: the ranges of a recipe that names none; empty for a target that serves any shape.

        Raises InvalidOption for a limit where there is none to set, a file that is not there, or a processor of a GPU's
        target.
        """
        most = {letter: value for letter, value in self._most().items() if value is not None}
        if most and not defaults:
            raise InvalidOption(
                f"target '{recipe.name}': serves any batch, beams and source length; expected no limit; leave out "
                "--max-batch, --max-beams and --max-source-length"
            )
        ranges: dict[str, Range] = dict(recipe.ranges)
        for letter, value in most.items():
            asked = ranges.get(letter) or defaults[letter]
            ranges[letter] = Range(min(asked.min, value), min(asked.opt, value), value)
        options: dict[str, Any] = dict(recipe.options)
        if self.samples is not None:
            if not Path(self.samples).is_file():
                raise InvalidOption(f"{self.samples}: no such file; expected a file of sources, a line each")
            options["samples"] = self.samples
        if self.processor is not None:
            if recipe.flavour != "cpu":
                raise InvalidOption(
                    f"target '{recipe.name}': is for a GPU; --for says which processor a target for a CPU is for; "
                    "leave it out"
                )
            options["processor"] = self.processor
        return replace(recipe, ranges=ranges, options=options)
