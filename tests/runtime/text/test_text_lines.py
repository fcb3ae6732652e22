"""Lines of a file: the byte-order mark, both line ends, and nothing else."""

from __future__ import annotations

import io
import json

import pytest

import s2s_export
from s2s_export import bundle as bundles
from s2s_export.building import samples
from s2s_export.building.shortlist.making import read_pairs as read_shortlist_pairs
from s2s_export.runtime.text import lines_of, read_lines
from s2s_export.training.data import read_pairs


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", [b""]),
        (b"\xef\xbb\xbfa\r\nb\n\r\nc", [b"a", b"b", b"", b"c"]),
        (b"a\n\xef\xbb\xbfb\n", [b"a", b"\xef\xbb\xbfb"]),
        (b"a\rb\r\r\n", [b"a\rb\r"]),
        ("a\u2028b\x0cc\x85\n".encode(), ["a\u2028b\x0cc\x85".encode()]),
        (b"\xff\n", [b"\xff"]),
    ],
)
def test_lines(raw, lines, tmp_path):
    assert list(read_lines(io.BytesIO(raw))) == lines
    (tmp_path / "a").write_bytes(raw)
    assert lines_of(tmp_path / "a") == lines


def test_lines_come_one_by_one():
    def stream():
        yield b"\xef\xbb\xbfa\n"
        raise AssertionError("read ahead")

    assert next(read_lines(stream())) == b"a"


def test_every_reader_of_files_takes_windows_text(tmp_path, bundled):
    windows, plain = tmp_path / "windows.tsv", tmp_path / "plain.tsv"
    plain.write_bytes("5 6\t7\n8\u2028 9\t4\n".encode())
    windows.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n"))
    opened = bundles.read(bundled("marian"))
    assert read_pairs(windows) == read_pairs(plain) and len(read_pairs(plain)) == 2
    assert read_shortlist_pairs(opened, windows) == read_shortlist_pairs(opened, plain)


def test_samples_take_windows_text(tmp_path, bundled, pair_of, monkeypatch):
    pair = pair_of("marian/slow")
    opened = s2s_export.load(bundled("marian")).bundle
    entry = json.loads(json.dumps(pair.entry))
    monkeypatch.setitem(opened.manifest, "tokenizer", entry)
    monkeypatch.setattr(samples.text, "load", lambda folder, entry: pair.tokenizer)
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfHello\r\nworld\r\n")
    (tmp_path / "plain.txt").write_bytes(b"Hello\nworld\n")
    found = [samples._read(opened, 2, tmp_path / f"{name}.txt")[0] for name in ("windows", "plain")]
    assert found[0] == found[1]
