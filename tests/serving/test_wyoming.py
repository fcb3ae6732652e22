"""Speech for voice assistants: the real client of the Wyoming protocol, wrong bytes, limits, and how a server ends."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_whisper
from click.testing import CliRunner
from serving_client import serving

import s2s_export
from s2s_export.cli import serve
from s2s_export.runtime.session import Session
from s2s_export.serving import hearing
from s2s_export.serving.limits import Limits
from s2s_export.serving.wyoming import dialogue
from s2s_export.serving.wyoming import server as wyoming_server

SOUND = (tiny_whisper.clip(1, 1.5).clip(-1, 1) * 32767).astype("<i2")
PCM = {"rate": 16000, "width": 2, "channels": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("spoken")
    checkpoint = tiny_whisper.save(folder / "checkpoint", 3)
    s2s_export.export(checkpoint, folder / "whisper")
    return folder / "whisper"


@pytest.fixture(scope="module")
def served(bundle: Path) -> Any:
    limits = Limits(max_audio=200_000, timeout=20.0, body_timeout=1.0, drain_delay=0.0)
    with serving([f"whisper={bundle}"], limits=limits, workers=2, wyoming=True) as found:
        yield found


@pytest.fixture(scope="module")
def expected(bundle: Path) -> str:
    return s2s_export.load(bundle, threads=1).transcribe(SOUND, language="en", temperature=0.0).finish().text


@pytest.fixture(autouse=True)
def certain(monkeypatch: Any) -> None:
    """Text is never drawn, as it would be of a model that is unsure: this one has random weights."""
    original = Session.transcribe
    monkeypatch.setattr(Session, "transcribe", lambda *args, **options: original(*args, **options, temperature=0.0))


def event(kind: str, data: Any = None, payload: bytes = b"", **head: Any) -> bytes:
    head = {"type": kind, "data": data or {}, **({"payload_length": len(payload)} if payload else {}), **head}
    return json.dumps(head).encode() + b"\n" + payload


def spoken(sound: bytes = SOUND.tobytes(), **form: int) -> bytes:
    """Sound in pieces, with its beginning and its end."""
    data = {**PCM, **form}
    pieces = [event("audio-chunk", data, sound[at : at + 5000]) for at in range(0, len(sound), 5000)]
    return b"".join([event("audio-start", data), *pieces, event("audio-stop")])


def request(sound: bytes = SOUND.tobytes(), **form: int) -> bytes:
    return event("transcribe", {"language": "en"}) + spoken(sound, **form)


class Wire:
    """A connection, with what a client of the protocol reads."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, raw: bytes) -> Wire:
        self.socket.sendall(raw)
        return self

    def read(self) -> tuple[str, Any] | None:
        """The next event, or None at the end."""
        line = self._file.readline()
        if not line:
            return None
        head = json.loads(line)
        return head["type"], json.loads(self._file.read(head.get("data_length", 0)) or b"{}")

    def until(self, kind: str) -> Any:
        while (found := self.read()) is not None:
            if found[0] == kind:
                return found[1]
        raise AssertionError(f"there was no {kind}")


@pytest.mark.filterwarnings("ignore:'audioop' is deprecated:DeprecationWarning")  # the client imports it
def test_the_real_client(served: Any, expected: str) -> None:
    pytest.importorskip("wyoming", reason="wyoming is not installed: pip install wyoming")
    from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.client import AsyncClient
    from wyoming.info import Describe, Info
    from wyoming.ping import Ping, Pong

    async def talk() -> list[Any]:
        async with AsyncClient.from_uri(f"tcp://127.0.0.1:{served.wyoming}", read_timeout=60) as client:
            await client.write_event(Describe().event())
            info = Info.from_event(await client.read_event())
            [program] = info.asr
            assert program.supports_transcript_streaming and [model.name for model in program.models] == ["whisper"]
            assert "en" in program.models[0].languages
            await client.write_event(Ping(text="x").event())
            assert Pong.from_event(await client.read_event()).text == "x"
            await client.write_event(Transcribe(name="whisper", language="en").event())
            await client.write_event(AudioStart(**PCM).event())
            for at in range(0, len(SOUND), 1024):
                await client.write_event(AudioChunk(**PCM, audio=SOUND[at : at + 1024].tobytes()).event())
            await client.write_event(AudioStop().event())
            found = []
            while not found or not TranscriptStop.is_type(found[-1].type):
                found.append(await client.read_event())
            return found

    first, *chunks, whole, _ = asyncio.run(talk())
    assert TranscriptStart.is_type(first.type)
    whole = Transcript.from_event(whole)
    assert whole.text == expected and whole.language == "en"
    assert "".join(TranscriptChunk.from_event(each).text for each in chunks).strip() == expected


