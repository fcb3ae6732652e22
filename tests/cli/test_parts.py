"""Work in parts: --shard splits a file over machines, --resume goes on where a killed run stopped."""

from __future__ import annotations

import json

import pytest
from command_line import run_here, s2s

from s2s_export.errors import InvalidOption
from s2s_export.runtime.sharding import Shard

LINES = [">>deu<< one", "", ">>fra<< two", ">>deu<< " + "x " * 3000, ">>deu<< four", ">>fra<< five", ">>deu<< six"]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("n_items", [0, 1, 7, 1000])
def test_shards_are_all_of_the_work(n, n_items):
    parts = [Shard.of(f"{i}/{n}").of_items(n_items) for i in range(n)]
    assert [item for part in parts for item in part] == list(range(n_items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["1/1", "-1/3", "3/3", "1/0", "a/b", "1", "1/2/3", "0/1000000"])
def test_a_shard_that_is_none(text):
    with pytest.raises(InvalidOption, match="expected I/N"):
        Shard.of(text)


@pytest.mark.slow
def test_a_translation_in_parts(number_words, tmp_path):
    (tmp_path / "in.txt").write_text("\n".join(LINES) + "\n")
    options = ["--num-beams", "2", "--num-return-sequences", "2", "-q", "--input", tmp_path / "in.txt"]
    s2s("translate", number_words, *options, "--output", tmp_path / "whole.txt", status=1)
    failing = [1 if 3 in Shard(i, 3).of_items(len(LINES)) else 0 for i in range(3)]
    for i, status in enumerate(failing):
        shard = ["--output", tmp_path / "out.txt", "--shard", f"{i}/3"]
        s2s("translate", number_words, *options, *shard, status=status)
    parts = sorted(tmp_path.glob("out-*"))
    assert [part.name for part in parts] == [f"out-0000{i}-of-00003.txt" for i in range(3)]
    whole = (tmp_path / "whole.txt").read_text()
    assert "".join(part.read_text() for part in parts) == whole
    assert whole.count("\n") == 2 * len(LINES), "a line that is blank or fails gives as many lines as the others"
    # Killed in the middle of the second line of an output.
    raw = parts[0].read_bytes()
    parts[0].write_bytes(raw[: raw.index(b"\n") + 3])
    done = s2s("translate", number_words, *options[:-3], *options[-2:], "--output", tmp_path / "out.txt",
               "--shard", "0/3", "--resume")  # fmt: skip
    assert "continuing after 0 of 2 lines" in done.stderr and parts[0].read_bytes() == raw


def test_results_in_parts(number_words, tmp_path):
    """What is drawn for a line is the same in whichever part it is decoded."""
    drawn = {"do_sample": True, "seed": 4, "temperature": 2.0}
    cases = [{"id": i, "text": LINES[2 * (i % 2)], **(drawn if i % 3 else {})} for i in range(11)]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    common = ["generate", number_words, "--input", tmp_path / "cases.jsonl", "-q", "--output"]
    run_here(*common, tmp_path / "whole.jsonl")
    for i in range(3):
        run_here(*common, tmp_path / "out.jsonl", "--shard", f"{i}/3", "--resume")
    parts = sorted(tmp_path.glob("out-*"))
    whole = (tmp_path / "whole.jsonl").read_text()
    assert len(parts) == 3 and "".join(part.read_text() for part in parts) == whole
    text = parts[1].read_text()
    parts[1].write_text(text[: text.index("\n") + 9])
    run_here(*common, tmp_path / "out.jsonl", "--shard", "1/3", "--resume")
    assert "".join(part.read_text() for part in parts) == whole


def test_what_can_not_be_done_in_parts(number_words, tmp_path):
    (tmp_path / "in.txt").write_text("one\n")
    file = ["--input", tmp_path / "in.txt", "--output", tmp_path / "out.txt"]
    for arguments, message in (
        (["one", "--shard", "0/2"], "give --input and --output"),
        ([*file, "--shard", "2/2"], "expected I/N"),
        ([*file, "--resume", "--stream"], "leave out --alignments and --stream"),
    ):
        assert message in s2s("translate", number_words, *arguments, status=2).stderr
    (tmp_path / "out.txt").write_text("eins\nzwei\n")
    done = s2s("translate", number_words, *file, "--resume", status=2)
    assert "holds the output of 2 lines, but there are 1" in done.stderr
    cases = ["generate", number_words, "--input", tmp_path / "in.txt", "--output", "-", "--shard", "0/2"]
    assert "give --output the name of a file" in s2s(*cases, status=2).stderr
