"""Sound, as Kaldi's filter banks: sources of Speech2Text.

The encoder's inputs are `filter_banks` [B,W,F] float32 (W frames of 10 ms, F bands, zeros behind a shorter clip),
`n_frames` [B] int64, how many frames a clip has, and `source_mask` [B,S]. manifest.json has in `source` the number of
bands, the convolutions that follow, each as [width, stride] with width // 2 zeros at both ends, and whether every band
is brought to zero mean and unit variance over a clip. Whatever clips are in a batch, each gives what it gives alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...bundle import Bundle
from ...errors import BundleError, InputError
from ..audio import files
from ..audio.filter_banks import FRAME, HOP, filter_banks, n_frames
from ..audio.log_mel import SAMPLE_RATE
from ..decoding.state import Floats
from ..text import Tokenizer
from . import MASK, SourceKind, mask_of, rows_of

FILTER_BANKS = "filter_banks"  # the encoder's inputs
N_FRAMES = "n_frames"
FIELD = "audio"
KEYS = ("n_bands", "convolutions", "normalize_means", "normalize_vars")


class FilterBanks:
    """See `sources.SourceKind`. A source is samples [L] at 16 kHz."""

    name: ClassVar[str] = "filter_banks"
    field: ClassVar[str] = FIELD
    has_ids: ClassVar[bool] = False

    def __init__(self, bundle: Bundle) -> None:
        source = bundle.manifest["source"]
        if missing := [key for key in KEYS if key not in source]:
            raise BundleError(f"{bundle.path}: the manifest lacks source.{missing[0]}; export the checkpoint again")
        self._n_bands = int(source["n_bands"])
        self._convolutions: list[list[int]] = source["convolutions"]
        self._means, self._vars = bool(source["normalize_means"]), bool(source["normalize_vars"])
        self._limit = bundle.max_source_length

    def _positions(self, n: int) -> int:
        for width, stride in self._convolutions:
            n = (n + 2 * (width // 2) - width) // stride + 1
        return n

    def from_json(self, value: Any) -> str:
        """A file's name."""
        if not isinstance(value, str) or not value:
            raise InputError(f"'{FIELD}' is {type(value).__name__}; expected the name of an audio file")
        return value

    def check(self, source: Any, *, truncate: bool = False, tokenizer: Tokenizer | None = None) -> Floats:
        """source: whatever `audio.files.read` takes."""
        samples = files.read(source)
        if len(samples) < FRAME + HOP:
            raise InputError(f"the audio has {len(samples)} samples at 16 kHz; expected at least {FRAME + HOP}")
        if self._vars and not np.ptp(samples):
            raise InputError("the audio is silent from end to end; expected sound, whose variance can be normalized")
        if self._limit is not None and self.length(samples) > self._limit:
            if not truncate:
                raise InputError(
                    f"the audio has {len(samples) / SAMPLE_RATE:.1f} s, more than the model's {self._limit} positions; "
                    "cut it into clips or allow truncation"
                )
            most = n_frames(len(samples))
            while self._positions(most) > self._limit:
                most -= 1
            samples = samples[: FRAME + HOP * (most - 1)]
        return samples

    def length(self, source: Floats) -> int:
        return self._positions(n_frames(len(source)))

    def features(self, source: Floats) -> Floats:
        """[W,F] of one clip."""
        found = filter_banks(source, self._n_bands)
        if self._means:
            found = found - found.mean(axis=0)
        if self._vars:
            found = found / found.std(axis=0)
        return found

    def prepare(self, batch: Sequence[Floats]) -> dict[str, Any]:
        values, lengths = rows_of([self.features(samples) for samples in batch], self._n_bands)
        positions = np.array([self._positions(int(n)) for n in lengths])
        return {FILTER_BANKS: values, N_FRAMES: lengths, MASK: mask_of(positions)}

    def ids(self, source: Floats) -> Sequence[int]:
        return ()

    def random(self, rng: np.random.Generator, length: int) -> Floats:
        """Noise under a slow envelope."""
        n = 2
        while self._positions(n) < length:
            n += 1
        n_samples = FRAME + HOP * (n - 1)
        loudness = np.abs(np.sin(np.linspace(0, rng.uniform(5, 40), n_samples)))
        found: Floats = (0.1 * loudness * rng.standard_normal(n_samples)).astype(np.float32)
        return found

    def typical(self, rng: np.random.Generator, length: int) -> Floats:
        return self.random(rng, length)


KIND: type[SourceKind] = FilterBanks
