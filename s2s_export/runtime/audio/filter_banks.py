"""Kaldi's log-mel filter banks of speech at 16 kHz, in numpy: what transformers' Speech2TextFeatureExtractor computes.

Frames of 25 ms, 10 ms apart, without padding at the ends; the sum over a frame's samples and pre-emphasis as in Kaldi's
`compute-fbank-feats`, for samples in the range of 16-bit integers.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ..decoding.state import Floats
from .log_mel import SAMPLE_RATE

FRAME, HOP, N_FFT = 400, 160, 512  # samples
LEAST_FREQUENCY = 20.0  # hertz
PREEMPHASIS = 0.97
FLOOR = 1.192092955078125e-07  # of the energies, transformers' own
FULL_SCALE = 2.0**15


def n_frames(n_samples: int) -> int:
    return 1 + (n_samples - FRAME) // HOP


def filter_banks(samples: Floats, n_bands: int) -> Floats:
    """samples [L], at least one frame -> features [T,F]"""
    starts = HOP * np.arange(n_frames(len(samples)))
    frames = (samples * np.float32(FULL_SCALE)).astype(np.float64)[starts[:, None] + np.arange(FRAME)]
    frames -= frames.mean(axis=1, keepdims=True)
    emphasized = frames.copy()
    emphasized[:, 1:] -= PREEMPHASIS * frames[:, :-1]
    emphasized[:, 0] *= 1 - PREEMPHASIS
    emphasized *= np.hanning(FRAME) ** 0.85  # Povey's window
    spectrum = np.fft.rfft(emphasized, N_FFT).astype(np.complex64)
    energies = np.abs(spectrum).astype(np.float64) ** 2 @ _filters(n_bands)
    found: Floats = np.log(np.maximum(FLOOR, energies)).astype(np.float32)
    return found


@cache
def _filters(n_bands: int) -> np.typing.NDArray[np.float64]:
    """[N_FFT / 2 + 1, F] triangles that are evenly spaced in mel."""
    bins = _mel(np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT)
    centers = np.linspace(_mel(np.array(LEAST_FREQUENCY)), _mel(np.array(SAMPLE_RATE / 2)), n_bands + 2)
    slopes = centers[None] - bins[:, None]
    widths = np.diff(centers)
    return np.maximum(0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))


def _mel(frequency: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
    found: np.typing.NDArray[np.float64] = 1127.0 * np.log(1.0 + frequency / 700.0)
    return found
