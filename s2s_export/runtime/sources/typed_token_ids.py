"""Token ids whose tokens have types: sources of encoders that read two texts, such as BERT.

As token_ids.py, with one more input of the encoder: `token_type_ids` [B,S] int64, 0 up to where the second text begins
and 1 from there on. A source of one text is a list of ids; one of two is a `TypedIds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..text import Tokenizer
from . import MASK, SourceKind
from .token_ids import TokenIds

TOKEN_TYPES = "token_type_ids"  # the encoder's input


class TypedIds(list[int]):
    """Token ids, the first `n_first` of which have type 0 and the others type 1."""

    def __init__(self, ids: Sequence[int], n_first: int) -> None:
        super().__init__(ids)
        self.n_first = n_first


class TypedTokenIds(TokenIds):
    """See `sources.SourceKind`."""

    name: ClassVar[str] = "typed_token_ids"

    def check(self, source: Any, *, truncate: bool = False, tokenizer: Tokenizer | None = None) -> list[int]:
        """Two texts are cut before, each by its share."""
        ids = super().check(source, truncate=truncate, tokenizer=tokenizer)
        return TypedIds(ids, source.n_first) if isinstance(source, TypedIds) and len(ids) == len(source) else ids

    def prepare(self, batch: Sequence[Sequence[int]]) -> dict[str, Any]:
        inputs = super().prepare(batch)
        first = np.array([source.n_first if isinstance(source, TypedIds) else len(source) for source in batch])
        is_second = np.arange(inputs[MASK].shape[1]) >= first[:, None]
        return {**inputs, TOKEN_TYPES: is_second * inputs[MASK]}

    def random(self, rng: np.random.Generator, length: int) -> list[int]:
        """Two texts, of which one may be empty."""
        return TypedIds(super().random(rng, length), int(rng.integers(0, length + 1)))


KIND: type[SourceKind] = TypedTokenIds
