"""`s2s evaluate`: what engines make of the user's own data, each in a process of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from s2s_export.building.build import build
from s2s_export.cli import s2s
from s2s_export.errors import InputError
from s2s_export.measuring.evaluate import page, run

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "examples" / "models" / "number-words"
PAIRS = [
    (">>deu<< twenty-one", "einundzwanzig"), (">>fra<< twenty-one", "vingt et un"), (">>deu<< two", "drei"),
    (">>deu<< " + "twenty " * 400, "zu lang"),
]  # fmt: skip


@pytest.fixture(scope="module")
def record(number_words: Path, tmp_path_factory: Any) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("evaluate")
    shutil.copytree(number_words, folder / "bundle")
    build(folder / "bundle", "cpu-int8")
    (folder / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in PAIRS), encoding="utf-8")
    options = run.Options(checkpoint=str(CHECKPOINT), threads=1, generation={"num_beams": 2})
    return run.evaluate(str(folder / "bundle"), str(folder / "pairs.tsv"), options)


def test_every_engine_is_scored_beside_pytorch(record: dict[str, Any]) -> None:
    results = {result["name"]: result for result in record["results"]}
    assert list(results) == ["PyTorch", "portable", "cpu-int8"]
    for result in results.values():
        assert result["reason"] is None
        assert result["exact_match"] == 0.5  # of four: one has a wrong reference, one fails
        assert 0 <= result["bleu"] < 100 and 0 < result["chrf"] < 100
        assert result["n_failed"] == 1 and "tokens, but the model allows" in result["failures"][0][1]
        assert result["tokens_per_second"] > 0 and result["peak_bytes"] > 2**24
    assert results["portable"]["equal_to_first"] == 1.0
    assert results["portable"]["peak_bytes"] < results["PyTorch"]["peak_bytes"]
    assert record["data"]["pairs"] == 4 and record["machine"]["cores"] >= 1


def test_the_table_and_the_page_say_it(record: dict[str, Any]) -> None:
    text = page.render(record)
    assert text.splitlines()[0].split() == " ".join(page.HEADER).split()
    assert "portable wrote the same texts as PyTorch." in text
    assert "line 4: the source has" in text
    html = page.render_page(record)
    assert html.startswith("<!doctype html>") and "<td>cpu-int8</td>" in html


def test_texts_that_differ_are_shown(record: dict[str, Any]) -> None:
    first = run.Result("a", texts=("x", "y<"))
    second = run.Result("b", texts=("x", "z"), equal_to_first=0.5, exact_match=0.5, chrf=3.0)
    examples = run._examples([("s", "r"), ("t", "q")], [first, second, run.Result("c", reason="is not there")])
    assert examples == [{"source": "t", "reference": "q", "texts": {"a": "y<", "b": "z"}}]
    results = [{**vars(one), "failures": []} for one in (first, second)]
    html = page.render_page({**record, "results": results, "examples": examples})
    assert "y&lt;" in html and "for 50.0% of the sources; chrF changed by +3.00" in html


def test_the_command(number_words: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text(">>deu<< two\tzwei\n\n", encoding="utf-8")
    given = ["evaluate", str(number_words), "--data", str(tmp_path / "p.tsv"), "--threads", "1", "-q"]
    out = CliRunner().invoke(s2s, [*given, "--json", "--html", str(tmp_path / "page.html")])
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout)["results"][0]["exact_match"] == 1.0
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no pairs"), ("a\n", "line 1 has 1 column;"), ("a\tb\n\na\tb\tc\n", "line 3 has 3 columns")],
)
def test_wrong_pairs_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        run.read_pairs(str(tmp_path / "p.tsv"))


def test_what_is_not_there_is_named(number_words: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("a\tb\n")
    data = str(tmp_path / "p.tsv")
    with pytest.raises(Exception, match="unknown engine of this bundle 'cpu-fp32'"):
        run.evaluate(str(number_words), data, run.Options(targets=("cpu-fp32",)))
    with pytest.raises(Exception, match="expected the folder that the bundle was exported from"):
        run.evaluate(str(number_words), data, run.Options(checkpoint="nowhere"))
    with pytest.raises(InputError, match="can't be read"):
        run.evaluate(str(number_words), str(tmp_path / "none"), run.Options())
