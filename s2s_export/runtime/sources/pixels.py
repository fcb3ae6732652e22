"""Pictures: sources of models that read pixels.

The encoder's inputs are `pixel_values` [B,channels,height,width] float32, of one size for all pictures, and
`source_mask` [B,S], all ones: S is how many states the encoder computes. manifest.json has the sizes in `source`, and
what is done to a picture in `source.preprocessing` (pictures/steps.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...bundle import Bundle
from ...errors import BundleError, InputError
from ..decoding.state import Floats
from ..pictures import files, steps
from ..text import Tokenizer
from . import MASK, SourceKind

PIXEL_VALUES = "pixel_values"  # the encoder's input
FIELD = "image"
SIZES = ("n_channels", "height", "width", "n_positions")


class PixelValues:
    """See `sources.SourceKind`. A source is an array [channels,height,width]: uint8 before it is scaled, or the
    encoder's float32.

    shape: (channels, height, width). preprocessing: as the manifest has it, or None. fixed_length: S of all pictures.
    """

    name: ClassVar[str] = "pixels"
    field: ClassVar[str] = FIELD
    has_ids: ClassVar[bool] = False

    def __init__(self, bundle: Bundle) -> None:
        source = bundle.manifest["source"]
        if missing := [key for key in SIZES if key not in source]:
            raise BundleError(f"{bundle.path}: the manifest lacks source.{missing[0]}; export the checkpoint again")
        self.shape = tuple(int(source[name]) for name in SIZES[:3])
        self.fixed_length = int(source["n_positions"])
        self.preprocessing: dict[str, Any] | None = source.get("preprocessing")
        if reason := steps.CHECK(self.preprocessing, "source.preprocessing"):
            raise BundleError(f"{bundle.path}: in the manifest {reason}; export the checkpoint again")
        unknown = [s["name"] for s in (self.preprocessing or {"steps": []})["steps"] if s["name"] not in steps.STEPS]
        if unknown:
            raise BundleError(
                f"{bundle.path}: its pictures need the step '{unknown[0]}', but this version knows "
                f"{', '.join(sorted(steps.STEPS))}; upgrade s2s-export"
            )

    def from_json(self, value: Any) -> str:
        """A file's name."""
        if not isinstance(value, str) or not value:
            raise InputError(f"'{FIELD}' is {type(value).__name__}; expected the name of a picture's file")
        return value

    def check(self, source: Any, *, truncate: bool = False, tokenizer: Tokenizer | None = None) -> Any:
        """source: whatever `pictures.files.read` takes, or pixel values as the encoder takes them. Nothing is cut."""
        if isinstance(source, np.ndarray) and source.shape == self.shape and source.dtype.kind in "fu":
            if source.dtype == np.uint8 and self.preprocessing is not None:
                return source
            if not np.isfinite(source).all():
                raise InputError("the pixel values hold NaN or infinity; expected numbers")
            return np.ascontiguousarray(source, dtype=np.float32)
        if self.preprocessing is None:
            raise InputError(
                f"the checkpoint had no preprocessor_config.json, so that a picture can't be prepared; expected an "
                f"array {list(self.shape)} of pixel values"
            )
        found = steps.resized(files.read(source), self.preprocessing)
        if found.shape != self.shape:
            raise InputError(
                f"the picture has the shape {list(found.shape)} after the model's preprocessing, which keeps its "
                f"proportions; expected {list(self.shape)}; cut or fill it to that form"
            )
        return found

    def length(self, source: Any) -> int:
        return self.fixed_length

    def pixel_values(self, source: Any) -> Floats:
        """[channels,height,width], as the encoder takes it."""
        if source.dtype == np.uint8 and self.preprocessing is not None:
            return steps.normalized(source, self.preprocessing)
        found: Floats = source
        return found

    def prepare(self, batch: Sequence[Any]) -> dict[str, Any]:
        mask = np.ones((len(batch), self.fixed_length), dtype=np.int64)
        return {PIXEL_VALUES: np.stack([self.pixel_values(source) for source in batch]), MASK: mask}

    def ids(self, source: Any) -> Sequence[int]:
        return ()

    def random(self, rng: np.random.Generator, length: int) -> Floats:
        """Noise over a slow gradient, about as large as normalized pixels. All pictures have the same length."""
        channels, height, width = self.shape
        slope = np.linspace(-1, 1, height)[:, None] * rng.uniform(-1, 1) + np.linspace(-1, 1, width) * rng.uniform(
            -1, 1
        )
        found: Floats = (slope + 0.5 * rng.standard_normal((channels, height, width))).astype(np.float32)
        return found

    def typical(self, rng: np.random.Generator, length: int) -> Floats:
        return self.random(rng, length)


KIND: type[SourceKind] = PixelValues
