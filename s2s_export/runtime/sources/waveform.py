"""Sound, as samples at 16 kHz: sources of models that begin with convolutions of the waveform.

The encoder's inputs are `input_values` [B,W] float32 (W samples, zeros behind a shorter clip), `n_frames` [B] int64
(how many frames of the first convolution are of a clip and not of what fills it up), and `source_mask` [B,S].
manifest.json has the convolutions in `source`, each as [width, stride]; none of them is padded, so that they say how
many frames a clip has. `source.is_normalized` says whether clips are brought to zero mean and unit variance. Whatever
clips are in a batch, each gives what it gives alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...bundle import Bundle
from ...errors import BundleError, InputError
from ..audio import files
from ..audio.log_mel import SAMPLE_RATE
from ..decoding.state import Floats
from ..text import Tokenizer
from . import MASK, SourceKind, mask_of

INPUT_VALUES = "input_values"  # the encoder's inputs
N_FRAMES = "n_frames"
FIELD = "audio"


class Waveform:
    """See `sources.SourceKind`. A source is samples [W] at 16 kHz."""

    name: ClassVar[str] = "waveform"
    field: ClassVar[str] = FIELD
    has_ids: ClassVar[bool] = False

    def __init__(self, bundle: Bundle) -> None:
        self._convolutions: list[list[int]] = bundle.manifest["source"].get("convolutions") or []
        if not self._convolutions or any(len(pair) != 2 for pair in self._convolutions):
            raise BundleError(f"{bundle.path}: the manifest lacks source.convolutions; export the checkpoint again")
        self._is_normalized = bool(bundle.manifest["source"].get("is_normalized"))
        self._limit = bundle.max_source_length

    def n_samples(self, length: int) -> int:
        """The fewest samples that give S positions."""
        for width, stride in reversed(self._convolutions):
            length = (length - 1) * stride + width
        return length

    def _frames(self, n_samples: int) -> list[int]:
        """How many frames each convolution gives; fewer than 1 where the clip is too short."""
        found = []
        for width, stride in self._convolutions:
            n_samples = (n_samples - width) // stride + 1
            found.append(n_samples)
        return found

    def from_json(self, value: Any) -> str:
        """A file's name."""
        if not isinstance(value, str) or not value:
            raise InputError(f"'{FIELD}' is {type(value).__name__}; expected the name of an audio file")
        return value

    def check(self, source: Any, *, truncate: bool = False, tokenizer: Tokenizer | None = None) -> Floats:
        """source: whatever `audio.files.read` takes."""
        samples = files.read(source)
        if min(self._frames(len(samples))) < 1:
            least = self.n_samples(1)
            raise InputError(f"the audio has {len(samples)} samples at 16 kHz; expected at least {least}")
        if self._limit is not None and self.length(samples) > self._limit:
            most = self.n_samples(self._limit + 1) - 1
            if not truncate:
                raise InputError(
                    f"the audio has {len(samples) / SAMPLE_RATE:.1f} s, but the model takes {most / SAMPLE_RATE:.1f} s "
                    "at once; cut it into clips or allow truncation"
                )
            samples = samples[:most]
        return samples

    def length(self, source: Floats) -> int:
        return self._frames(len(source))[-1]

    def normalized(self, source: Floats) -> Floats:
        """With zero mean and unit variance where the manifest says so, computed as Wav2Vec2FeatureExtractor does it."""
        if not self._is_normalized:
            return source
        found: Floats = (source - source.mean()) / np.sqrt(source.var() + np.float32(1e-7))
        return found

    def prepare(self, batch: Sequence[Floats]) -> dict[str, Any]:
        values = np.zeros((len(batch), max(len(samples) for samples in batch)), dtype=np.float32)
        for row, samples in zip(values, batch, strict=True):
            row[: len(samples)] = self.normalized(samples)
        frames = np.array([self._frames(len(samples)) for samples in batch], dtype=np.int64)
        return {INPUT_VALUES: values, N_FRAMES: frames[:, 0].copy(), MASK: mask_of(frames[:, -1])}

    def ids(self, source: Floats) -> Sequence[int]:
        return ()

    def random(self, rng: np.random.Generator, length: int) -> Floats:
        """Noise under a slow envelope."""
        n = self.n_samples(max(1, length))
        loudness = np.abs(np.sin(np.linspace(0, rng.uniform(5, 40), n)))
        found: Floats = (0.1 * loudness * rng.standard_normal(n)).astype(np.float32)
        return found

    def typical(self, rng: np.random.Generator, length: int) -> Floats:
        return self.random(rng, length)


KIND: type[SourceKind] = Waveform
