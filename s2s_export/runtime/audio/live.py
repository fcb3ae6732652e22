"""Sound that is still coming, in blocks of samples [n] at 16 kHz: from a pipe, or from a microphone.

A pipe holds a WAV stream (16-bit or 32-bit float samples, any rate and channels, as `ffmpeg -f wav -` writes it), or
bare samples: 16 bit, little endian, 16 kHz, one channel (`-f s16le -ar 16000 -ac 1`).
"""

from __future__ import annotations

import queue
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from ...errors import InputError, MissingExtra, S2SError
from ..decoding.state import Floats
from .files import to_mono
from .log_mel import SAMPLE_RATE

BYTES = 1 << 16  # that are asked for at once; a pipe gives what it has
MOST_WAITING = 8.0  # seconds that are read ahead of who transcribes; then whoever writes to the pipe waits
ADVICE = "send WAV, or bare samples: ffmpeg -i INPUT -f s16le -ar 16000 -ac 1 -"
OTHERS = {b"ID3": "MP3", b"\xff\xfb": "MP3", b"fLaC": "FLAC", b"OggS": "Ogg", b"\x1aE\xdf\xa3": "webm"}
SIZE_UNKNOWN = 0xFFFFF000  # of the data: from here on, or 0, the writer did not know it
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # codes of WAV's encodings
DTYPES = {(PCM, 16): "<i2", (FLOAT, 32): "<f4"}


def pipe(stream: BinaryIO) -> Iterator[Floats]:
    """Blocks as they come, until the stream ends. Raises InputError for what is neither WAV nor bare samples."""
    reader = _Reader(stream)
    head = reader.peek(4)
    if head == b"RIFF":
        rate, n_channels, dtype, n_bytes = _header(reader)
    else:
        name = next((name for magic, name in OTHERS.items() if head.startswith(magic)), None)
        if name is not None:
            raise InputError(f"standard input begins like {name}, which can't be read before its end; {ADVICE}")
        rate, n_channels, dtype, n_bytes = SAMPLE_RATE, 1, "<i2", None
    width = np.dtype(dtype).itemsize * n_channels
    convert = _converter(rate)
    for raw in reader.rest(width, n_bytes):
        samples = to_mono(np.frombuffer(raw, dtype).reshape(-1, n_channels), SAMPLE_RATE, "standard input")
        if len(found := convert(samples)):
            yield found


class _Reader:
    """A stream of bytes, read as they come. Not through Python's buffer: it waits until it is full."""

    def __init__(self, stream: BinaryIO) -> None:
        raw = getattr(stream, "raw", stream)
        self._read: Callable[[int], bytes | None] = raw.read
        self._held = b""

    def peek(self, n: int) -> bytes:
        """The next n bytes, fewer at the end."""
        while len(self._held) < n and (more := self._read(BYTES)):
            self._held += more
        return self._held[:n]

    def take(self, n: int) -> bytes:
        found = self.peek(n)
        self._held = self._held[n:]
        return found

    def rest(self, width: int, most: int | None) -> Iterator[bytes]:
        """All that follows, up to `most` bytes, in whole pieces of `width` bytes."""
        left = float("inf") if most is None else most
        while left >= width:
            self.peek(width)
            n = int(min(len(self._held), left)) // width * width
            if not n:
                return
            left -= n
            yield self.take(n)


def _header(reader: _Reader) -> tuple[int, int, str, int | None]:
    """Rate, channels, type of a sample, and bytes of a WAV stream, which is read up to its first sample."""
    reader.take(12)
    found: tuple[int, int, str] | None = None
    while len(head := reader.take(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"data" and found is not None:
            return *found, size if 0 < size < SIZE_UNKNOWN else None
        if name == b"fmt " and 16 <= size <= 64:
            code, n_channels, rate, _, _, bits = struct.unpack("<HHIIHH", (body := reader.take(size))[:16])
            if code == EXTENSIBLE and size >= 26:
                code = struct.unpack("<H", body[24:26])[0]
            if (code, bits) not in DTYPES or not n_channels or not rate:
                raise InputError(
                    f"standard input is WAV with {bits}-bit samples of encoding {code}; expected 16-bit integers or "
                    f"32-bit floats; {ADVICE}"
                )
            found = rate, n_channels, DTYPES[code, bits]
        else:
            reader.take(size + size % 2)
    raise InputError(f"standard input begins like WAV and has no samples; {ADVICE}")


def _converter(rate: float) -> Callable[[Floats], Floats]:
    """Blocks at a rate to blocks at 16 kHz."""
    if rate == SAMPLE_RATE:
        return lambda samples: samples
    try:
        import soxr
    except ImportError:
        raise MissingExtra("soxr", "audio", f"audio of {rate:g} Hz, which is resampled to 16000,") from None
    stream: Any = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    return lambda samples: np.asarray(stream.resample_chunk(samples), np.float32)


def ahead(blocks: Iterable[Floats]) -> Iterator[Floats]:
    """The same blocks, read by a thread; those that wait are joined, so that who is slow gets longer ones."""
    waiting: queue.Queue[Floats | BaseException | None] = queue.Queue()
    room = threading.Semaphore(max(1, int(MOST_WAITING * SAMPLE_RATE * 2 / BYTES)))

    def read() -> None:
        last: BaseException | None = None
        try:
            for block in blocks:
                room.acquire()
                waiting.put(block)
        except BaseException as error:  # is raised where the blocks are wanted
            last = error
        waiting.put(last)

    threading.Thread(target=read, name="s2s-audio", daemon=True).start()
    while isinstance(block := waiting.get(), np.ndarray):
        parts = [block]
        while not waiting.empty() and isinstance(waiting.queue[0], np.ndarray):
            parts.append(waiting.get())  # type: ignore[arg-type]
        for _ in parts:
            room.release()
        yield np.concatenate(parts)
    if block is not None:
        raise block


def microphone(device: str | None = None) -> Iterator[Floats]:
    """Blocks of what a microphone hears, without end. device: its number or a part of its name; None for the usual one.

    Raises MissingExtra, and S2SError where there is no such microphone.
    """
    try:
        import sounddevice
    except ImportError:
        raise MissingExtra("sounddevice", "microphone", "listening to a microphone") from None
    except OSError as error:  # the package is there, and the library that it calls is not
        raise S2SError(
            f"the microphone can't be opened ({error}); install PortAudio: apt install libportaudio2"
        ) from None
    heard: queue.Queue[Floats] = queue.Queue()

    def keep(block: Any, n_frames: int, when: Any, status: Any) -> None:
        heard.put(block[:, 0].copy())

    chosen = int(device) if device is not None and device.isdigit() else device
    try:
        with sounddevice.InputStream(samplerate=SAMPLE_RATE, channels=1, dtype="float32", device=chosen, callback=keep):
            while True:
                parts = [heard.get()]
                while not heard.empty():
                    parts.append(heard.get())
                yield np.concatenate(parts)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise S2SError(
            f"the microphone {'' if device is None else repr(device) + ' '}can't be opened ({error}); "
            "python -m sounddevice lists those there are"
        ) from None
