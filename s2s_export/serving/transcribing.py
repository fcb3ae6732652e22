"""Speech for the formats: the sound in a request's body becomes a transcript.

Sound is what came with the request alone, never a file that a request names. A transcription runs in a thread of its
own, as many at a time as the model has workers; when its client leaves or its time is up it ends, and gives its place
back, with the segment that it is at.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

from ..errors import InputError
from ..runtime.speech.formats import Transcript
from ..runtime.speech.segments import Segment
from . import hearing, telemetry
from .failures import Refused
from .jobs import Overloaded
from .models import Model, Models

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
        self._transcript: Transcript | None = None

    def so_far(self) -> Transcript:
        assert self._transcript is not None
        return self._transcript

    async def segments(self) -> AsyncGenerator[Segment, None]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        release = await _turn(self._model)
        span = telemetry.begin("transcribe")

        def told(value: Any) -> None:
            if hearing.is_last(value):
                release()  # not before: one whose client left is at its segment still
            arrived.put_nowait(value)

        def tell(value: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(told, value)

        try:
            stop = self._model.batcher.transcribe(self._sound, self._options, tell)
        except BaseException:
            release()
            raise
        try:
            while not hearing.is_last(value := await arrived.get()):
                yield value
            if isinstance(value, BaseException):
                raise value
            self._transcript = value
        finally:
            stop()
            span.end()


async def _turn(model: Model) -> Callable[[], None]:
    """Wait until the model has a worker for one more transcription. Returns what gives it back.

    Raises Overloaded where too many wait.
    """
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
        with telemetry.part("queue"):
            await model.transcribing.acquire()
    finally:
        model.n_waiting_to_transcribe -= 1
    return model.transcribing.release
