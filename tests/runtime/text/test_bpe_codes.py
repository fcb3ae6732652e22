"""Merges of subword-nmt and fastBPE: pieces of words, against a plain definition and against subword-nmt itself."""

from __future__ import annotations

import random
from pathlib import Path

import fairseq_files
import pytest

import s2s_export
from s2s_export.errors import BundleError, CheckpointError
from s2s_export.runtime.text.bpe_codes import BpeCodes, joined

MERGES = [("l", "o"), ("lo", "w</w>"), ("e", "r</w>"), ("lo", "w"), ("n", "e"), ("a", "a"), ("aa", "a"), ("ne", "w")]
WORDS = ["low", "lower", "new", "newer", "aaaa", "aaaaa", "a", "x", "ow", "slow", "neew", "Größe", "日本"]


def write(path: Path, *, version: str | None = None, counts: bool = False, merges=MERGES) -> Path:
    lines = [f"#version: {version}"] if version else []
    lines += [f"{a} {b}{f' {99 - i}' if counts else ''}" for i, (a, b) in enumerate(merges)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def plainly(word: str) -> list[str]:
    """Merge by merge in the order in which they were learned is the same, as none can come back."""
    symbols = [*word[:-1], word[-1] + "</w>"]
    while True:
        for a, b in MERGES:
            place = next((i for i in range(len(symbols) - 1) if (symbols[i], symbols[i + 1]) == (a, b)), None)
            if place is not None:
                symbols[place : place + 2] = [a + b]
                break
        else:
            break
    symbols[-1] = symbols[-1].removesuffix("</w>")
    return [symbol + "@@" for symbol in symbols[:-1]] + symbols[-1:]


@pytest.mark.parametrize("options", [{"version": "0.2"}, {"counts": True}], ids=["subword-nmt", "fastBPE"])
def test_words_are_split_by_the_first_learned_merges(tmp_path: Path, options: dict) -> None:
    codes = BpeCodes.read(write(tmp_path / "codes", **options))
    chance = random.Random(1)
    words = WORDS + ["".join(chance.choice("lowerna") for _ in range(chance.randint(1, 9))) for _ in range(300)]
    assert codes.split("lower") == ["low@@", "er"] and codes.split("low") == ["low"]
    assert codes.split("wor@@") == ["wor@@"]
    for word in words:
        assert codes.split(word) == plainly(word), word
        assert joined(" ".join(codes.split(word))) == word


def test_they_are_those_of_subword_nmt(tmp_path: Path) -> None:
    apply_bpe = pytest.importorskip("subword_nmt.apply_bpe", reason="pip install --no-deps subword-nmt")
    chance = random.Random(2)
    text = " ".join("".join(chance.choice("lowerna") for _ in range(chance.randint(1, 12))) for _ in range(2000))
    apart = [(a, b) for a, b in MERGES if "</w>" not in b] + [("lo", "w"), ("r", "</w>"), ("e", "r</w>")]
    for version, merges in (("0.2", MERGES), ("0.1", apart), (None, apart)):
        file = write(tmp_path / "codes", version=version, merges=merges)
        with file.open(encoding="utf-8") as opened:
            theirs = apply_bpe.BPE(opened).process_line(text)
        codes = BpeCodes.read(file)
        assert " ".join(piece for word in text.split() for piece in codes.split(word)) == theirs, version


def test_a_file_that_holds_no_merges(tmp_path: Path) -> None:
    for content, message in ((b"\n", "holds no merges"), (b"a b c d\n", "line 1 is no pair"), (b"\xff", "as UTF-8")):
        (tmp_path / "codes").write_bytes(content)
        with pytest.raises(BundleError, match=message):
            BpeCodes.read(tmp_path / "codes")


def test_fairseqs_checkpoints_take_words(tmp_path: Path) -> None:
    folder = fairseq_files.save(tmp_path / "m")
    write(folder / "bpecodes", counts=True)
    for language in ("xx", "yy"):
        file = folder / f"dict.{language}.txt"
        pieces = ["low@@", "er", "low", "new@@", "n@@"]
        lines = file.read_text(encoding="utf-8").splitlines()
        lines[: len(pieces)] = [f"{piece} 5" for piece in pieces]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    session = s2s_export.load(s2s_export.export(folder, tmp_path / "b").path, threads=1)
    assert session.tokenizer.encode("lower low") == [4, 5, 6, 2]
    assert session.tokenizer.decode([2, 7, 5, 6, 4, 2]) == "newer low low"
    assert session.translate(["lower newer"], max_new_tokens=6)
    (folder / "bpecodes").write_text("a b c d\n")
    with pytest.raises(CheckpointError, match="line 1 is no pair of symbols"):
        s2s_export.export(folder, tmp_path / "b", force=True)
