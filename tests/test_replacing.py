"""Whatever happens at whatever moment, the old or the new one is whole: bundles, engines, checkpoints, files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2s_export import bundle, replacing
from s2s_export.errors import BundleError, InvalidOption

KILLS = Path(__file__).parent / "helpers" / "kills.py"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and links as POSIX has them")


def kills(scenario, folder, method, first, last):
    done = subprocess.run(
        [sys.executable, KILLS, scenario, folder, method, str(first), str(last)],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("method", ["exchange", "two-moves"])
@pytest.mark.parametrize(("scenario", "first"), [("bundle", 14), ("engine", 7)])
def test_a_few_kills(tmp_path, scenario, first, method):
    """The moments around the exchange; all of them are slow."""
    assert kills(scenario, tmp_path / "x", method, first, first + 5) == 6


def test_kills_in_the_middle_of_a_result(tmp_path):
    """Half a line is on the disk; --resume cuts it off and goes on."""
    assert kills("results", tmp_path / "x", "exchange", 1, 20) == 20


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exchange", "two-moves"])
@pytest.mark.parametrize(
    ("scenario", "least"),
    [("bundle", 20), ("engine", 12), ("checkpoint", 14), ("export", 25), ("file", 4), ("results", 60)],
)
def test_kills_before_every_file_operation(tmp_path, scenario, least, method):
    """About 310 in all."""
    assert kills(scenario, tmp_path / "x", method, 1, 1000) >= least


@pytest.fixture(params=["exchange", "two-moves"])
def method(request, monkeypatch):
    if request.param == "two-moves":
        monkeypatch.setattr(replacing, "_C", None)
    return request.param


def put(path, text):
    with replacing.folder(path, replace=True) as work:
        (work / "a").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path, method):
    for text in ("old", "new"):
        put(tmp_path / "x", text)
        assert (tmp_path / "x" / "a").read_text() == text and names(tmp_path) == ["x"]


def test_a_failure_leaves_the_old_one(tmp_path, method):
    put(tmp_path / "x", "old")
    with pytest.raises(KeyboardInterrupt), replacing.folder(tmp_path / "x", replace=True) as work:
        (work / "a").write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "x" / "a").read_text() == "old" and names(tmp_path) == ["x"]


def test_a_folder_that_appears_is_not_overwritten(tmp_path, method):
    with pytest.raises(InvalidOption, match="exists already"), bundle.writing(tmp_path / "x") as work:
        (work / "a").write_text("new")
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "thesis").write_text("years of work")
    assert names(tmp_path / "x") == ["thesis"] and names(tmp_path) == ["x"]


def test_one_that_appears_at_the_last_moment_is_not_overwritten(tmp_path, method, monkeypatch):
    flush = replacing._flush

    def late(work):
        flush(work)
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "thesis").write_text("years of work")

    monkeypatch.setattr(replacing, "_flush", late)
    with pytest.raises(InvalidOption, match="appeared in the meantime"), bundle.writing(tmp_path / "x") as work:
        (work / "a").write_text("new")
    assert names(tmp_path / "x") == ["thesis"] and names(tmp_path) == ["x"]


def test_a_link_is_kept_and_what_it_points_to_is_written(tmp_path, method):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "x")
    for text in ("old", "new"):
        put(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "x" / "a").read_text() == text
    (tmp_path / "text").symlink_to(tmp_path / "real" / "y")
    replacing.write_text(tmp_path / "text", "é")
    assert (tmp_path / "text").is_symlink() and (tmp_path / "real" / "y").read_text(encoding="utf-8") == "é"
    assert names(tmp_path / "real") == ["x", "y"]


def test_leftovers_go_and_what_another_run_is_writing_stays(tmp_path):
    leftover, foreign, other = (tmp_path / f".{name}.s2s-new" for name in ("x.abcd_123", "x.abc", "y.abcd_123"))
    for path in (leftover, foreign, other):
        path.mkdir()
    (tmp_path / ".f.abcd_123.s2s-new").write_text("half a file")
    with replacing.folder(tmp_path / "x", replace=True) as first:
        (first / "a").write_text("first")
        put(tmp_path / "x", "second")
        assert (first / "a").read_text() == "first"
    replacing.write_text(tmp_path / "f", "whole")
    assert names(tmp_path) == sorted([foreign.name, other.name, "f", "x"])
    assert (tmp_path / "x" / "a").read_text() == "first", "who ends last, stays"


def test_what_was_moved_aside_is_put_back_by_whoever_comes(tmp_path):
    put(tmp_path / "x", "old")
    (tmp_path / "x").rename(tmp_path / ".x.s2s-previous")
    replacing.put_back(tmp_path / "x")
    assert (tmp_path / "x" / "a").read_text() == "old" and names(tmp_path) == ["x"]


def test_an_error_names_what_the_user_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/x") as caught:
        replacing.write_text(tmp_path / "file" / "x", "")
    assert caught.value.filename == str(tmp_path / "file" / "x")
    with (
        pytest.raises(BundleError, match=f"{tmp_path}/file/x: can't be written"),
        bundle.writing(tmp_path / "file" / "x"),
    ):
        pass
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(OSError, match="mount point") as caught:
        put(tmp_path / "x", "")
    assert caught.value.errno == errno.EBUSY and names(tmp_path) == ["file"]


def test_a_file_keeps_its_mode_and_a_failure_keeps_the_file(tmp_path):
    path = tmp_path / "f"
    replacing.write_text(path, "old")
    path.chmod(0o640)
    with pytest.raises(ValueError, match="no"), replacing.file(path) as work:
        work.write_text("half")
        raise ValueError("no")
    assert path.read_text() == "old"
    replacing.write_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o640 and names(tmp_path) == ["f"]


def test_a_pipe_is_written_as_it_is(tmp_path):
    read, write = os.pipe()
    replacing.write_text(f"/dev/fd/{write}", "through")
    assert os.read(read, 100) == b"through"
    for end in (read, write):
        os.close(end)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_ctrl_c_right_after_the_hidden_name_was_made_leaves_nothing(tmp_path, monkeypatch, kind):
    def interrupt(*_):
        raise KeyboardInterrupt

    made = {
        "folder": lambda: replacing.folder(tmp_path / "a", replace=True),
        "file": lambda: replacing.file(tmp_path / "a"),
    }
    monkeypatch.setattr(replacing, {"folder": "_lock", "file": "_try_lock"}[kind], interrupt)
    with pytest.raises(KeyboardInterrupt), made[kind]():
        pass
    assert list(tmp_path.iterdir()) == []
