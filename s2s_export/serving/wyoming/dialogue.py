"""One client of the Wyoming protocol: sound in, transcript out, as often as it likes.

    describe                                    -> info
    ping                                        -> pong
    transcribe, audio-start, audio-chunk.., audio-stop
                                                -> transcript-start, transcript-chunk.., transcript, transcript-stop

`transcribe` may name a model and a language. Chunks come as segments are ready, and `transcript` has the whole text, so
clients that know no streams read that alone. What is wrong is an `error` event with one sentence and a code; the client
may go on, but for bytes that are no event. Events of other types are passed over, as the protocol asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import S2SError, is_failure
from ...runtime.speech import languages
from ...runtime.speech.formats import Transcript
from ...version import __version__
from .. import transcribing
from ..calls import State
from ..failures import Failure, Refused, failure_of
from ..models import Model
from . import events
from .events import Event

log = logging.getLogger("s2s.serving")
ROUTE = "wyoming"
IDLE = 600.0  # seconds that a client may stay without a request
DTYPES = {1: "u1", 2: "<i2", 4: "<i4"}  # of samples, by their bytes
MADE_BY = {"name": "s2s_export", "url": "https://pypi.org/project/s2s-export/"}
Format = tuple[int, int, int]  # hertz, bytes of a sample, channels


class Dialogue:
    """is_last: whether it ends with the transcript that is under way."""

    def __init__(self, state: State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.is_last = False
        self._is_transcribing = False
        self._state = state
        self._reader = reader
        self._writer = writer
        self._ahead: asyncio.Task[Event | None] | None = None  # reads the next event while there is work
        self._forget()

    def _forget(self) -> None:
        self._asked: Mapping[str, Any] = {}
        self._format: Format | None = None
        self._sound: list[bytes] = []
        self._n_bytes = 0
        self._is_refused = False  # sound that was refused is passed over to its end

    @property
    def is_busy(self) -> bool:
        """Whether sound arrives or is transcribed."""
        return self._is_transcribing or self._format is not None

    async def run(self) -> None:
        """Until the client leaves, sends what is no event, or sends nothing for too long."""
        try:
            while (event := await self._next()) is not None:
                await self._answer(event)
                await self._writer.drain()
                if self.is_last and not self.is_busy:
                    return
        except events.Malformed as error:
            self._tell(failure_of(Refused(400, str(error))))
        except asyncio.TimeoutError:
            self._tell(failure_of(Refused(408, "nothing arrived for too long; send sound faster, or connect again")))
        except ConnectionError:
            pass
        finally:
            if self._ahead is not None:
                self._ahead.cancel()
            with contextlib.suppress(OSError):
                self._writer.close()

    async def _next(self) -> Event | None:
        reading = self._ahead or asyncio.ensure_future(events.read(self._reader))
        self._ahead = None
        return await asyncio.wait_for(reading, self._state.limits.body_timeout if self._format else IDLE)

    async def _answer(self, event: Event) -> None:
        data = event.data
        try:
            if event.type == "describe":
                events.write(self._writer, "info", info(self._state))
            elif event.type == "ping":
                events.write(self._writer, "pong", {"text": data["text"]} if "text" in data else None)
            elif event.type == "transcribe":
                self._forget()
                self._asked = data
            elif event.type in ("audio-start", "audio-chunk"):
                self._take(event)
            elif event.type == "audio-stop":
                await self._transcribe()
        except S2SError as error:
            self._is_refused = self._format is not None
            self._sound, self._n_bytes = [], 0
            self._tell(failure_of(error))

    def _take(self, event: Event) -> None:
        """Keep sound. Raises Refused."""
        if self._is_refused:
            return
        found = _format(event.data)
        if self._format is not None and found != self._format:
            raise Refused(400, f"sound of {found} follows {self._format} (rate, width, channels); expected one of them")
        self._format = found
        self._n_bytes += len(event.payload)
        if self._n_bytes > self._state.limits.max_audio:
            raise Refused(
                413, f"the sound is larger than the {self._state.limits.max_audio} bytes that this server takes; send "
                "it in parts",
            )  # fmt: skip
        self._sound.append(event.payload)

    async def _transcribe(self) -> None:
        asked, form, sound = self._asked, self._format, b"".join(self._sound)
        is_refused = self._is_refused
        self._forget()
        if is_refused:
            return
        if form is None or not sound:
            raise Refused(400, "there was no sound before 'audio-stop'; expected 'audio-chunk' events")
        begin, status = time.monotonic(), 200
        work = asyncio.ensure_future(self._spoken(asked, samples(sound, form), form[0]))
        self._is_transcribing = True
        try:
            if not await self._while_it_stays(work):
                status = 499
        except BaseException as error:
            if not is_failure(error) or isinstance(error, (asyncio.CancelledError, ConnectionError)):
                status = 499
                raise
            if not isinstance(error, (S2SError, asyncio.TimeoutError)):
                log.exception("an error that is no bad input")
            failure = failure_of(error if not isinstance(error, asyncio.TimeoutError) else self._late())
            status = failure.status
            self._tell(failure)
        finally:
            self._is_transcribing = False
            seconds = time.monotonic() - begin
            self._state.metrics.on_answer(ROUTE, status, seconds)
            log.info(json.dumps({"method": "WYOMING", "route": ROUTE, "status": status, "seconds": round(seconds, 4)}))

    async def _while_it_stays(self, work: asyncio.Task[None]) -> bool:
        """Wait for work as long as the client stays and as it may take. Returns whether it was finished."""
        self._ahead = asyncio.ensure_future(events.read(self._reader))
        deadline = time.monotonic() + self._state.limits.timeout
        try:
            timeout = self._state.limits.timeout
            await asyncio.wait({work, self._ahead}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            has_left = self._ahead.done() and self._ahead.exception() is None and self._ahead.result() is None
            if not work.done() and has_left:
                return False
            await asyncio.wait_for(work, max(0.0, deadline - time.monotonic()))
            return True
        finally:
            work.cancel()
            with contextlib.suppress(BaseException):
                await work

    async def _spoken(self, asked: Mapping[str, Any], sound: Any, rate: int) -> None:
        model = transcribing.model_named(self._state.models, _text(asked, "name"))
        options: dict[str, Any] = {"task": "transcribe", "timestamps": "segment"}
        language = _text(asked, "language")
        speech = model.session.speech
        if language and speech is not None and (speech.is_multilingual or languages.code_of(language) != "en"):
            options["language"] = language
        is_first = True
        async with contextlib.aclosing(transcribing.stream(model, (sound, rate), options)) as parts:
            async for part in parts:
                if is_first:
                    events.write(self._writer, "transcript-start")
                is_first = False
                if isinstance(part, Transcript):
                    heard = {"text": part.text, **({"language": part.language} if part.language else {})}
                    events.write(self._writer, "transcript", heard)
                    events.write(self._writer, "transcript-stop")
                else:
                    events.write(self._writer, "transcript-chunk", {"text": part.text})
                await self._writer.drain()

    def _late(self) -> Refused:
        seconds = self._state.limits.timeout
        return Refused(504, f"the sound took longer than the {seconds:g} seconds allowed; send less of it", "timeout")

    def _tell(self, failure: Failure) -> None:
        self._state.metrics.on_refusal(failure.code)
        with contextlib.suppress(OSError, RuntimeError):  # nobody may be there any more
            events.write(self._writer, "error", {"text": failure.message, "code": failure.code})


def info(state: State) -> dict[str, Any]:
    """What is served, in the protocol's words: one program with a model for each bundle that transcribes."""
    models = [_described(model) for model in state.models if model.session.speech is not None]
    program = {
        "name": "s2s", "description": "Speech to text", "attribution": MADE_BY, "installed": True,
        "version": __version__, "models": models, "supports_transcript_streaming": True,
    }  # fmt: skip
    return {"asr": [program], "tts": [], "handle": [], "intent": [], "wake": [], "mic": [], "snd": []}


