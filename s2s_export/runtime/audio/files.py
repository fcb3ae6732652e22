"""Sound of any kind -> samples at 16 kHz: one float32 array [L] from -1 to 1, channels averaged.

A 16-bit WAV file at 16 kHz needs numpy alone. Others are read by soundfile (wav, flac, mp3, ogg, opus) where it is
installed, else, or where it can't, by PyAV (m4a, webm, video); soxr resamples. Samples that have 16 kHz are never
changed: exactness is promised for them.
"""

from __future__ import annotations

import io
import os
import wave
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...errors import InputError, MissingExtra
from ..decoding.state import Floats
from .log_mel import SAMPLE_RATE

Audio: TypeAlias = Any  # a file's name, a file's bytes, samples at 16 kHz, or (samples, rate in hertz)
INSTALL = "pip install 's2s-export[audio]'"
INSTALL_AV = "pip install av"
BLOCK = 1 << 20  # samples that are converted at once
LEAST_RATE, MOST_RATE = 1_000, 1_000_000  # hertz


def read(audio: Audio) -> Floats:
    """Samples [L] at 16 kHz. A source that is an array is [L], or [L, channels]; integers are scaled to -1 to 1.

    Raises InputError for what is not sound, and MissingExtra where a library would read it.
    """
    if isinstance(audio, (str, os.PathLike)):
        path = Path(audio)
        try:
            raw = path.read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from None
        return decode(raw, str(path))
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return decode(bytes(audio), "the audio")
    samples, rate = audio if isinstance(audio, tuple) and len(audio) == 2 else (audio, SAMPLE_RATE)
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise InputError(f"the rate of the audio is {rate!r}; expected hertz, as in (samples, 44100)")
    try:
        array = np.asarray(samples)
    except (ValueError, TypeError):
        raise InputError("the audio is no array of samples; expected numbers [L], or a file's name") from None
    return to_mono(array, float(rate), "the audio")


def decode(raw: bytes, name: str) -> Floats:
    """Samples of a file's bytes; name stands in messages."""
    if not raw:
        raise InputError(f"{name}: is empty; expected an audio file")
    if raw[:4] == b"RIFF" and (found := _pcm(raw)) is not None:
        return to_mono(*found, name)
    tried: list[tuple[Any, str | None]] = []
    for reader in (_by_soundfile, _by_av):
        try:
            found = reader(raw)
        except ImportError:
            tried.append((reader, None))
            continue
        except Exception as error:  # libraries' own types
            text = str(getattr(error, "error_string", None) or error or type(error).__name__)
            tried.append((reader, text.splitlines()[0].rstrip(".")))
            continue
        return to_mono(*found, name)
    reasons = [reason for _, reason in tried if reason]
    if any(reader is _by_soundfile and reason is None for reader, reason in tried):
        raise MissingExtra("soundfile", "audio", f"reading {name}, which is no 16-bit WAV file,")
    advice = "" if len(reasons) == len(tried) else f"; if it is m4a, webm or video: {INSTALL_AV}"
    raise InputError(f"{name}: is no audio that can be read ({'; '.join(reasons)}){advice}")


def _pcm(raw: bytes) -> tuple[Any, float] | None:
    """16-bit samples [L, channels] and rate of a WAV file; None for another encoding, or one that is damaged."""
    try:
        with wave.open(io.BytesIO(raw)) as file:
            if file.getsampwidth() != 2:
                return None
            n_channels, rate = file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError):
        return None
    data = data[: len(data) // (2 * n_channels) * 2 * n_channels]  # of a file that was cut short
    return np.frombuffer(data, "<i2").reshape(-1, n_channels), rate


def _by_soundfile(raw: bytes) -> tuple[Any, float]:
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(raw), dtype="float32", always_2d=True)
    return samples, rate


def _by_av(raw: bytes) -> tuple[Any, float]:
    import av

    parts, rate = [], 0
    with av.open(io.BytesIO(raw)) as container:
        if not container.streams.audio:
            raise ValueError("it has no sound")
        for frame in container.decode(container.streams.audio[0]):
            array, rate = frame.to_ndarray(), frame.sample_rate
            if frame.format.is_packed:  # [1, L * channels]
                array = array.reshape(-1, frame.layout.nb_channels).T
            parts.append(_as_float(array).T)
    if not parts:
        raise ValueError("it has no samples")
    return np.concatenate(parts), rate


def to_mono(samples: Any, rate: float, name: str) -> Floats:
    """[L] or [L, channels] at any rate -> [L] at 16 kHz. Raises InputError for what is no sound."""
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "fiu" or samples.dtype.itemsize > 8:
        raise InputError(
            f"{name}: has shape {list(samples.shape)} of {samples.dtype}; expected numbers [samples] or "
            "[samples, channels]"
        )
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise InputError(f"{name}: has {rate:g} samples a second; expected {LEAST_RATE} to {MOST_RATE}")
    if not samples.size:
        raise InputError(f"{name}: has no samples; expected sound")
    floats = _as_float(samples)
    if not np.isfinite(floats).all():
        raise InputError(f"{name}: has samples that are NaN or infinite; expected numbers from -1 to 1")
    mono = floats.mean(axis=1, dtype=np.float32) if floats.ndim == 2 and floats.shape[1] > 1 else floats.reshape(-1)
    return np.ascontiguousarray(mono if rate == SAMPLE_RATE else _resample(mono, rate))


def _as_float(samples: Any) -> Floats:
    """Integers scaled by their type's range: an int16 sample is divided by 32768, exactly."""
    kind, bits = samples.dtype.kind, samples.dtype.itemsize * 8
    if kind == "f":
        found: Floats = samples.astype(np.float32, copy=False)
        return found
    half = np.float64(1 << (bits - 1))
    scaled: Floats = np.empty(samples.shape, np.float32)
    for i in range(0, len(samples), BLOCK):  # so that no array of float64 is as long as the sound
        values = samples[i : i + BLOCK].astype(np.float64) - (half if kind == "u" else 0.0)
        scaled[i : i + BLOCK] = values / half
    return scaled


def _resample(samples: Floats, rate: float) -> Floats:
    try:
        import soxr
    except ImportError:
        raise MissingExtra("soxr", "audio", f"audio of {rate:g} Hz, which is resampled to 16000,") from None
    found: Floats = soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32, copy=False)
    if not len(found):
        raise InputError(f"the audio has {len(samples)} samples at {rate:g} Hz; expected sound")
    return found
