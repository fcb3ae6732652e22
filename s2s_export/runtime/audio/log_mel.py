"""Log-mel features of Whisper (2212.04356, section 2.2), as `WhisperFeatureExtractor` of transformers computes them.

Letters: L samples, T frames of 10 ms, F mel bands.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from ..decoding.state import Floats

SAMPLE_RATE = 16_000  # hertz
N_FFT = 400  # samples: a window of 25 ms
HOP = 160  # samples: 10 ms
HIGHEST = 8_000.0  # hertz
LEAST_POWER = 1e-10
RANGE = 8.0  # in powers of ten below the loudest frame; what is quieter counts as that
FRAMES_AT_ONCE = 3000  # bounds the memory that long audio takes


def log_mel(samples: Floats, n_bands: int) -> Floats:
    """samples [L] at 16 kHz, from -1 to 1 -> [F, L // 160].

    The range reaches down from the loudest value of the whole input, so features of a part differ from a part of the
    features. In float32 throughout: the largest difference from transformers is 4e-5, in bands that are nearly silent.
    """
    filters, window = mel_filters(n_bands), _window()
    padded = np.pad(samples.astype(np.float32, copy=False), N_FFT // 2, mode="reflect")
    n_frames = (len(padded) - N_FFT) // HOP
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][:n_frames]
    out = np.empty((n_bands, n_frames), np.float32)
    for first in range(0, n_frames, FRAMES_AT_ONCE):
        spectrum = np.fft.rfft(frames[first : first + FRAMES_AT_ONCE] * window, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        out[:, first : first + FRAMES_AT_ONCE] = np.log10(np.maximum(power @ filters, LEAST_POWER)).T
    if n_frames:
        np.maximum(out, out.max() - RANGE, out=out)
    return (out + 4.0) / 4.0


@functools.lru_cache(maxsize=4)
def mel_filters(n_bands: int) -> Floats:
    """Slaney's triangular filters with Slaney's normalisation, 0 to 8000 Hz: [201, F]. Those of transformers."""
    hertz = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    lowest, highest = _to_mel(np.array([0.0, HIGHEST])).tolist()
    edges = _to_hertz(np.linspace(lowest, highest, n_bands + 2))
    rising = (hertz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))
    found: Floats = filters.astype(np.float32)
    return found


def _to_mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear up to 1 kHz, logarithmic above."""
    above = 15 + np.log(np.maximum(hertz, 1e-9) / 1000) * 27 / np.log(6.4)
    return np.where(hertz < 1000, 3 * hertz / 200, above)


def _to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))


@functools.lru_cache(maxsize=1)
def _window() -> Floats:
    """A periodic Hann window."""
    window: Floats = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
    return window
