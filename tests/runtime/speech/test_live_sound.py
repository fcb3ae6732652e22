"""Sound from pipes and microphones, in blocks."""

from __future__ import annotations

import io
import struct
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_whisper import clip

from s2s_export.errors import InputError, MissingExtra, S2SError
from s2s_export.runtime.audio import live

SOUND = clip(1, 0.5)
SIXTEEN = (SOUND * 32768).astype("<i2")


class Trickle(io.RawIOBase):
    """Gives a few bytes at a time, as a pipe does."""

    def __init__(self, raw: bytes, n: int = 777) -> None:
        self._raw, self._n = raw, n

    def read(self, size: int = -1) -> bytes:
        found, self._raw = self._raw[: self._n], self._raw[self._n :]
        return found


def wav(data: bytes, size: int, code: int = 1, n_channels: int = 1, rate: int = 16000, bits: int = 16) -> bytes:
    body = struct.pack("<HHIIHH", code if code < 0xFF00 else 0xFFFE, n_channels, rate, 0, 0, bits)
    if code >= 0xFF00:  # extensible, with 16-bit integers inside
        body += struct.pack("<HHIH14x", 22, bits, 0, 1)
    chunks = struct.pack("<4sI", b"LIST", 3) + b"abc\0" + struct.pack("<4sI", b"fmt ", len(body)) + body
    return b"RIFF\xff\xff\xff\xffWAVE" + chunks + struct.pack("<4sI", b"data", size) + data


def read(raw: bytes, n: int = 777) -> Any:
    return np.concatenate(list(live.pipe(Trickle(raw, n))))


@pytest.mark.parametrize("n", [3, 777, 100_000])
def test_bare_samples(n: int) -> None:
    assert np.array_equal(read(SIXTEEN.tobytes(), n), SIXTEEN / np.float32(32768))
    assert len(read(SIXTEEN.tobytes() + b"x")) == len(SIXTEEN)  # half a sample


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 2 * len(SIXTEEN)])
@pytest.mark.parametrize("code", [1, 0xFFFE])
def test_wav(size: int, code: int) -> None:
    raw = wav(SIXTEEN.tobytes(), size, code)
    assert np.array_equal(read(raw), SIXTEEN / np.float32(32768))
    if 0 < size < 0xFFFFFFFF:
        assert len(read(raw + b"LIST....")) == len(SIXTEEN)


def test_wav_of_another_rate_and_two_channels() -> None:
    pytest.importorskip("soxr")
    tone = np.sin(np.arange(48000) * 2 * np.pi * 440 / 48000)
    raw = wav(np.stack([tone, tone], axis=1).astype("<f4").tobytes(), 0, 3, 2, 48000, 32)
    found = read(raw, 4001)
    assert 15000 < len(found) <= 16000  # what the resampler still holds is not waited for
    expected = np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000)
    assert np.abs(found[1000:14000] - expected[1000:14000]).max() < 0.01


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"ID3\x04" + b"\0" * 99, "begins like MP3"),
        (b"fLaC" + b"\0" * 99, "begins like FLAC"),
        (wav(b"\0" * 99, 0, bits=24), "24-bit samples of encoding 1; expected 16-bit integers or"),
        (b"RIFF\0\0\0\0WAVE", "has no samples"),
    ],
)
def test_what_is_neither(raw: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(live.pipe(Trickle(raw)))


def test_nothing_is_no_block() -> None:
    assert list(live.pipe(Trickle(b""))) == []


def test_blocks_that_wait_are_joined() -> None:
    may_go_on = threading.Event()

    def blocks() -> Any:
        yield np.zeros(1, np.float32)
        may_go_on.wait()
        yield from (np.full(2, i, np.float32) for i in range(1, 4))

    found = []
    for block in live.ahead(blocks()):
        found.append(block)
        may_go_on.set()
    assert len(found[0]) == 1 and np.concatenate(found).tolist() == [0, 1, 1, 2, 2, 3, 3]


def test_an_error_of_the_source_is_raised() -> None:
    def blocks() -> Any:
        yield np.zeros(1, np.float32)
        raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        list(live.ahead(blocks()))


def test_a_microphone(monkeypatch: Any) -> None:
    class PortAudioError(Exception):
        pass

    class InputStream:
        def __init__(self, *, device: Any, callback: Any, **given: Any) -> None:
            if device == "none":
                raise PortAudioError("no such device")
            assert given == {"samplerate": 16000, "channels": 1, "dtype": "float32"} and device == 3
            callback(np.ones((4, 1), np.float32), 4, None, None)
            callback(np.zeros((2, 1), np.float32), 2, None, None)

        def __enter__(self) -> None: ...
        def __exit__(self, *error: Any) -> None: ...

    monkeypatch.setitem(
        sys.modules, "sounddevice", SimpleNamespace(InputStream=InputStream, PortAudioError=PortAudioError)
    )
    assert next(live.microphone("3")).tolist() == [1, 1, 1, 1, 0, 0]
    with pytest.raises(S2SError, match="the microphone 'none' can't be opened"):
        next(live.microphone("none"))
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtra, match=r"s2s-export\[microphone\]"):
        next(live.microphone())
