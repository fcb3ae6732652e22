"""Float features: sources of models of one's own that read vectors in place of ids, such as filter banks.

The encoder's inputs are `features` [B,S,W] float32, with zeros behind a shorter source, and `source_mask` [B,S].
manifest.json has W in `source.n_features` and the fewest vectors that the encoder takes in `source.min_length`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...bundle import Bundle
from ...errors import BundleError, InputError
from ..decoding.state import Floats
from ..text import Tokenizer
from . import MASK, SourceKind, mask_of, rows_of

FEATURES = "features"  # the encoder's input, and the field of a JSON line


class Features:
    """See `sources.SourceKind`. A source is an array [S,W]."""

    name: ClassVar[str] = "features"
    field: ClassVar[str] = FEATURES
    has_ids: ClassVar[bool] = False

    def __init__(self, bundle: Bundle) -> None:
        source = bundle.manifest["source"]
        if "n_features" not in source:
            raise BundleError(f"{bundle.path}: the manifest lacks source.n_features; export the module again")
        self.width, self._least = int(source["n_features"]), int(source.get("min_length", 1))
        self._limit = bundle.max_source_length

    def from_json(self, value: Any) -> Any:
        """A list of lists of numbers, or the name of a .npy file."""
        if not isinstance(value, str):
            return value
        try:
            return np.load(value, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{value}: can't be read as a .npy file ({str(error)[:200]}); restore it") from error

    def check(self, source: Any, *, truncate: bool = False, tokenizer: Tokenizer | None = None) -> Floats:
        try:
            found: Floats = np.ascontiguousarray(source, dtype=np.float32)
        except (TypeError, ValueError):
            raise InputError(f"the source is no array of numbers; expected features [S, {self.width}]") from None
        if found.ndim != 2 or found.shape[1] != self.width:
            raise InputError(f"the source has the shape {list(np.shape(source))}; expected features [S, {self.width}]")
        if not np.isfinite(found).all():
            raise InputError("the features hold NaN or infinity; expected numbers")
        if len(found) < self._least:
            raise InputError(f"the source has {len(found)} vectors, but the model takes {self._least} or more")
        if self._limit is not None and len(found) > self._limit:
            if not truncate:
                raise InputError(
                    f"the source has {len(found)} vectors, but the model allows {self._limit}; shorten it, or cut it "
                    "off with --truncate (truncate=True)"
                )
            found = found[: self._limit]
        return found

    def length(self, source: Floats) -> int:
        return len(source)

    def prepare(self, batch: Sequence[Floats]) -> dict[str, Any]:
        values, lengths = rows_of(batch, self.width)
        return {FEATURES: values, MASK: mask_of(lengths)}

    def ids(self, source: Floats) -> Sequence[int]:
        return ()

    def random(self, rng: np.random.Generator, length: int) -> Floats:
        """As long as asked for, or as the model needs at least."""
        found: Floats = rng.standard_normal((max(length, self._least), self.width), dtype=np.float32)
        return found

    def typical(self, rng: np.random.Generator, length: int) -> Floats:
        return self.random(rng, length)


KIND: type[SourceKind] = Features