def _described(model: Model) -> dict[str, Any]:
    speech, manifest = model.session.speech, model.session.bundle.manifest
    assert speech is not None
    codes = [token.strip("<|>") for token in speech.lang_to_id] if speech.is_multilingual else ["en"]
    description = f"{manifest['family']} on {model.session.backend.name}"
    return {
        "name": model.name, "description": description, "attribution": MADE_BY, "installed": True, "version": None,
        "languages": codes,
    }  # fmt: skip


def _format(data: Mapping[str, Any]) -> Format:
    found = {name: data.get(name) for name in ("rate", "width", "channels")}
    rate, width, channels = (value if type(value) is int else 0 for value in found.values())
    if width not in DTYPES or not 1 <= channels <= 16 or not 1000 <= rate <= 1_000_000:
        described = ", ".join(f"{name} {str(value)[:20]}" for name, value in found.items())
        raise Refused(400, f"the sound has {described}; expected hertz, 1, 2 or 4 bytes a sample, and 1 to 16 channels")
    return rate, width, channels


def samples(sound: bytes, form: Format) -> Any:
    """[L, channels], signed integers. Raises Refused."""
    _, width, channels = form
    if len(sound) % (width * channels):
        raise Refused(400, f"the sound ends within a sample of {width * channels} bytes; expected whole samples")
    found = np.frombuffer(sound, DTYPES[width]).reshape(-1, channels)
    return (found.astype(np.int16) - 128).astype(np.int8) if width == 1 else found


def _text(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    if value is not None and not isinstance(value, str):
        raise Refused(400, f"'{name}' is no string; expected one")
    return value or None