@pytest.mark.parametrize(
    ("form", "sound"),
    [
        ({"channels": 2}, np.repeat(SOUND, 2)),
        ({"width": 4}, SOUND.astype("<i4") << 16),
    ],
    ids=["stereo", "32-bit"],
)
def test_sound_of_every_form_is_the_same_sound(served: Any, expected: str, form: Any, sound: Any) -> None:
    with Wire(served.wyoming) as wire:
        assert wire.send(request(sound.tobytes(), **form)).until("transcript")["text"] == expected


def test_bytes_are_samples_around_128() -> None:
    found = dialogue.samples(bytes([128, 255, 0]), (16000, 1, 1))
    assert found.ravel().tolist() == [0, 127, -128]


def test_one_connection_transcribes_as_often_as_it_likes(served: Any, expected: str) -> None:
    with Wire(served.wyoming) as wire:
        for _ in range(3):
            assert wire.send(request()).until("transcript")["text"] == expected
        wire.send(request() + request())
        assert [wire.until("transcript")["text"] for _ in range(2)] == [expected] * 2
    metrics = served.get("/metrics").body.decode()
    assert 's2s_requests_total{code="200",route="wyoming"}' in metrics


@pytest.mark.parametrize(
    ("sent", "part", "code"),
    [
        (event("audio-stop"), "no sound before 'audio-stop'", "invalid_request"),
        (event("audio-start", {**PCM, "width": 3}), "width 3", "invalid_request"),
        (event("audio-chunk", {}, b"1234"), "rate None", "invalid_request"),
        (
            event("audio-start", PCM) + event("audio-chunk", {**PCM, "rate": 8000}, b"12"),
            "expected one of them",
            "invalid_request",
        ),
        (
            event("audio-chunk", PCM, b"123") + event("audio-stop"),
            "ends within a sample of 2 bytes",
            "invalid_request",
        ),
        (event("audio-chunk", PCM, bytes(150_000)) * 2 + event("audio-stop"), "larger than the 200000", "too_large"),
        (event("transcribe", {"name": "other"}) + spoken(), "no model 'other'", "model_not_found"),
        (event("transcribe", {"language": 7}) + spoken(), "'language' is no string", "invalid_request"),
        (event("transcribe", {"language": "klingon"}) + spoken(), "klingon", "invalid_request"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_what_is_wrong_is_one_sentence_and_the_client_may_go_on(
    served: Any, expected: str, sent: bytes, part: str, code: str
) -> None:
    with Wire(served.wyoming) as wire:
        error = wire.send(sent).until("error")
        assert part in error["text"] and error["code"] == code
        assert wire.send(request()).until("transcript")["text"] == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"no event\n", b"[]\n", b"{}\n", b'{"type": 7}\n', b"[" * 70_000, event("x", data_length=-1),
        event("x", data_length=10**9), event("audio-chunk", PCM, payload_length=1 << 40),
        event("x", data_length=3) + b"[1]", event("x", data_length="3"), b"\xff\xfe\n", b"[" * 5000 + b"\n",
    ],
    ids=range(12),
)  # fmt: skip
def test_bytes_that_are_no_event_end_the_connection_with_a_sentence(served: Any, raw: bytes) -> None:
    with Wire(served.wyoming) as wire:
        error = wire.send(raw).until("error")
        assert len(error["text"]) > 20 and error["code"] == "invalid_request"
        assert wire.read() is None


def test_random_bytes_and_clients_that_leave_disturb_nobody(served: Any, expected: str, caplog: Any) -> None:
    rng, whole = random.Random(3), request()
    for number in range(200):
        with Wire(served.wyoming) as wire:
            raw = bytearray(whole[: rng.randrange(len(whole))])
            for _ in range(rng.randrange(3)):
                at = rng.randrange(len(raw) + 1)
                raw[at : at + 2] = rng.randbytes(3)
            wire.send(bytes(raw))
            if number % 3 == 0:
                wire.socket.shutdown(socket.SHUT_WR)
    with Wire(served.wyoming) as wire:
        assert wire.send(request()).until("transcript")["text"] == expected
    assert not [record for record in caplog.records if record.exc_info]


def test_sound_that_stops_arriving_ends_the_connection(served: Any) -> None:
    with Wire(served.wyoming) as wire:
        assert wire.send(event("audio-start", PCM)).until("error")["code"] == "timeout"
        assert wire.read() is None


def held(monkeypatch: Any) -> tuple[threading.Event, threading.Event]:
    """(set when a transcription has begun, set to let it go on)."""
    begun, may_go_on = threading.Event(), threading.Event()
    original = hearing.hear

    def hear(*arguments: Any) -> None:
        begun.set()
        assert may_go_on.wait(30)
        original(*arguments)

    monkeypatch.setattr(hearing, "hear", hear)
    return begun, may_go_on


def test_a_client_that_leaves_frees_its_place(served: Any, monkeypatch: Any) -> None:
    begun, may_go_on = held(monkeypatch)
    with Wire(served.wyoming) as wire:
        wire.send(request())
        assert begun.wait(30)
    model, deadline = served.state.models.first, time.monotonic() + 20
    while b's2s_requests_total{code="499",route="wyoming"}' not in served.get("/metrics").body:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert model.transcribing._value == 1, "it is at its segment still"
    while model.transcribing._value < 2:
        may_go_on.set()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert b's2s_requests_total{code="499",route="wyoming"}' in served.get("/metrics").body


def test_one_that_takes_too_long_is_told(bundle: Path, monkeypatch: Any) -> None:
    _, may_go_on = held(monkeypatch)
    limits = Limits(timeout=0.2, drain_delay=0.0, drain_timeout=1.0)
    with serving([f"whisper={bundle}"], limits=limits, workers=1, wyoming=True) as served, Wire(served.wyoming) as wire:
        error = wire.send(request()).until("error")
        assert error["code"] == "timeout" and "0.2 seconds" in error["text"]
        may_go_on.set()


def test_stopping_finishes_what_is_under_way_and_ends_the_others(bundle: Path, expected: str, monkeypatch: Any) -> None:
    begun, may_go_on = held(monkeypatch)
    with (
        serving([f"whisper={bundle}"], workers=1, wyoming=True) as served,
        Wire(served.wyoming) as idle,
        Wire(served.wyoming) as busy,
    ):
        idle.send(event("ping")).until("pong")
        busy.send(request())
        assert begun.wait(30)
        served.server.should_exit = True
        assert idle.read() is None
        with pytest.raises((OSError, AssertionError)):
            Wire(served.wyoming).send(event("ping")).until("pong")
        may_go_on.set()
        assert busy.until("transcript")["text"] == expected
        assert busy.until("transcript-stop") == {} and busy.read() is None


def test_connections_are_bounded(served: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(wyoming_server, "MOST_CONNECTIONS", 0)
    with Wire(served.wyoming) as wire:
        assert wire.until("error")["code"] == "overloaded" and wire.read() is None


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["--api-key", "secret"], "has no keys"), ([], "no bundle that is served transcribes")],
    ids=["keys", "no-speech"],
)
def test_what_can_not_be_served_is_refused(words: Path, bundle: Path, arguments: list[str], part: str) -> None:
    path = bundle if arguments else words
    done = CliRunner().invoke(serve.command, [str(path), "--port", "0", "--wyoming", "0", "--workers", "1", *arguments])
    assert done.exit_code and part in str(done.exception)
