"""The real clients, unmodified, against a server on loopback; and LibreTranslate's own tests of its API.

The clients are fetched by pip into a folder of their own, as some of them are large. Each runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import wave
import zipfile

import pytest
import tiny_whisper
from serving_client import serving

import s2s_export

pytestmark = pytest.mark.slow
CLIENTS = (
    "libretranslatepy==2.1.4",
    "deepl==1.32.0",
    "openai==3.57.0",
    "tritonclient[http]==2.73.0",
    "huggingface_hub==2.4.0",
)

LIBRETRANSLATE = """
from libretranslatepy import LibreTranslateAPI
api = LibreTranslateAPI(url + "/")
assert api.translate("seventeen", "en", "fr") == "dix-sept"
assert api.detect("half past three")[0]["language"] == "en"
assert {entry["code"] for entry in api.languages()} == {"en", "de", "fr"}
"""
DEEPL = """
import deepl
client = deepl.DeepLClient("a key", server_url=url)
assert client.translate_text("seventeen", target_lang="FR").text == "dix-sept"
several = client.translate_text(["seventeen", "21st"], source_lang="EN", target_lang="DE")
assert [each.text for each in several] == ["siebzehn", "einundzwanzigste"]
assert several[0].detected_source_lang == "EN" and several[0].billed_characters == 9
assert {each.code for each in client.get_target_languages()} == {"DE", "FR"}
assert client.get_source_languages()[0].name == "English"
assert not client.get_usage().any_limit_reached
tagged = client.translate_text("<b>seventeen</b>", target_lang="FR", tag_handling="html")
assert tagged.text == "<b>dix-sept</b>"
try:
    client.translate_text("seventeen", source_lang="EN", target_lang="FR", glossary="3f0a")
    raise SystemExit("no error")
except deepl.DeepLException as error:
    assert "glossary_id" in str(error)
"""
OPENAI = """
import openai
client = openai.OpenAI(base_url=url + "/v1", api_key="a key", max_retries=0)
names = [each.id for each in client.models.list()]
assert "en-mul:fr" in names and client.models.retrieve("en-mul").id == "en-mul"
asked = dict(model="en-mul:fr", messages=[{"role": "user", "content": "half past three"}])
found = client.chat.completions.create(**asked)
assert found.choices[0].message.content == "trois heures et demie" and found.usage.total_tokens > 0
parts = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
assert "".join(parts) == "trois heures et demie" and len(parts) > 2
try:
    client.chat.completions.create(**{**asked, "model": "other"})
    raise SystemExit("no error")
except openai.NotFoundError as error:
    assert error.code == "model_not_found"
try:
    client.audio.transcriptions.create(model="en-mul", file=("a.wav", b"RIFF"))
    raise SystemExit("no error")
except openai.APIStatusError as error:
    assert error.status_code == 501
"""
TRITON = """
import numpy as np
import tritonclient.http as triton
client = triton.InferenceServerClient(url.removeprefix("http://"))
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("en-mul")
assert client.get_model_metadata("en-mul")["inputs"][0]["name"] == "text"
for binary in (True, False):
    tensor = triton.InferInput("text", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([b"21st", b"seventeen"], dtype=object), binary_data=binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("text", "score")]
    for wanted in (outputs, None):
        result = client.infer("en-mul", [tensor], outputs=wanted, parameters={"target_lang": "fr", "num_beams": 2})
        texts = [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("text")]
        assert texts == ["vingt et unième", "dix-sept"], texts
        assert result.as_numpy("score").dtype == np.float32
try:
    client.infer("other", [tensor])
    raise SystemExit("no error")
except triton.InferenceServerException as error:
    assert "there is no model 'other'" in str(error)
"""
HUGGING_FACE = """
from huggingface_hub import InferenceClient
client = InferenceClient(model=url + "/models/en-mul")
found = client.translation("half past three", src_lang="en", tgt_lang="de")
assert found.translation_text == "halb vier", found
"""

OPENAI_SPEECH = """
import openai
client = openai.OpenAI(base_url=url + "/v1", api_key="a key", max_retries=0)
asked = dict(model="whisper-1", file=("a.wav", sound), language="en")
assert isinstance(client.audio.transcriptions.create(**asked).text, str)
for shape, start in (("text", ""), ("srt", ""), ("vtt", "WEBVTT")):
    assert client.audio.transcriptions.create(**asked, response_format=shape).startswith(start)
