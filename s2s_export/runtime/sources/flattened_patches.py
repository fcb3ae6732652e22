"""Pictures as patches whose number follows their proportions: sources of Pix2Struct.

The encoder's inputs are `flattened_patches` [B,S,2+P] float32 (row and column of each patch, counted from 1, and its P
numbers; zeros behind a picture of fewer patches), and `source_mask` [B,S]. manifest.json has `patch_size`, P, in
`source`, and how a picture becomes patches in `source.patching` (pictures/patches.py), null where the checkpoint
did not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...bundle import Bundle
from ...errors import BundleError, InputError
from ..decoding.state import Floats
from ..pictures import files, patches
from ..text import Tokenizer
from . import MASK, SourceKind, mask_of, rows_of
from .pixels import FIELD

FLATTENED_PATCHES = "flattened_patches"  # the encoder's input
N_PLACES = 2  # numbers of a patch before its pixels


class FlattenedPatches:
    """See `sources.SourceKind`. A source is an array [S,2+P]."""

    name: ClassVar[str] = "flattened_patches"
    field: ClassVar[str] = FIELD
    has_ids: ClassVar[bool] = False

    def __init__(self, bundle: Bundle) -> None:
        source = bundle.manifest["source"]
        self.patching: dict[str, Any] | None = source.get("patching")
        if "patch_size" not in source:
            raise BundleError(f"{bundle.path}: the manifest lacks source.patch_size; export the checkpoint again")
        self.width = N_PLACES + int(source["patch_size"])
        self._limit = bundle.max_source_length

    def from_json(self, value: Any) -> str:
        """A file's name."""
        if not isinstance(value, str) or not value:
            raise InputError(f"'{FIELD}' is {type(value).__name__}; expected the name of a picture's file")
        return value

    def check(self, source: Any, *, truncate: bool = False, tokenizer: Tokenizer | None = None) -> Floats:
        """source: whatever `pictures.files.read` takes, or patches [S,2+P] of floats. Nothing is cut."""
        is_cut = isinstance(source, np.ndarray) and source.ndim == 2 and source.dtype.kind == "f"
        if is_cut and source.shape[1] == self.width:
            return self._checked(source)
        if self.patching is None:
            raise InputError(
                "the checkpoint had no preprocessor_config.json, so that a picture can't be prepared; expected "
                f"patches, an array [S, {self.width}] of floats"
            )
        if self.patching["has_header"]:
            raise InputError(
                "the model's pictures have their question drawn above them, in a font that the checkpoint does not "
                f"have; give the patches of transformers' Pix2StructProcessor, an array [S, {self.width}] of floats"
            )
        return patches.flattened(files.read(source), self.patching)

    def _checked(self, source: Any) -> Floats:
        if not np.isfinite(source).all():
            raise InputError("the patches hold NaN or infinity; expected numbers")
        found: Floats = np.ascontiguousarray(source[source.sum(axis=1) != 0], dtype=np.float32)  # others fill it up
        places = found[:, :N_PLACES]
        most = self._limit or np.inf
        if not 1 <= len(found) <= most or (places < 1).any() or (places > most).any() or (places % 1).any():
            raise InputError(
                f"the patches are {len(found)}, in rows and columns from {places.min(initial=most):g} to "
                f"{places.max(initial=0):g}; expected 1 to {self._limit} patches in whole rows and columns from 1"
            )
        return found

    def length(self, source: Floats) -> int:
        return len(source)

    def prepare(self, batch: Sequence[Floats]) -> dict[str, Any]:
        values, lengths = rows_of(batch, self.width)
        return {FLATTENED_PATCHES: values, MASK: mask_of(lengths)}

    def ids(self, source: Floats) -> Sequence[int]:
        return ()

    def random(self, rng: np.random.Generator, length: int) -> Floats:
        """Noise in rows of about as many patches as there are rows."""
        columns = max(1, round(length**0.5))
        places = np.stack(np.divmod(np.arange(length), columns), axis=1) + 1
        pixels = rng.standard_normal((length, self.width - N_PLACES))
        found: Floats = np.concatenate([places, pixels], axis=1).astype(np.float32)
        return found

    def typical(self, rng: np.random.Generator, length: int) -> Floats:
        return self.random(rng, length)


KIND: type[SourceKind] = FlattenedPatches
