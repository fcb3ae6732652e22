"""Speech over HTTP: OpenAI's transcriptions with every shape, streams, Hugging Face's bodies, and what is refused."""

from __future__ import annotations

import base64
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_whisper
from serving_client import serving

import s2s_export

PATH = "/v1/audio/transcriptions"


def wav(seed: int, seconds: float) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes((tiny_whisper.clip(seed, seconds).clip(-1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


SOUND = wav(1, 1.5)


def form(file: bytes | None = SOUND, **fields: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of multipart/form-data."""
    parts = [f'--B\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    if file is not None:
        head = (
            b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        )
        parts.append(head + file + b"\r\n")
    return b"".join(parts) + b"--B--\r\n", {"Content-Type": "multipart/form-data; boundary=B"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    checkpoint = tiny_whisper.save(folder / "checkpoint", 3)
    s2s_export.export(checkpoint, folder / "whisper")
    return folder / "whisper"


@pytest.fixture(scope="module")
def served(bundle: Path) -> Any:
    with serving([f"whisper={bundle}"], workers=2) as found:
        yield found


def post(served: Any, path: str = PATH, file: bytes | None = SOUND, **fields: str) -> Any:
    body, headers = form(file, **{"model": "whisper-1", "language": "en", **fields})
    return served.request("POST", path, body, headers)


def test_every_shape(served: Any) -> None:
    answer = post(served)
    assert answer.status == 200, answer.body
    assert set(answer.json()) == {"text"}
    verbose = post(served, response_format="verbose_json", **{"timestamp_granularities[]": "word"}).json()
    assert verbose["language"] == "english" and verbose["duration"] == 1.5 and verbose["task"] == "transcribe"
    assert all({"word", "start", "end"} == set(word) for word in verbose["words"])
    assert all({"id", "seek", "start", "end", "text", "tokens"} <= set(segment) for segment in verbose["segments"])
    assert "words" not in post(served, response_format="verbose_json").json()
    for shape, start in (("vtt", b"WEBVTT\n\n"), ("srt", b"")):
        answer = post(served, response_format=shape)
        assert answer.status == 200 and answer.body.startswith(start)
        assert answer.headers["content-type"].startswith("text/plain")
    assert post(served, response_format="text").status == 200
    assert post(served, "/v1/audio/translations", response_format="verbose_json").json()["task"] == "translate"


def test_a_stream_ends_with_the_whole(served: Any) -> None:
    events = post(served, stream="true").events()
    assert events[-1]["type"] == "transcript.text.done"
    assert events[-1]["text"] == "".join(event["delta"] for event in events[:-1]).strip()


def test_hugging_face_takes_the_file_itself(served: Any) -> None:
    answer = served.request("POST", "/models/whisper", SOUND, {"Content-Type": "audio/wav"})
    assert answer.status == 200 and set(answer.json()) == {"text"}
    for kind in ({}, {"Content-Type": "application/json"}):  # what InferenceClient sends with bytes
        assert served.request("POST", "/models/whisper", SOUND, kind).json().keys() == {"text"}
    asked = {"inputs": base64.b64encode(SOUND).decode(), "parameters": {"return_timestamps": True}}
    answer = served.post("/models/whisper", asked)
    assert answer.status == 200 and all(len(chunk["timestamp"]) == 2 for chunk in answer.json()["chunks"])
    asked["parameters"] = {"return_timestamps": "word", "generation_parameters": {"temperature": 0.0, "language": "en"}}
    chunks = served.post("/models/whisper", asked).json()["chunks"]
    assert all(set(chunk) == {"text", "timestamp"} for chunk in chunks)
    asked["parameters"] = {"loudness": 3}
    answer = served.post("/models/whisper", asked)
    assert answer.status == 400 and "loudness" in answer.json()["error"]
    answer = served.request("POST", "/models/whisper", b'{"inputs": "x"}', {"Content-Type": "application/json"})
    assert answer.status == 400 and "reads sound" in answer.json()["error"]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"file": None}, 400, "has no file 'file'"),
        ({"file": b"no sound at all"}, 400, "is no audio that can be read"),
        ({"response_format": "pdf"}, 400, "'response_format' is 'pdf'"),
        ({"language": "klingon"}, 400, "klingon"),
        ({"temperature": "hot"}, 400, "expected a number"),
        ({"temperature": "7"}, 400, "expected 0 to 1"),
        ({"timestamp_granularities[]": "letter"}, 400, "expected 'word' or 'segment'"),
        ({"stream": "true", "response_format": "srt"}, 400, "leave one of them out"),
        ({"model": "whisper-9"}, 404, "there is no model 'whisper-9'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_openais_shape(served: Any, fields: Any, status: int, message: str) -> None:
    answer = post(served, **fields)
    assert answer.status == status and message in answer.json()["error"]["message"]


def test_bodies_that_are_no_forms(served: Any) -> None:
    for body, kind in (
        (b"{}", "application/json"),
        (b"--B", "multipart/form-data; boundary=B"),
        (b"", "multipart/form-data"),
    ):
        answer = served.request("POST", PATH, body, {"Content-Type": kind})
        assert answer.status in (400, 415), answer.body
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_sound_may_be_larger_than_texts_but_not_without_end(served: Any) -> None:
    assert post(served, file=SOUND + bytes(3 << 20), response_format="text").status == 200
    assert served.state.limits.max_body < 2**22 < served.state.limits.max_audio
    assert served.request("POST", "/models/whisper", SOUND + bytes(3 << 20)).status == 200
    answer = served.request(
        "POST", PATH, b"x", {"Content-Type": "multipart/form-data; boundary=B", "Content-Length": str(2**26)}
    )
    assert answer.status == 413


def test_a_text_model_reads_no_sound(words: Path, bundle: Path) -> None:
    with serving([f"en-mul={words}", f"whisper={bundle}"], workers=1) as served:
        assert post(served).status == 200  # whisper-1 is the one that transcribes
        answer = post(served, model="en-mul")
        assert answer.status == 400 and "reads no sound" in answer.json()["error"]["message"]
        assert served.request("POST", "/models/en-mul", SOUND, {"Content-Type": "audio/wav"}).status == 400


def test_the_real_client(served: Any) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed: pip install openai")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    found = client.audio.transcriptions.create(
        model="whisper", file=("a.wav", SOUND), response_format="verbose_json", language="en"
    )
    assert found.duration == 1.5 and isinstance(found.text, str)
    assert np.isfinite(found.duration)