found = client.audio.transcriptions.create(
    **asked, response_format="verbose_json", timestamp_granularities=["word", "segment"]
)
assert found.duration == 1.5 and found.language == "english" and isinstance(found.words, list), found
events = list(client.audio.transcriptions.create(**asked, stream=True))
assert events[-1].type == "transcript.text.done" and isinstance(events[-1].text, str)
translated = client.audio.translations.create(model="whisper", file=("a.wav", sound), response_format="verbose_json")
assert translated.duration == 1.5
try:
    client.audio.transcriptions.create(**{**asked, "file": ("a.wav", b"no sound")})
    raise SystemExit("no error")
except openai.BadRequestError as error:
    assert "no audio that can be read" in error.message
"""
HUGGING_FACE_SPEECH = """
from huggingface_hub import InferenceClient
client = InferenceClient(model=url + "/models/whisper")
assert isinstance(client.automatic_speech_recognition(sound).text, str)
found = client.automatic_speech_recognition(sound, extra_body={"return_timestamps": True})
assert isinstance(found.chunks, list), found
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("clients")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    done = subprocess.run([*pip, "install", "--target", target, *CLIENTS], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the clients can't be fetched: {done.stderr[-300:]}")
    return target


@pytest.mark.parametrize("client", ["LIBRETRANSLATE", "DEEPL", "OPENAI", "TRITON", "HUGGING_FACE"])
def test_a_real_client_is_served(client, folder, served):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment.pop("HF_HUB_OFFLINE", None)
    code = f"url = {served.url!r}\n{globals()[client]}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    path = tmp_path_factory.mktemp("speaking")
    s2s_export.export(tiny_whisper.save(path / "checkpoint", 3), path / "whisper")
    with serving([f"whisper={path / 'whisper'}"], workers=2) as found:
        yield found


@pytest.mark.parametrize("client", ["OPENAI_SPEECH", "HUGGING_FACE_SPEECH"])
def test_a_real_client_is_transcribed_for(client, folder, speaking, tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes((tiny_whisper.clip(1, 1.5).clip(-1, 1) * 32767).astype("<i2").tobytes())
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment.pop("HF_HUB_OFFLINE", None)
    code = f"url = {speaking.url!r}\nsound = open({str(tmp_path / 'a.wav')!r}, 'rb').read()\n{globals()[client]}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


CONFTEST = '''
"""LibreTranslate's tests ask for Spanish; the model that is served writes French."""
import json, urllib.error, urllib.parse, urllib.request
import pytest

class Answer:
    def __init__(self, answer):
        self.status_code, self.data = getattr(answer, "status", answer.code), answer.read()
    @property
    def json(self):
        return json.loads(self.data)

class Client:
    def _ask(self, method, path, data=None, json=None):
        swap = lambda fields: {k: "fr" if v == "es" else v for k, v in fields.items()}
        body, headers = (b"" if method == "POST" else None), {}
        if data is not None:
            body = urllib.parse.urlencode(swap(data)).encode()
        if json is not None:
            body, headers = __import__("json").dumps(swap(json)).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request("URL" + path, body, headers, method=method)
        try:
            return Answer(urllib.request.urlopen(request))
        except urllib.error.HTTPError as error:
            return Answer(error)
    def get(self, path, **more):
        return self._ask("GET", path, **more)
    def post(self, path, **more):
        return self._ask("POST", path, **more)

@pytest.fixture
def client():
    return Client()
'''


def test_libretranslates_own_tests_pass(served, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    fetch = [*pip, "download", "libretranslate==1.9.6", "--no-deps", "--only-binary", ":all:", "-d", tmp_path]
    done = subprocess.run(fetch, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"LibreTranslate can't be fetched: {done.stderr[-300:]}")
    tests = tmp_path / "tests"
    tests.mkdir()
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if "/test_api/test_" in name:
                (tests / name.rpartition("/")[2]).write_bytes(wheel.read(name))
    (tests / "conftest.py").write_text(CONFTEST.replace("URL", served.url))
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tests, tests]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, cwd=tests)
    assert done.returncode == 0 and "14 passed" in done.stdout, done.stdout
