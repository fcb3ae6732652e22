"""Sound, as log-mel features of a window: sources of Whisper.

The encoder's inputs are `input_features` [B,F,T] float32 (F mel bands, T frames of 10 ms; manifest.json has both sizes
in `source`), and `source_mask` [B,S], all ones: S is T / 2, the positions after a convolution with stride 2, and the
encoder looks at all of a window, silence behind a short clip included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...bundle import Bundle
from ...errors import BundleError, InputError
from ..audio import files
from ..audio.log_mel import HOP, SAMPLE_RATE, log_mel
from ..decoding.state import Floats
from ..text import Tokenizer
from . import MASK, SourceKind

INPUT_FEATURES = "input_features"  # the encoder's input
FIELD = "audio"
STRIDE = 2  # frames of a position


class AudioFeatures:
    """See `sources.SourceKind`. A source is samples [L] at 16 kHz, or the features [F,T] of one window.

    n_bands, n_frames: F and T of a window. fixed_length: S of all windows.
    """

    name: ClassVar[str] = "audio_features"
    field: ClassVar[str] = FIELD
    has_ids: ClassVar[bool] = False

    def __init__(self, bundle: Bundle) -> None:
        source = bundle.manifest["source"]
        missing = [key for key in ("n_bands", "n_frames") if key not in source]
        if missing:
            raise BundleError(f"{bundle.path}: the manifest lacks source.{missing[0]}; export the checkpoint again")
        self.n_bands, self.n_frames = int(source["n_bands"]), int(source["n_frames"])
        self.n_samples = self.n_frames * HOP
        self.fixed_length = self.n_frames // STRIDE

    def from_json(self, value: Any) -> str:
        """A file's name."""
        if not isinstance(value, str) or not value:
            raise InputError(f"'{FIELD}' is {type(value).__name__}; expected the name of an audio file")
        return value

    def check(self, source: Any, *, truncate: bool = False, tokenizer: Tokenizer | None = None) -> Floats:
        """source: whatever `audio.files.read` takes, or features. truncate: keep the first window of longer sound."""
        if isinstance(source, np.ndarray) and source.shape == (self.n_bands, self.n_frames):
            if not np.isfinite(source).all():
                raise InputError("the features hold NaN or infinity; expected numbers")
            return np.ascontiguousarray(source, dtype=np.float32)
        samples = files.read(source)
        return samples[: self.n_samples] if truncate else samples

    def length(self, source: Floats) -> int:
        return self.fixed_length

    def features(self, source: Floats) -> Floats:
        """[F,T] of one window. A clip is filled with silence before its features are computed.

        Raises InputError for sound that is longer than a window.
        """
        if source.ndim == 2:
            return source
        if len(source) > self.n_samples:
            raise InputError(
                f"the audio has {len(source) / SAMPLE_RATE:.1f} s, but a window of the model has "
                f"{self.n_samples / SAMPLE_RATE:g} s; allow truncation, or transcribe it"
            )
        return log_mel(np.pad(source, (0, self.n_samples - len(source))), self.n_bands)

    def prepare(self, batch: Sequence[Floats]) -> dict[str, Any]:
        features = np.stack([self.features(source) for source in batch])
        mask = np.ones((len(batch), self.fixed_length), dtype=np.int64)
        return {INPUT_FEATURES: features, MASK: mask}

    def ids(self, source: Floats) -> Sequence[int]:
        return ()

    def random(self, rng: np.random.Generator, length: int) -> Floats:
        """Noise under a slow envelope. All windows have the same length."""
        n = self.n_samples
        loudness = np.abs(np.sin(np.linspace(0, rng.uniform(5, 40), n)))
        found: Floats = (0.1 * loudness * rng.standard_normal(n)).astype(np.float32)
        return found

    def typical(self, rng: np.random.Generator, length: int) -> Floats:
        return self.random(rng, length)


KIND: type[SourceKind] = AudioFeatures
