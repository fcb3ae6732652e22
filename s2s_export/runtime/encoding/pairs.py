"""Two texts as one source, for cross-encoders, rerankers and models of inference: manifest.json's `source.pair`.

What is put before the first, between them and behind the second is what the checkpoint's tokenizer puts there, and
pairs that are too long are cut as transformers does it (`truncation=True`, the longer text first).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ..sources.typed_token_ids import TypedIds
from ..text import Tokenizer


@dataclass(frozen=True)
class PairTemplate:
    """Ids around two texts; second_type: of the tokens of the second and of what is behind it."""

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    second_type: int

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> PairTemplate:
        """entry: as the manifest has it, whose form was checked there."""
        prefix, middle, suffix = (tuple(int(i) for i in entry[name]) for name in ("prefix", "middle", "suffix"))
        return cls(prefix, middle, suffix, int(entry["second_type"]))

    def ids(
        self, tokenizer: Tokenizer, first: str, second: str, limit: int | None, *, truncate: bool = False
    ) -> list[int]:
        """The source of two texts. Raises InputError for texts that are too long, if they may not be cut."""
        parts = tokenizer.encode_inner(first), tokenizer.encode_inner(second)
        around = len(self.prefix) + len(self.middle) + len(self.suffix)
        n_ids = around + len(parts[0]) + len(parts[1])
        if limit is not None and n_ids > limit:
            if not truncate or limit <= around:
                raise InputError(
                    f"the two texts have {n_ids} tokens, but the model allows {limit}; shorten them, or cut them off "
                    "with --truncate (truncate=True)"
                )
            sizes = shares(len(parts[0]), len(parts[1]), limit - around)
            is_left = tokenizer.entry.truncation_side == "left"
            parts = _cut(parts[0], sizes[0], is_left), _cut(parts[1], sizes[1], is_left)
        before = [*self.prefix, *parts[0], *self.middle]
        ids = [*before, *parts[1], *self.suffix]
        return TypedIds(ids, len(before) if self.second_type else len(ids))


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text stay: the longer is cut to the shorter's length, then both alike."""
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    if short > room:
        long = short
    else:
        long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)


def _cut(ids: Sequence[int], size: int, is_left: bool) -> list[int]:
    return list(ids[len(ids) - size :] if is_left else ids[:size])
