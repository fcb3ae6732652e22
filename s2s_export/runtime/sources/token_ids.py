"""Token ids: sources of models that read text. The tokenizer makes them, and `s2s generate` takes them as they are.

The encoder's inputs are `input_ids` [B,S] int64, filled on the right with manifest.json's `source.pad_token_id`, and
`source_mask` [B,S] int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...bundle import Bundle
from ...errors import BundleError, InputError
from ..text import Tokenizer
from . import MASK, SourceKind, mask_of

INPUT_IDS = "input_ids"  # the encoder's input, and the field of a JSON line


class TokenIds:
    """See `sources.SourceKind`. A source is a list of ids, each from 0 to the size of the source vocabulary less 1."""

    name: ClassVar[str] = "token_ids"
    field: ClassVar[str] = INPUT_IDS
    has_ids: ClassVar[bool] = True

    def __init__(self, bundle: Bundle) -> None:
        self._padding: int | None = bundle.manifest["source"]["pad_token_id"]
        self._limit = bundle.max_source_length
        if "source_vocabulary_size" not in bundle.manifest["sizes"]:
            raise BundleError(f"{bundle.path}: the manifest lacks sizes.source_vocabulary_size; export it again")
        self._size = int(bundle.manifest["sizes"]["source_vocabulary_size"])
        self._generation = bundle.manifest.get("generation", {})

    def from_json(self, value: Any) -> list[int]:
        if not isinstance(value, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in value):
            raise InputError(f"'{INPUT_IDS}' is no list of whole numbers; expected token ids")
        return value

    def check(self, source: Any, *, truncate: bool = False, tokenizer: Tokenizer | None = None) -> list[int]:
        """truncate: the special tokens around a source's text stay, as with the tokenizer's own truncation; without a
        tokenizer the last id, which is the end token, stays."""
        try:
            ids = [int(i) for i in source]
        except (TypeError, ValueError):
            raise InputError(f"the source is {source!r}; expected a list of token ids") from None
        if not ids:
            raise InputError(
                "the source has no tokens; expected at least one id (an empty text still has its end token)"
            )
        if wrong := [i for i in ids if not 0 <= i < self._size]:
            raise InputError(f"the source has the id {wrong[0]}; expected ids from 0 to {self._size - 1}")
        limit = self._limit
        if limit is not None and len(ids) > limit:
            if not truncate:
                raise InputError(
                    f"the source has {len(ids)} tokens, but the model allows {limit}; shorten it, or cut it off with "
                    "--truncate (truncate=True)"
                )
            ids = tokenizer.truncate(ids, limit) if tokenizer is not None else ids[: limit - 1] + ids[-1:]
        return ids

    def length(self, source: Sequence[int]) -> int:
        return len(source)

    def prepare(self, batch: Sequence[Sequence[int]]) -> dict[str, Any]:
        """A padding id that a source itself holds is a token like any other, as for `generate()` with an
        encoder-decoder."""
        lengths = np.array([len(source) for source in batch])
        ids = np.full((len(batch), int(lengths.max())), self._padding or 0, dtype=np.int64)
        for row, source in zip(ids, batch, strict=True):
            row[: len(source)] = source
        return {INPUT_IDS: ids, MASK: mask_of(lengths)}

    def ids(self, source: Sequence[int]) -> Sequence[int]:
        return source

    def random(self, rng: np.random.Generator, length: int) -> list[int]:
        """Any ids but padding."""
        ids = np.arange(self._size)
        found: list[int] = rng.choice(ids[ids != self._padding], size=length).tolist()
        return found

    def typical(self, rng: np.random.Generator, length: int) -> list[int]:
        """No ids with a special meaning, and the end token last where the model has one."""
        allowed = np.setdiff1d(np.arange(self._size), sorted(self._special_ids()))
        source: list[int] = rng.choice(allowed, size=length).tolist()
        end = self._generation.get("eos_token_id")
        end = end[0] if isinstance(end, list) and end else end
        if isinstance(end, int) and end < self._size:
            source[-1] = end
        return source

    def _special_ids(self) -> set[int]:
        found: set[int] = set()
        for name, value in self._generation.items():
            if name.endswith("_token_id"):
                found.update(value if isinstance(value, list) else [value])
        return found if self._padding is None else found | {self._padding}


KIND: type[SourceKind] = TokenIds
