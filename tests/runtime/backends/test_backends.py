"""Every backend that works here gives the same hypotheses; the others say why they don't."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref

import pytest
import tiny_models
from tiny_names import STRUCTURES, in_the_long_run

import s2s_export
from s2s_export.errors import BackendUnavailable, UnknownOption
from s2s_export.runtime import backends, free_memory
from s2s_export.runtime.backends import onnxruntime

SOURCES = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]


@pytest.mark.parametrize("name", in_the_long_run(tiny_models.CONFIGS, STRUCTURES))
def test_torch_gives_what_onnxruntime_gives(exported, name):
    path = exported(name)[1]
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 12, "alignments": True}
    ours, theirs = (s2s_export.load(path, backend=b).generate(SOURCES, **options) for b in ("onnxruntime", "torch"))
    for a, b in zip(ours, theirs, strict=True):
        assert [h.token_ids for h in a] == [h.token_ids for h in b]
        assert [h.score for h in a] == pytest.approx([h.score for h in b], abs=1e-4)
        assert a[0].alignment == pytest.approx(b[0].alignment, abs=1e-4)


@pytest.mark.parametrize("name", backends.declared())
def test_a_backend_works_or_says_why(exported, name):
    reason = backends.declared()[name].unavailable()
    if reason is None:
        return
    assert "\n" not in reason
    with pytest.raises(BackendUnavailable, match=name):
        s2s_export.load(exported("marian")[1], backend=name)


def test_an_unknown_backend_names_its_neighbour(exported):
    with pytest.raises(UnknownOption, match="did you mean 'onnxruntime'"):
        s2s_export.load(exported("marian")[1], backend="onnxruntim")


def test_a_session_serves_several_threads(exported):
    session = s2s_export.load(exported("marian")[1], threads=1)
    cases = [([[5 + i, 6, 7]], {"num_beams": 1 + i % 3, "max_new_tokens": 15}) for i in range(12)]
    expected = [session.generate(s, **o)[0][0].token_ids for s, o in cases]
    found: list = [None] * len(cases)

    def work(first):
        for _ in range(5):
            for i in range(first, len(cases), 4):
                found[i] = session.generate(cases[i][0], **cases[i][1])[0][0].token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_sentences(exported):
    import resource

    session = s2s_export.load(exported("marian")[1], threads=1)

    def used() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    def decode(n):
        for i in range(n // 16):
            session.generate([[5 + (i + j) % 40] * (1 + j) for j in range(16)], num_beams=2, max_new_tokens=6)

    decode(2000)
    before = used()
    decode(10_000)
    assert used() - before < 8 * 2**20, "bytes"


def test_a_session_lives_no_longer_than_it_is_held(exported):
    """Its weights are freed with the last reference, and not some time later."""
    gc.collect()
    gc.disable()
    try:
        session = s2s_export.load(exported("t5")[1], backend="onnxruntime")
        session.generate([[5, 6]], max_new_tokens=3)
        seen = weakref.ref(session.backend)
        del session
        assert seen() is None
    finally:
        gc.enable()


def test_onnxruntime_is_not_loaded_where_there_is_no_room_for_it(monkeypatch):
    """The C library would end the process."""
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(free_memory, "left_of_process", lambda: onnxruntime.LEAST_ROOM - 1)
    assert "not enough memory to load onnxruntime" in (onnxruntime.unavailable() or "")
    assert "onnxruntime" not in sys.modules


def test_what_is_installed_and_broken_is_told_by_doctor(tmp_path):
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text('__version__ = "1.32.0"\nraise ImportError("no libfoo.so")\n')
    code = "from s2s_export.measuring.machine import describe; print(describe()['backends']['onnxruntime'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "onnxruntime can't be imported (no libfoo.so); pip install onnxruntime", done.stderr
