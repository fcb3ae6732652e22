"""Options given as text, with the shipped translator: glossaries, prefixes, choices, patterns, stop strings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import s2s_export
from s2s_export.errors import InvalidOption
from s2s_export.runtime.session import Session

TEXTS = [">>deu<< one thousand two hundred and five", ">>deu<< seventeen", ">>fra<< half past three"]


@pytest.fixture(scope="module")
def session(number_words: Path) -> Session:
    return s2s_export.load(number_words)


def test_the_spellings_are_what_decoding_joins(session: Session) -> None:
    spellings = session._texts.spellings
    assert spellings.strips_space
    for text in ("eintausendzweihundertfünf", "mille deux cent cinq", "12,50 €", "der dritte März 1998"):
        ids = session.tokenizer.encode_target(text)
        assert "".join(spellings.texts[i] or "?" for i in ids) == " " + text


def test_a_glossary_holds_where_its_words_occur(session: Session, tmp_path: Path) -> None:
    plain = session.translate(TEXTS, num_beams=4)
    file = tmp_path / "glossary.tsv"
    file.write_text("seventeen\tsiebenzehn\tsiebzehner\n\nunheard\tzwei\none thousand\ttausend\n", encoding="utf-8")
    for terms in (str(file), file, {"seventeen": ["siebenzehn", "siebzehner"], "unheard": "zwei"}):
        found = session.translate(TEXTS, num_beams=4, terms=terms)
        assert re.search("siebenzehn|siebzehner", found[1]) and found[1] != plain[1]
        assert found[2] == plain[2]
    assert session.translate([">>deu<< seventeenth"], terms={"seventeen": "zwei"}) == session.translate(
        [">>deu<< seventeenth"]
    )


def test_words_are_forced(session: Session) -> None:
    for text in session.translate(TEXTS, num_beams=6, force_words=[["drei", "trois"]]):
        assert "drei" in text or "trois" in text


@pytest.mark.parametrize("n_beams", [1, 4])
def test_an_output_goes_on_from_what_was_typed(session: Session, n_beams: int) -> None:
    for typed, wanted in [
        ("zweit", "zweitausendzweihundertfünf"), ("eintaus", "eintausendzweihundertfünf"), ("mille de", None),
    ]:  # fmt: skip
        (found,) = session.translate(TEXTS[:1], typed_prefix=typed, num_beams=n_beams)
        assert found.startswith(typed) and wanted in (None, found)
    (found,) = session.translate(TEXTS[:1], target_prefix="zwei", num_beams=n_beams)
    assert found.startswith("zwei")
    weak, strong = (
        session.translate(TEXTS[:1], target_prefix="zwei", prefix_bias_beta=beta, num_beams=n_beams)[0]
        for beta in (0.01, 0.999)
    )
    assert weak.startswith("eintausend") and strong.startswith("zwei")


def test_each_text_may_have_a_prefix_of_its_own(session: Session) -> None:
    found = session.translate([TEXTS[0]] * 4, target_prefix=["zwei", "", "drei", "zwei"])
    assert [text[:4] for text in found] == ["zwei", "eint", "drei", "zwei"] and found[0] == found[3]
    assert found[1] == session.translate(TEXTS[:1])[0]
    with pytest.raises(InvalidOption, match="target_prefix has 1 texts, expected one for each of 3 sources"):
        session.translate(TEXTS, target_prefix=["zwei"])


def test_outputs_are_guided(session: Session) -> None:
    given: dict[str, Any] = {"num_beams": 2}
    assert session.translate(TEXTS[1:2], choices=["eins", "siebzehn", "dix"], **given) == ["siebzehn"]
    assert session.translate(TEXTS[1:2], choices=["eins", "dix"], **given)[0] in ("eins", "dix")
    for expression in ("[a-z]+", "(zwei|drei)+", "[0-9]{2}"):
        for text in session.translate(TEXTS, regex=expression, max_new_tokens=40, **given):
            assert re.fullmatch(expression, text)
    assert session.translate(TEXTS[:1], regex=".*", target_prefix="zwei")[0].startswith("zwei")


def test_alternatives_and_stop_strings(session: Session) -> None:
    (found,) = session.generate(
        [session.encode(TEXTS[0])], return_alternatives=True, num_return_sequences=3, num_beams=2
    )
    assert found[0].text == "eintausendzweihundertfünf" and len({h.token_ids[1] for h in found}) == 3
    assert session.translate(TEXTS[:1], stop_strings="tausend") == ["eintausend"]
    assert session.translate(TEXTS[:1], stop_strings=["hundert", "tausend"], num_beams=1) == ["eintausend"]


def test_json_lines_take_the_same_options(number_words: Path, session: Session, tmp_path: Path) -> None:
    from command_line import run_here

    cases = [
        {"text": TEXTS[1], "terms": [["seventeen", "siebenzehn"]], "num_beams": 4},
        {"text": TEXTS[0], "typed_prefix": "zweit"},
        {"text": TEXTS[0], "stop_strings": ["tausend"]},
        {"text": TEXTS[1], "choices": ["eins", "dix"]},
        {"text": TEXTS[1], "regex": "("},
        {"text": TEXTS[1], "terms": [["seventeen", ""]]},
    ]
    file, out = tmp_path / "cases.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    run_here("generate", number_words, "--input", file, "--output", out, status=1)
    results = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    texts = [result["outputs"][0]["text"] if "outputs" in result else None for result in results]
    assert "siebenzehn" in texts[0] and texts[1].startswith("zweit") and texts[2] == "eintausend"
    assert texts[3] in ("eins", "dix")
    assert "is not a regular expression" in results[4]["error"] and "none of them empty" in results[5]["error"]


def test_what_cant_be_used_is_said(session: Session, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tsv"
    bad.write_text("one\teins\ntwo\t\n", encoding="utf-8")
    single = tmp_path / "single.tsv"
    single.write_text("one\n", encoding="utf-8")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"terms": str(bad)}, "line 2 has an empty term"), ({"terms": str(single)}, "line 1 has one column"),
        ({"terms": str(tmp_path / "none.tsv")}, "No such file"), ({"terms": {"": "x"}}, "none of them empty"),
        ({"terms": {"☃": "zwei"}}, "source form '☃', which the model's tokens can't spell"),
        ({"terms": 3}, "expected pairs of a source form"), ({"force_words": []}, "expected texts"),
        ({"force_words": ["日本"]}, "which the model's tokens can't spell"),
        ({"target_prefix": "日本"}, "which the model's tokens can't spell"),
        ({"target_prefix": "a", "typed_prefix": "b"}, "expected one of them"),
        ({"target_prefix": "ein", "decoder_input_ids": [4]}, "expected one of them"),
        ({"choices": []}, "expected texts"), ({"choices": ["eins"] * 2, "max_new_tokens": 1}, "there is room for 1"),
        ({"regex": "日本"}, "allows nothing that the model's tokens can spell"),
        ({"stop_strings": 3}, "expected texts"), ({"regex": "a+", "stop_strings": "a"}, "would cut what choices"),
        ({"typed_prefix": ""}, "expected a text"),
    ]  # fmt: skip
    for given, message in cases:
        with pytest.raises(InvalidOption, match=message):
            session.translate(TEXTS, **{"num_beams": 2, **given})


def test_coverage_needs_attention(bundled: Any) -> None:
    session = s2s_export.load(bundled("lstm"))
    with pytest.raises(InvalidOption, match="has no attention to the source"):
        session.generate([[5, 6]], num_beams=2, coverage_penalty=0.1)


def test_every_option_is_explained() -> None:
    from s2s_export.runtime.decoding import resolve, search_options
    from s2s_export.runtime.text_options import NAMES

    text = (Path(__file__).parents[2] / "docs" / "options.md").read_text(encoding="utf-8")
    known = resolve({}, {"bos_token_id": 0}, vocabulary_size=9).values()
    internal = {"target_prefix_ids", "timestamp_begin"}  # what target_prefix and return_timestamps become
    for name in {*known, *search_options.OPTIONS, *NAMES, "confidence", "mbr", "keep", "keep_unknown"} - internal:
        assert f"`{name}`" in text, name


def test_a_checkpoints_own_stop_strings_work(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(session.bundle.manifest["generation"], "stop_strings", ["tausend"])
    assert session.translate(TEXTS[:1]) == ["eintausend"]
