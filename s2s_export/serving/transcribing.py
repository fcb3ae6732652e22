"""Speech for the formats: the sound in a request's body becomes a transcript.

Sound is what came with the request alone, never a file that a request names. A transcription runs in a thread of its
own, as many at a time as the model has workers; it ends with the segment that it is at when its client leaves or its
time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

from ..errors import InputError
from ..runtime.speech.formats import Transcript
from ..runtime.speech.segments import Segment
from . import telemetry
from .failures import Refused
from .jobs import Overloaded
from .models import Model, Models
from .processes import Processes

MOST_WAITING = 8  # transcriptions that wait, for each that runs
ANY = "whisper-1"  # the name that OpenAI's clients give: the first model that transcribes


def model_named(models: Models, name: str | None) -> Model:
    """The speech model of a name. Raises Refused, and InputError for one that reads no sound."""
    speaking = [model for model in models if model.session.speech is not None]
    if not speaking:
        raise Refused(501, "no model of this server transcribes speech; serve a bundle of Whisper", "not_supported")
    model = speaking[0] if name in (None, ANY) and name not in models.by_name else models.named(name)
    if model.session.speech is None:
        raise InputError(f"the model '{model.name}' reads no sound; name another one")
    return model


async def transcribe(model: Model, sound: Any, options: dict[str, Any]) -> Transcript:
    """All of it. sound: a file's bytes, or (samples, rate).

    Raises Refused, Overloaded, and what `Session.transcribe` raises.
    """
    work = _Work(model, sound, options)
    async for _ in work.segments():
        pass
    return work.so_far()


async def stream(model: Model, sound: Any, options: dict[str, Any]) -> AsyncGenerator[Segment | Transcript, None]:
    """Segments as they are ready, and the whole at the end."""
    work = _Work(model, sound, options)
    async with contextlib.aclosing(work.segments()) as segments:
        async for segment in segments:
            yield segment
    yield work.so_far()


class _Work:
    """One transcription."""

    def __init__(self, model: Model, sound: Any, options: dict[str, Any]) -> None:
        if not sound:
            raise Refused(400, "the request has no sound; expected an audio file")
        self._model = model
        self._sound = sound
        self._options = options
        self._so_far: Callable[[], Transcript] | None = None
        self._stop = threading.Event()

    def so_far(self) -> Transcript:
        assert self._so_far is not None
        return self._so_far()

    async def segments(self) -> AsyncGenerator[Segment, None]:
        waiting = telemetry.begin("queue")
        async with _turn(self._model, waiting):
            span = telemetry.begin("transcribe")
            batcher = self._model.batcher
            parts = self._elsewhere(batcher) if isinstance(batcher, Processes) else self._here()
            try:
                async with contextlib.aclosing(parts):
                    async for segment in parts:
                        yield segment
            finally:
                span.end()

    async def _here(self) -> AsyncGenerator[Segment, None]:
        try:
            found = await asyncio.to_thread(self._model.session.transcribe, self._sound, **self._options)
            self._so_far = found.so_far
            while (segment := await asyncio.to_thread(self._next, found)) is not None:
                yield segment
        finally:
            self._stop.set()

    def _next(self, found: Iterator[Segment]) -> Segment | None:
        return None if self._stop.is_set() else next(found, None)

    async def _elsewhere(self, processes: Processes) -> AsyncGenerator[Segment, None]:
        stop, heard = await asyncio.to_thread(processes.transcribe, self._sound, self._options)
        try:
            while not isinstance(value := await asyncio.to_thread(heard.get), Transcript):
                if isinstance(value, BaseException):
                    raise value
                yield value
            self._so_far = lambda: value
        finally:
            stop()


@contextlib.asynccontextmanager
async def _turn(model: Model, waiting: telemetry.Nothing) -> AsyncIterator[None]:
    """Waits until the model has a worker for one more transcription. Raises Overloaded where too many wait."""
    if model.transcribing is None:
        model.transcribing = asyncio.Semaphore(model.batcher.workers)
    if model.n_waiting_to_transcribe >= MOST_WAITING * model.batcher.workers:
        raise Overloaded(
            f"{model.n_waiting_to_transcribe} transcriptions are waiting, and there is no room for more; send it again "
            "later",
            5.0,
        )
    model.n_waiting_to_transcribe += 1
    try:
        await model.transcribing.acquire()
    finally:
        waiting.end()
        model.n_waiting_to_transcribe -= 1
    try:
        yield
    finally:
        model.transcribing.release()
