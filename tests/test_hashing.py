"""Files are compared with their sha256 before they are used, once for as long as nobody touches them."""

from __future__ import annotations

import hashlib
import os

import pytest

import s2s_export
from s2s_export import engines, hashing
from s2s_export.bundle import Bundle
from s2s_export.errors import EngineError

LARGE = hashing.WORTH_REMEMBERING + 5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "s2s_export" / "hashes"


@pytest.fixture
def calls(monkeypatch):
    done, plain = [], hashing.sha256
    monkeypatch.setattr(hashing, "sha256", lambda path: done.append(path.name) or plain(path))
    return done


def test_a_large_file_is_hashed_once(tmp_path, calls, cache, monkeypatch):
    monkeypatch.setattr(hashing, "SETTLED", -1)
    content = os.urandom(LARGE)
    (tmp_path / "w").write_bytes(content)
    found = [hashing.sha256_of([tmp_path / "w"]) for _ in range(3)]
    assert found == [[hashlib.sha256(content).hexdigest()]] * 3 and calls == ["w"]
    assert len(list(cache.iterdir())) == 1


def test_a_file_that_was_touched_is_hashed_again_also_with_its_time_set_back(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(hashing, "SETTLED", -1)
    path = tmp_path / "w"
    path.write_bytes(bytes(LARGE))
    before = hashing.sha256_of([path])
    state = path.stat()
    with path.open("r+b") as file:
        file.write(b"x" * 64)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert hashing.sha256_of([path]) != before and calls == ["w", "w"]


def test_neither_a_file_of_this_moment_nor_a_small_one_is_remembered(tmp_path, calls, cache):
    (tmp_path / "w").write_bytes(bytes(LARGE))
    (tmp_path / "small").write_bytes(b"x")
    for _ in range(2):
        hashing.sha256_of([tmp_path / "w", tmp_path / "small"])
    assert len(calls) == 4 and not cache.exists()


@pytest.mark.parametrize("content", [b"", b"1 2 3", b"\xff\xfe", b"x" * 64])
def test_a_damaged_memory_is_not_believed(tmp_path, cache, content, monkeypatch):
    monkeypatch.setattr(hashing, "SETTLED", -1)
    (tmp_path / "w").write_bytes(bytes(LARGE))
    expected = hashing.sha256_of([tmp_path / "w"])
    next(cache.iterdir()).write_bytes(content)
    assert hashing.sha256_of([tmp_path / "w"]) == expected


def test_a_cache_that_can_not_be_written_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "SETTLED", -1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "w").write_bytes(bytes(LARGE))
    assert hashing.sha256_of([tmp_path / "w"]) == [hashlib.sha256(bytes(LARGE)).hexdigest()]


def engine_of(folder, **files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {"files": {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()}}


def test_a_damaged_engine_is_one_sentence(tmp_path):
    engine = engine_of(tmp_path, graph=b"g" * 500, weights=b"w" * 5000)
    opened = Bundle(tmp_path, {}, verify=True)
    engines.check_files(opened, tmp_path, engine, "build it again")
    with (tmp_path / "weights").open("r+b") as file:
        file.seek(2000)
        file.write(b"x" * 64)
    with pytest.raises(EngineError, match="weights: is not what was built, the file is damaged; build it again"):
        engines.check_files(opened, tmp_path, engine, "build it again")
    engines.check_files(Bundle(tmp_path, {}), tmp_path, engine, "build it again")


@pytest.mark.slow
def test_a_damaged_engine_translates_nothing(copied):
    from s2s_export.building.build import build

    path = copied("marian")
    report = build(path, "cpu-fp32")
    s2s_export.load(path, target="cpu-fp32")
    largest = max(report.engine["files"], key=lambda name: report.engine["files"][name]["bytes"])
    with (report.path / largest).open("r+b") as file:
        file.seek(report.engine["files"][largest]["bytes"] // 2)
        file.write(b"\x7f" * 64)
    with pytest.raises(EngineError, match="the file is damaged; run: s2s build"):
        s2s_export.load(path, target="cpu-fp32")
