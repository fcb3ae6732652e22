"""Options that commands share: defaults of generate, names that are nearly right, help in sections, what runs."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from command_line import run_here

from s2s_export.cli import s2s
from s2s_export.cli._help import SECTIONS, Command


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    texts = [{"id": 1, "text": "two"}, {"id": 2, "text": "two", "num_return_sequences": 1, "target_lang": "fra"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in texts), encoding="utf-8")
    return path


def generate(bundle: Path, lines: Path, *options: str, status: int = 0) -> tuple[list[dict], str]:
    out, err = run_here("generate", bundle, "--input", lines, "--output", "-", *options, status=status)
    return [json.loads(line) for line in out.splitlines()], err


def test_options_are_defaults_of_the_lines_that_lack_them(number_words: Path, lines: Path) -> None:
    given = ("--num-beams", "2", "--num-return-sequences", "2", "--target-lang", "deu")
    found, _ = generate(number_words, lines, *given)
    assert [len(line["outputs"]) for line in found] == [2, 1]
    assert [line["outputs"][0]["text"] for line in found] == ["zwei", "deux"]
    found, _ = generate(number_words, lines, "--option", "target_prefix=drei", "--target-lang", "deu", "--confidence")
    assert found[0]["outputs"][0]["text"].startswith("drei") and "confidence" in found[0]["outputs"][0]


def test_wrong_defaults_are_told_once(number_words: Path, lines: Path) -> None:
    _, err = generate(number_words, lines, "--option", "num_beems=2", status=2)
    assert "unknown generation option 'num_beems'; did you mean 'num_beams'?" in err
    _, err = generate(number_words, lines, "--option", "num_beams=2", "--num-beams", "3", status=2)
    assert "num_beams is given twice" in err
    _, err = generate(number_words, lines, "--option", "beams", status=2)
    assert "expected NAME=VALUE" in err
    found, _ = generate(number_words, lines, "--option", "num_beams=x", status=1)
    assert all("num_beams is 'x'" in line["error"] for line in found), "a value is judged with the line's own options"


def test_what_runs_is_said_with_its_precision(number_words: Path) -> None:
    out, err = run_here("translate", number_words, ">>deu<< two", "--no-engines")
    assert out == "zwei\n" and "backend: onnxruntime, portable graphs (fp32)\n" in err
    assert run_here("translate", number_words, ">>deu<< two", "--quiet") == ("zwei\n", "")


def test_alignments_of_a_layer_and_a_head(number_words: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    given = ["translate", number_words, ">>deu<< two", "--quiet", "--alignments", file]

    def weights(*options: str) -> tuple[list[list[float]], str]:
        run_here(*given, *options)
        (record,) = json.loads(file.read_text())
        return record["weights"], record["attention"]

    mean, title = weights()
    assert title == "last decoder layer, mean over heads"
    heads = [weights("--alignment-head", str(head))[0] for head in range(4)]
    average = [[sum(cells) / 4 for cells in zip(*rows, strict=True)] for rows in zip(*heads, strict=True)]
    assert all(row == pytest.approx(other, abs=1e-4) for row, other in zip(average, mean, strict=True))
    assert weights("--alignment-layer", "-1")[0] == mean
    first, title = weights("--alignment-layer", "0", "--alignment-head", "1")
    assert first != heads[1] and title == "decoder layer 0, head 1"
    _, err = run_here(*given, "--alignment-layer", "9", status=2)
    assert "--alignment-layer is 9; the decoder has 2: expected 0 to 1" in err
    _, err = run_here(*given[:-2], "--alignment-head", "1", status=2)
    assert "choose what --alignments FILE writes" in err


def test_a_picture_has_any_text_in_it(number_words: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run_here("translate", number_words, ">>deu<< $_{2 \\$ 3}$", "--quiet", "--alignments", tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {text} -->" in drawn for text in ("attention weight", "source tokens"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["translate", "B", "x", "--backend", "onnxrutime"], "did you mean 'onnxruntime'?"),
        (["translate", "B", "x", "--target", "portabel"], "did you mean 'portable'?; see: s2s build --list"),
        (["translate", "B", "x", "--target", "jetson-orin-fp16"], "run: s2s build"),
        (["translate", "B", "x", "--num-beem", "2"], "'--num-beams'"),
        (["train", "x", "--model", "transformr"], "did you mean 'transformer'?"),
        (["export", "x", "y", "--precision", "fp31"], "did you mean 'fp32'?"),
        (["bench", "B", "--targets", "cpu-int9"], "unknown target 'cpu-int9'; did you mean 'cpu-int8'?"),
        (["translat"], "did you mean 'translate'?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_name_that_is_nearly_right(number_words: Path, arguments: list[str], said: str) -> None:
    status = 1 if "--target" in arguments else 2
    _, err = run_here(*[number_words if argument == "B" else argument for argument in arguments], status=status)
    assert said in err


def test_every_command_is_in_a_section_and_every_option_says_what_it_does() -> None:
    out, _ = run_here("--help")
    with click.Context(s2s) as context:
        for name in s2s.list_commands(context):
            command = s2s.get_command(context, name)
            assert isinstance(command, Command) and command.section in SECTIONS[:-1], name
            assert f"\n{command.section}:\n" in out
            options = [param for param in command.params if isinstance(param, click.Option)]
            bare = [option.opts[0] for option in options if not option.help or option.help.startswith("[")]
            assert not bare, f"{name}: options without a word of help"
    out, _ = run_here("translate", "--help")
    order = [out.index(f"\n{title}") for title in ("Options:", "Decoding, by", "Decoding beyond", "What runs it:")]
    assert order == sorted(order) and out.index("--threads") > order[-1]


def test_wrong_samples_are_told_before_anything_is_built(number_words: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\n \n")
    (tmp_path / "bad").write_bytes(b"good\n\xff\xfe\n")
    for name, said in (("empty", "has no lines; expected a source a line"), ("bad", "bad: line 2: byte 0")):
        _, err = run_here("build", number_words, "--target", "cpu-int8", "--samples", tmp_path / name, status=2)
        assert said in err and "rewrite graphs" not in err
    assert not (number_words / "engines" / "cpu-int8").exists()
