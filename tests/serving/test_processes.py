"""Engine processes: whose results are whose, what a process that is killed costs, how they end, what they share."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tiny_whisper
from serving_client import serving

import s2s_export
from s2s_export.building.build import build
from s2s_export.errors import InvalidOption, S2SError, UnknownOption
from s2s_export.runtime.speech.formats import Transcript
from s2s_export.serving import models
from s2s_export.serving import processes as processes_module
from s2s_export.serving.jobs import Closed, DeadlinePassed, EngineLost, Overloaded
from s2s_export.serving.processes import Processes

LONG = {"text": "seventeen", "target_lang": "fr", "num_beams": 8, "min_new_tokens": 250, "max_new_tokens": 250}


def open_processes(path, *, workers=2, session=None, **more):
    session = session or s2s_export.load(path, threads=1)
    sizes = {"batch_size": 4, "max_entries": 4096, "max_tokens": 65536, "max_wait": None, "join": None}
    return Processes(session, workers=workers, most=1, loading={"threads": 1}, **{**sizes, **more})


@pytest.fixture(scope="module")
def processes(words):
    found = open_processes(words)
    yield found
    assert found.close(60)


def source(length: int, seed: int = 0) -> list[int]:
    return [*np.random.default_rng(seed).integers(4, 300, length - 1).tolist(), 0]


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_results_are_those_of_each_source_alone(processes, session):
    choices = [
        session.options(num_beams=2, num_return_sequences=2, max_new_tokens=8),
        session.options(num_beams=1, do_sample=True, seed=5, max_new_tokens=8),
        session.options(num_beams=1, max_new_tokens=12, stop_strings=["er"]),
    ]
    asked = [(options, [source(4 + i % 9, 7 * n + i) for i in range(12)]) for n, options in enumerate(choices)]
    jobs = [processes.submit(sources, options, priority=n) for n, (options, sources) in enumerate(asked)]
    for (options, sources), several in zip(asked, jobs, strict=True):
        alone = session.decode(sources, options)
        for job, expected in zip(several, alone, strict=True):
            found = job.future.result(60)
            assert [(h.token_ids, h.text) for h in found] == [(h.token_ids, h.text) for h in expected]
            assert job.began is not None and job.encoded is not None


def test_alignments_and_streams_come_over(processes, session):
    options = session.options(num_beams=3, target_lang="fra")
    ids = session.encode("half past three", target_lang="fra")
    [job] = processes.submit([ids], options, alignments=True)
    [best, *_] = job.future.result(60)
    [[expected, *_]] = session.decode([ids], options, alignments=True)
    np.testing.assert_allclose(best.alignment, expected.alignment, atol=1e-6)
    pieces: list[int] = []
    [job] = processes.submit([ids], options, on_prefix=pieces.extend)
    assert job.future.result(60)[0].token_ids == pieces


def test_sources_go_to_the_process_with_the_least_to_do(processes, session):
    """Two long texts that come together are decoded side by side."""
    options = session.options(num_beams=8, min_new_tokens=200, max_new_tokens=200)
    with processes._queue.changed:
        jobs = processes.submit([source(9, 1), source(9, 2)], options)
    wait_until(lambda: all(len(engine.jobs) == 1 for engine in processes.engines))
    for job in jobs:
        job.cancel()
    wait_until(lambda: processes.is_idle)
    assert all(engine.n_tokens == 0 for engine in processes.engines)


def test_what_is_late_or_wrong_is_told_in_the_servers_words(processes, session):
    options = session.options(num_beams=4, min_new_tokens=250, max_new_tokens=250)
    [late] = processes.submit([source(5)], options, timeout=0.05)
    with pytest.raises(DeadlinePassed, match="was not decoded within"):
        late.future.result(60)
    wrong = session.options(num_beams=2, max_new_tokens=4, terms=[("twenty", "cent vingt et un mille")])
    [job] = processes.submit([session.encode("twenty", target_lang="fra")], wrong)
    assert isinstance(job.future.exception(60), S2SError)


def test_what_can_not_be_handed_over_fails_alone(processes, session):
    [job] = processes.submit([source(5)], session.options(num_beams=1))
    options = session.options(num_beams=2)
    object.__setattr__(options, "stop_strings", threading.Lock())
    [odd] = processes.submit([source(5)], options)
    with pytest.raises(S2SError, match="can't be handed to an engine process"):
        odd.future.result(60)
    assert job.future.result(60)
    wait_until(lambda: processes.is_idle)


def test_the_queue_is_the_servers(words, session):
    found = open_processes(words, workers=1, session=session, max_entries=2)
    try:
        options = session.options(num_beams=1, min_new_tokens=250, max_new_tokens=250)
        under_way = found.submit([source(5)], options) + found.submit([source(6)], options)
        wait_until(lambda: not found.n_waiting)
        for seed in range(6):
            under_way += found.submit([source(7, seed)], options)
            wait_until(lambda: not found.n_waiting)
        waiting = found.submit([source(8), source(9)], options)  # eight, two batches' worth, are with the process
        with pytest.raises(Overloaded, match="2 texts of 17 tokens are waiting"):
            found.submit([source(5)], options)
        assert not found.close(timeout=0.01)
        with pytest.raises(Closed):
            waiting[0].future.result(60)
        with pytest.raises(Closed):
            found.submit([source(5)], options)
    finally:
        found.close(0.0)
    assert all(engine._process.poll() is not None for engine in found.engines)


def test_a_process_that_can_not_begin_is_told(words, session):
    with pytest.raises(UnknownOption, match="onnxrumtime"):
        Processes(
            session, workers=2, most=1, batch_size=4, max_entries=9, max_tokens=999, max_wait=None, join=None,
            loading={"backend": "onnxrumtime"},
        )  # fmt: skip


def test_where_there_are_no_processes_there_are_fewer_workers(words, session, monkeypatch):
    for module in (models, processes_module):
        monkeypatch.setattr(module, "CAN_HAVE_PROCESSES", False)
    monkeypatch.setattr(models.cores, "available_cores", lambda: 64)
    found = models.open_models([f"en-mul={words}"], most_workers=2)
    assert found.first.batcher.workers == 2
    found.close(10)
    with pytest.raises(InvalidOption, match="which there are not on Windows; take 1"):
        open_processes(words, session=session)


@pytest.fixture(scope="module")
def served(words):
    with serving([f"en-mul={words}"], workers=2, most_workers=1) as found:
        yield found


def translate(served, text="half past three"):
    return served.post("/translate", {"q": text, "source": "en", "target": "fr"})


def test_a_server_answers_from_its_processes_and_sums_what_they_do(served):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: translate(served).json(), range(24)))
    assert answers == [{"translatedText": "trois heures et demie"}] * 24
    wait_until(lambda: b's2s_queue_duration_seconds_count{bundle="en-mul"} 24.0' in served.get("/metrics").body, 10)
    figures = served.get("/metrics").body.decode()
    assert 's2s_engine_processes{bundle="en-mul"} 2.0' in figures
    tokens = re.search(r's2s_source_tokens_total\{bundle="en-mul"\} (\d+)', figures)
    assert int(tokens.group(1)) % 24 == 0


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (
            "/translate",
            {"q": "seventeen", "source": "en", "target": "fr", "alternatives": 7},
            lambda body: body["error"],
        ),
        ("/v1/s2s/generate", LONG, lambda body: body["error"]),
        (
            "/v1/chat/completions",
            {"model": "en-mul:fr", "messages": [{"role": "user", "content": "seventeen"}]},
            lambda body: body["error"]["message"],
        ),
    ],
    ids=["libretranslate", "own", "openai"],
)
def test_a_killed_process_is_started_again_and_its_requests_are_answered(served, path, fields, message):
    """Both processes are stopped, so that what is asked waits in one of them, and then killed."""
    batcher = served.state.models.first.batcher
    wait_until(lambda: batcher.n_processes == 2)
    n_before = batcher.n_restarts
    killed = [engine.pid for engine in batcher.engines]
    for pid in killed:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(served.post, path, fields)
        wait_until(lambda: any(engine.jobs for engine in batcher.engines))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        answer = asked.result(60)
    assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
    assert "ended (SIGKILL); another one takes its place; send it again" in message(answer.json())
    assert b's2s_rejected_total{reason="engine_lost"}' in served.get("/metrics").body
    wait_until(lambda: batcher.n_processes == 2)
    assert batcher.n_restarts == n_before + 2 and not set(killed) & {engine.pid for engine in batcher.engines}
    assert translate(served).json() == {"translatedText": "trois heures et demie"}
    assert served.get("/v2/health/ready").status == 200


def test_requests_wait_for_a_process_that_begins(served):
    batcher = served.state.models.first.batcher
    wait_until(lambda: batcher.n_processes == 2)
    for engine in batcher.engines:
        os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: batcher.n_processes == 0)
    ready = served.get("/v2/health/ready")
    assert (ready.status, ready.json()["status"]) == (503, "restarting") or batcher.n_processes
    assert translate(served).json() == {"translatedText": "trois heures et demie"}


def test_sigterm_drains_processes_and_ends_them(words):
    code = "import sys; from s2s_export.cli import main; main(sys.argv[1:])"
    flags = ["--port", "0", "--drain-delay", "0", "--workers", "2", "--workers-per-process", "1"]
    running = subprocess.Popen(
        [sys.executable, "-c", code, "serve", f"en-mul={words}", *flags], stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        where = next(line for line in iter(running.stderr.readline, "") if line.startswith("serving")).strip()
        children = children_of(running.pid)
        assert len(children) == 2
        where = f"http://127.0.0.1:{where.rpartition(':')[2]}/v1/s2s/generate"
        asked = Request(where, json.dumps({**LONG, "num_beams": 1, "stream": True}).encode())
        with urlopen(asked, timeout=60) as answer:
            answer.readline()  # it is being decoded
            os.killpg(running.pid, signal.SIGTERM)  # as systemd does: to all of its processes
            *_, last = (line for line in answer if line.strip())
        assert len(json.loads(last.removeprefix(b"data: "))["outputs"][0]["token_ids"]) > 250
        assert running.wait(60) in (0, -signal.SIGTERM)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    finally:
        running.kill()
        running.stderr.close()
        running.wait()


def children_of(pid: int) -> list[int]:
    of_threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in of_threads for child in path.read_text().split()]


def weights_in_memory(pid: int, bundle: Path) -> tuple[int, int]:
    """kB of the files of weights that a process has mapped and read; and with shared pages divided among those who have
    them."""
    found, is_ours = {"Rss": 0, "Pss": 0}, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            is_ours = bool(rest) and rest[-1].startswith(str(bundle)) and "weights" in rest[-1]
        elif is_ours and name[:-1] in found:
            found[name[:-1]] += int(rest[0])
    return found["Rss"], found["Pss"]


def test_processes_map_the_same_weights(words, tmp_path):
    path = tmp_path / "en-mul"
    shutil.copytree(words, path)
    build(path, "cpu-int8")
    found = open_processes(path)
    try:
        session = found.session
        jobs = found.submit([source(5, seed) for seed in range(8)], session.options(num_beams=2, max_new_tokens=4))
        assert all(job.future.result(60) for job in jobs)
        for engine in found.engines:
            alone, shared = weights_in_memory(engine.pid, path)
            assert 0 < shared < 0.8 * alone, "the other process has other pages"
        assert not session.backend._sessions, "the server's own process has opened graphs"
    finally:
        found.close(10)


def test_sound_is_transcribed_in_processes(tmp_path):
    s2s_export.export(tiny_whisper.save(tmp_path / "checkpoint", 3), tmp_path / "whisper")
    session = s2s_export.load(tmp_path / "whisper", threads=1)
    sound, options = tiny_whisper.clip(1, 1.5), {"language": "en", "temperature": 0.0}
    expected = session.transcribe(sound, **options).finish()
    found = open_processes(tmp_path / "whisper", session=session)
    try:
        heard: SimpleQueue = SimpleQueue()
        found.transcribe(sound, options, heard.put)
        parts = [heard.get(timeout=60)]
        while not isinstance(parts[-1], Transcript):
            parts.append(heard.get(timeout=60))
        assert parts[-1].text == expected.text and len(parts) == 1 + len(expected.segments)
        found.transcribe(sound, {"language": "klingon"}, heard.put)
        assert "klingon" in str(heard.get(timeout=60))
        for engine in found.engines:
            os.kill(engine.pid, signal.SIGSTOP)
        found.transcribe(sound, options, heard.put)
        for engine in found.engines:
            os.kill(engine.pid, signal.SIGKILL)
        assert isinstance(heard.get(timeout=60), EngineLost)
        assert all(engine.n_transcribing == 0 for engine in found.engines)
    finally:
        found.close(10)
