"""Keys, limits, time-outs, clients that leave, overload, draining, and thousands of malformed requests."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from serving_client import serving

from s2s_export.errors import InvalidOption
from s2s_export.serving.app import all_formats
from s2s_export.serving.jobs import Overloaded
from s2s_export.serving.limits import Limits
from s2s_export.serving.models import open_models

LONG = {"text": "seventeen", "target_lang": "fr", "num_beams": 8, "min_new_tokens": 250, "max_new_tokens": 250}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def small(words):
    """A server with small limits and a key, one worker, and batches of one."""
    limits = Limits(
        max_body=4000, max_texts=3, max_characters=500, max_beams=8, timeout=20.0, body_timeout=1.0, drain_delay=0.0
    )
    models = open_models([f"en-mul={words}"], workers=1, batch_size=1, max_entries=4, max_tokens=64)
    with serving(models, limits=limits, api_keys=("secret-1", "secret-2")) as found:
        yield found


KEY = {"Authorization": "Bearer secret-2"}


@pytest.mark.parametrize(
    ("path", "fields", "statuses"),
    [
        ("/translate", {"q": "a", "source": "en", "target": "fr"}, (400, 403)),
        ("/v2/translate", {"text": ["a"], "target_lang": "DE"}, (403, 403)),
        ("/v1/chat/completions", {"model": "en-mul", "messages": []}, (401, 401)),
        ("/v1/s2s/generate", {"text": "a"}, (401, 401)),
        ("/models/en-mul", {"inputs": "a"}, (401, 401)),
    ],
)
def test_a_key_is_asked_for(small, path, fields, statuses):
    answers = [small.post(path, fields), small.post(path, fields, Authorization="Bearer secret-3")]
    assert tuple(answer.status for answer in answers) == statuses
    assert b"secret" not in answers[1].body
    assert small.post(path, fields, **KEY).status in (200, 400)


def test_every_scheme_of_a_key_is_read(small):
    fields = {"q": "seventeen", "source": "en", "target": "fr"}
    assert small.form("/translate", **fields, api_key="secret-1").status == 200
    assert small.post("/v2/usage", {}, Authorization="DeepL-Auth-Key secret-1").status == 200
    assert small.get("/health").status == small.get("/v2/health/live").status == small.get("/metrics").status == 200


def test_limits_are_told(small):
    def ask(**fields):
        return small.post("/translate", {"source": "en", "target": "fr", **fields}, **KEY)

    for answer in (ask(q=["a"] * 4), ask(q="x" * 501), ask(q="x" * 5000)):
        assert answer.status == 413 and "send it in parts" in answer.json()["error"]
    beams = small.post("/v1/s2s/generate", {"text": "a", "num_beams": 9}, **KEY)
    assert (beams.status, beams.json()) == (400, {"error": "num_beams is 9; this server allows at most 8"})


def test_a_body_without_a_length_is_counted_while_it_arrives(small):
    with socket.create_connection((small.host, small.port), timeout=20) as wire:
        wire.sendall(b"POST /translate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(50):
                wire.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert b" 413 " in wire.recv(4096)


def test_a_client_that_sends_its_body_too_slowly_is_told(small):
    with socket.create_connection((small.host, small.port), timeout=20) as wire:
        wire.sendall(b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in wire.recv(4096)


def test_a_request_ends_after_its_time(small):
    begin = time.monotonic()
    answer = small.post("/v1/s2s/generate", LONG, X_Request_Timeout="0.05", **KEY)
    assert answer.status == 504 and "seconds" in answer.json()["error"]
    assert time.monotonic() - begin < 10
    assert small.post("/v1/s2s/generate", LONG, X_Request_Timeout="soon", **KEY).status == 400


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_frees_its_worker(small, streams):
    batcher = small.state.models.first.batcher
    body = json.dumps({**LONG, "num_beams": 2, "stream": streams}).encode()
    head = f"POST /v1/s2s/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret-1\r\nContent-Length: {len(body)}"
    begun = time.monotonic()
    with socket.create_connection((small.host, small.port)) as wire:
        wire.sendall(head.encode() + b"\r\n\r\n" + body)
        wait_until(lambda: not batcher.is_idle)
    wait_until(lambda: batcher.is_idle)
    assert time.monotonic() - begun < small.state.limits.timeout


def test_an_overload_is_answered_at_once_with_when_to_come_again(small):
    def ask(i):
        return small.post(
            "/v1/s2s/generate", {**LONG, "num_beams": 1, "max_new_tokens": 60, "min_new_tokens": 60}, **KEY
        )

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 503} and statuses.count(503) >= 3
    refused = next(answer for answer in answers if answer.status == 503)
    assert int(refused.headers["retry-after"]) >= 1 and "send it again later" in refused.json()["error"]
    texts = {answer.json()["outputs"][0]["text"] for answer in answers if answer.status == 200}
    assert len(texts) == 1
    assert b's2s_rejected_total{reason="overloaded"}' in small.get("/metrics").body


def test_an_overload_is_answered_before_a_request_is_looked_into(served, monkeypatch):
    def refuse(priority):
        if priority < 5:
            raise Overloaded("10 texts are waiting", 2.3)

    monkeypatch.setattr(served.state.models.first.batcher, "require_time", refuse)
    for path in ("/translate", "/v2/translate", "/v1/chat/completions", "/v1/s2s/generate", "/models/en-mul",
                 "/v2/models/en-mul/infer"):  # fmt: skip
        answer = served.request("POST", path, b"no JSON", JSON)
        assert answer.status == 503 and answer.headers["retry-after"] == "3"
        assert b"10 texts are waiting" in answer.body
    assert served.request("POST", "/translate", b"no JSON", {**JSON, "X-Request-Priority": "5"}).status == 400
    assert served.post("/models/other", {"inputs": "a"}).status == 404
    assert served.post("/detect", {"q": "half past three"}).status == 200


def test_clients_at_once_share_batches_and_get_their_own_answers(served):
    texts = {"seventeen": "dix-sept", "half past three": "trois heures et demie", "21st": "vingt et unième"}
    asked = [list(texts)[i % 3] for i in range(60)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(
            pool.map(lambda q: served.post("/translate", {"q": q, "source": "en", "target": "fr"}).json(), asked)
        )
    assert [each["translatedText"] for each in found] == [texts[q] for q in asked]
    assert served.get("/v1/s2s/model").json()["figures"]["sources_per_batch"] > 1.0


def test_metrics_have_the_names_that_dashboards_expect(served):
    text = served.get("/metrics").body.decode()
    for name in (
        "s2s_requests_total", "s2s_request_duration_seconds_bucket", "s2s_queue_duration_seconds_sum",
        "s2s_queue_entries", "s2s_queue_source_tokens", "s2s_batch_sources_bucket", "s2s_source_tokens_total",
        "s2s_target_tokens_total", "s2s_decoder_steps_total", 's2s_model_info{backend="onnxruntime",bundle="en-mul"',
    ):  # fmt: skip
        assert name in text, name


@pytest.mark.parametrize(
    ("bundles", "part"),
    [
        (["a b=x"], "can't be the name of a model"),
        (["x=one", "x=two"], "two bundles have the name 'x'"),
    ],
)
def test_wrong_names_are_told_before_anything_is_loaded(bundles, part):
    with pytest.raises(InvalidOption, match=part):
        open_models(bundles)


def command(*arguments):
    code = "import sys; from s2s_export.cli import main; main(sys.argv[1:])"
    return subprocess.Popen([sys.executable, "-c", code, "serve", *arguments], stderr=subprocess.PIPE, text=True)


def test_sigterm_drains(words):
    """Not ready at once; still answering during the delay; what was under way is finished; then the end."""
    running = command(f"en-mul={words}", "--port", "0", "--json", "--drain-delay", "2", "--workers", "1")
    lines = iter(running.stderr.readline, "")
    try:
        where = next(line for line in lines if line.startswith("serving")).strip()
        port = int(where.rpartition(":")[2])

        def status(path):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as wire:
                wire.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                return int(wire.recv(4096).split()[1])

        assert status("/v2/health/ready") == 200
        with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
            body = json.dumps({**LONG, "num_beams": 2}).encode()
            wire.sendall(b"POST /v1/s2s/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            os.kill(running.pid, signal.SIGTERM)
            wait_until(lambda: status("/v2/health/ready") == 503)
            assert status("/health") == 200
            assert b" 200 " in wire.recv(64)
        assert running.wait(60) in (0, -signal.SIGTERM)
        logged = [json.loads(line) for line in lines if line.startswith("{")]
        assert {"method", "route", "status", "seconds", "time", "level"} <= set(logged[0])
    finally:
        running.kill()
        running.stderr.close()
        running.wait()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--tls-key", "nothing.pem"], "TLS needs a certificate and a key"),
        (["--timeout", "-1"], "timeout is -1.0, expected at least 0.001"),
        (["--host", "999.1.1.1"], "can't listen at 999.1.1.1"),
        (["--api-key", ""], "an --api-key is empty"),
    ],
)
def test_wrong_flags_are_one_sentence(words, arguments, part):
    running = command(str(words), "--port", "0", *arguments)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 2 and part in error and "Traceback" not in error


def test_an_address_that_can_not_serve_is_refused_before_models_are_loaded(tmp_path):
    from s2s_export.serving.server import Address, listen

    (wrong := tmp_path / "wrong.pem").write_text("no certificate")
    with pytest.raises(InvalidOption, match=r"wrong\.pem: TLS can't begin with them \(.+\); expected a"):
        Address(certificate=str(wrong), key=str(wrong))
    with pytest.raises(InvalidOption, match="expected an address of this machine"):
        listen(Address("203.0.113.1", 0))  # of nobody's: for documentation
    with listen(Address(port=0)) as taken:
        taken.listen()
        with pytest.raises(InvalidOption, match="choose another port"):
            listen(Address(port=taken.getsockname()[1]))


UNEXPECTED = re.compile(r"unexpected [A-Z]\w+:")  # what `explain` says of errors that nobody foresaw
GOOD = {
    "/translate": {"q": "seventeen", "source": "en", "target": "fr"},
    "/detect": {"q": "half past"},
    "/v2/translate": {"text": ["21st"], "target_lang": "DE", "tag_handling": "html"},
    "/v1/chat/completions": {"model": "en-mul", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3},
    "/v1/s2s/generate": {"text": "21st", "target_lang": "fr", "num_beams": 2, "max_new_tokens": 4},
    "/v2/models/{model}/infer": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["21st"]}]},
    "/models/{model}": {"inputs": "21st", "parameters": {"tgt_lang": "fr"}},
}
VALUES = (
    None,
    True,
    -1,
    0,
    2,
    10**30,
    1.5,
    "",
    "x",
    "fr",
    "\ud800",
    "\0",
    "<b>",
    [],
    [[]],
    [1],
    ["a", 2],
    {},
    {"a": {}},
)


def spoiled(rng, value, depth=0):
    """The value with something in it changed, left out, or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        rest = {key: each for key, each in value.items() if key != name}
        if rng.random() < 0.15:
            return rest
        if rng.random() < 0.2:
            return {
                **value,
                rng.choice(["num_beams", "stream", "n", "format", "id", "x", "parameters"]): rng.choice(VALUES),
            }
        return {**rest, name: spoiled(rng, value[name], depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        return [*value[:-1], spoiled(rng, value[-1], depth + 1)]
    return rng.choice(VALUES)


def malformed(rng):
    """A method, a path, headers and a body that is not as it should be."""
    endpoints = [(each, endpoint) for each in all_formats() for endpoint in each.endpoints]
    _, endpoint = rng.choice(endpoints)
    path = endpoint.path.replace("{model}", rng.choice(["en-mul", "en-mul", "x", "%00", "é".encode().hex()]))
    path = path.replace("{version}", rng.choice(["1", "2"]))
    body = json.dumps(spoiled(rng, GOOD.get(endpoint.path, {"a": 1}))).encode()
    headers = dict(JSON) if rng.random() < 0.8 else {"Content-Type": rng.choice(["text/x", "multipart/form-data", ""])}
    kind = rng.random()
    if kind < 0.1:
        body = body[: rng.randrange(len(body) + 1)]
    elif kind < 0.2:
        at = rng.randrange(len(body) + 1)
        body = body[:at] + rng.randbytes(3) + body[at:]
    elif kind < 0.25:
        body = b"[" * rng.choice([50, 100_000])
    elif kind < 0.3:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        body = rng.choice(
            [b"q=%ff&source=en&target=fr", b"q=a&q=b&source=en&target=fr", b"&&&==", b"text=a&target_lang=DE"]
        )
    elif kind < 0.35:
        headers["Inference-Header-Content-Length"] = rng.choice(["-1", "x", "5", "99999999", str(len(body))])
    elif kind < 0.4:
        headers[rng.choice(["X-Request-Timeout", "X-Request-Priority", "Authorization"])] = rng.choice(
            ["", "nan", "-1", "1e9", "Bearer "]
        )
    method = endpoint.method if rng.random() < 0.9 else rng.choice(["GET", "POST", "PUT", "DELETE", "PATCH"])
    return method, path, headers, body


def attack(served, n, seed):
    rng = random.Random(seed)
    for number in range(n):
        method, path, headers, body = malformed(rng)
        answer = served.request(method, path, body, headers)
        shown = f"{number}: {method} {path} {headers} {body[:300]!r} -> {answer.status} {answer.body[:300]!r}"
        assert b"Traceback" not in answer.body, shown
        assert answer.status < 500 or answer.status in (501, 503), shown
        if answer.status >= 400 and method != "HEAD":
            told = answer.json()
            sentence = told.get("error", told.get("message"))
            sentence = sentence["message"] if isinstance(sentence, dict) else sentence
            assert isinstance(sentence, str) and len(sentence) > 10 and not UNEXPECTED.search(sentence), shown
    wait_until(lambda: all(model.batcher.is_idle for model in served.state.models))
    assert served.post("/translate", GOOD["/translate"]).json() == {"translatedText": "dix-sept"}


def test_malformed_requests_get_a_sentence(served):
    attack(served, 400, seed=1)


@pytest.mark.slow
def test_ten_thousand_malformed_requests_get_a_sentence(served):
    attack(served, 10_000, seed=2)


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Connections that the server accepts have TCP_NODELAY; else each answer after the first takes 40 ms longer."""
    import asyncio
    import socket

    from s2s_export.serving.server import Address, listen

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen(Address("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            server = await asyncio.start_server(on_connection, sock=listening)
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            value = await asyncio.wait_for(found, 10)
            writer.close()
            server.close()
            return value

    assert asyncio.run(accepted()) != 0
