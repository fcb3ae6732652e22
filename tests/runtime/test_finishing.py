"""What is done to outputs: kept parts of the source, minimum Bayes risk, confidence."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import s2s_export
from s2s_export.errors import InvalidOption
from s2s_export.runtime import keeping, mbr
from s2s_export.runtime.confidence import of_words, sentence, words
from s2s_export.runtime.finishing import Finishing
from s2s_export.runtime.session import Session

# Messages as catalogues have them, with what may not be translated.
MESSAGES: dict[str, list[tuple[str, list[str]]]] = {
    "gettext": [
        ("Removed %d files from %s.", ["%d", "%s"]),
        ("%(count)d of %(total)s (100%%)", ["%(count)d", "%(total)s", "%%"]),
        ("%1$s likes %2$s", ["%1$s", "%2$s"]), ("%-5.2f s, %lu bytes, %llx", ["%-5.2f", "%lu", "%llx"]),
        ("100 % sure", []),
    ],
    "icu": [
        ("Hello {name}, it is {0}", ["{name}", "{0}"]), ("{0, number, integer} of {when, date, short}",
                                                        ["{0, number, integer}", "{when, date, short}"]),
        ("a { b } c {}", []),
    ],
    "qt": [("%1 of %L2 in %n file(s) %12", ["%1", "%L2", "%n", "%12"])],
    "html": [("<b>Save</b> &amp; close<br/>", ["<b>", "</b>", "&amp;", "<br/>"]), ("1 < 2 & 3 > 2", [])],
    "url": [("see https://example.org/a?b=1, or ask me@example.org.", ["https://example.org/a?b=1", "me@example.org"])],
}  # fmt: skip


@pytest.mark.parametrize("syntax", MESSAGES)
def test_the_syntaxes_of_message_catalogues(syntax: str) -> None:
    (pattern,) = keeping.expressions([syntax])
    for message, wanted in MESSAGES[syntax]:
        assert [match.group() for match in pattern.finditer(message)] == wanted


def test_source_tokens_are_found_in_the_text() -> None:
    text = ">>deu<< see ☃☃ at {name} now"
    pieces = [">>deu<<", "▁see", "▁", "<unk>", "▁at", "▁", "<unk>", "na", "me", "<unk>", "▁n", "ow", "</s>"]
    ids = [3, 4, 5, 1, 6, 5, 1, 7, 8, 1, 9, 10, 0]
    spans = keeping.spans_of(text, pieces, 1, ids)
    assert [text[a:b] for a, b, _ in spans] == [
        ">>deu<<", "see", "", "☃☃", "at", "", "{", "na", "me", "}", "n", "ow", "",
    ]  # fmt: skip
    parts = keeping.parts_of(text, spans, ["icu"], unknown=True)
    assert [(part.text, part.tokens) for part in parts] == [("☃☃", (3,)), ("{name}", (6, 7, 8, 9))]
    assert [part.text for part in keeping.parts_of(text, spans, [], unknown=True)] == ["☃☃", "{name}"]
    assert [part.text for part in keeping.parts_of(text, spans, [r"a\w"], unknown=False)] == ["at", "am"]


def attention(*shares: dict[int, float]) -> list[np.ndarray]:
    rows = []
    for share in shares:
        row = np.full(6, 0.01)
        for place, value in share.items():
            row[place] = value
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        # The second word stands for the part; the second and third together; none does, so it goes between neighbours.
        ([{0: 0.9}, {2: 0.9}, {4: 0.9}], "Hallo {name} heute."),
        ([{0: 0.9, 4: 0.5}, {2: 0.6}, {3: 0.8}], "Hallo {name}."),
        ([{0: 0.9}, {4: 0.9}, {5: 0.9}], "Hallo {name} du heute."),
        ([{0: 0.9}, {0: 0.8}, {0: 0.8, 5: 0.5}], "Hallo du heute. {name}"),
        # The second looks at the part most, but it alone translates the fifth source word.
        ([{0: 0.9}, {2: 0.6, 4: 0.3}, {5: 0.9}], "Hallo {name} du heute."),
    ],
)
def test_a_part_is_copied_along_the_alignment(shares: list[dict[int, float]], wanted: str) -> None:
    of_words = list(zip(["Hallo", "du", "heute."], attention(*shares), strict=True))
    assert keeping.copied(of_words, [keeping.Part("{name}", 6, (2, 3))], [0, 4, 5]) == wanted


def test_a_part_is_added_as_often_as_it_is_missing() -> None:
    parts = [keeping.Part(text, i, (i,)) for i, text in enumerate(["{a}", "{b}", "{a}"])]
    lacking = [keeping._is_lacking(place, parts, "x {a} y") for place in range(3)]
    assert lacking == [False, True, True]


@pytest.fixture(scope="module")
def session(number_words: Path) -> Session:
    return s2s_export.load(number_words)


def test_every_part_is_in_every_output(session: Session) -> None:
    finishing = Finishing(keep=("icu", "gettext", "url"), keep_unknown=True)
    for text, parts in [
        (">>deu<< twenty-one {name}", ["{name}"]), (">>fra<< %s seventeen %(n)d", ["%s", "%(n)d"]),
        (">>deu<< two ☃ of https://example.org/x", ["☃", "https://example.org/x"]),
        (">>deu<< {a} {b} {c}", ["{a}", "{b}", "{c}"]),
    ]:  # fmt: skip
        source = session.encode(text)
        (found,) = session.generate([source], alignments=True, num_return_sequences=3)
        for hypothesis in finishing.apply(session, text, source, found):
            assert hypothesis.text is not None
            assert all(hypothesis.text.count(part) >= text.count(part) for part in parts), hypothesis.text
    source = session.encode(">>deu<< seventeen")
    (found,) = session.generate([source], alignments=True)
    assert finishing.apply(session, ">>deu<< seventeen", source, found)[0].text == "siebzehn"


def test_minimum_bayes_risk_takes_the_middle() -> None:
    from sacrebleu.metrics import CHRF

    texts = ["a b c d", "zwei drei", "a b c d e", "a b c", "zwei", "a b c d"]
    risks = [-sum(CHRF().sentence_score(text, [other]).score for other in texts) for text in texts]
    assert mbr.order(texts) == sorted(range(len(texts)), key=lambda i: round(risks[i], 6))
    assert mbr.order(["x y", "zwei drei", "zwei drei"]) == [1, 2, 0]
    assert mbr.order([]) == [] and mbr.order(["x"]) == [0]


def test_confidence_is_made_of_token_probabilities(session: Session) -> None:
    (found,) = session.generate([session.encode(">>fra<< one thousand two hundred and five")], num_beams=4)
    hypothesis = found[0]
    assert [word for word, _ in words(session, hypothesis)] == ["mille", "deux", "cent", "cinq"]
    probabilities = [entry["probability"] for entry in of_words(session, hypothesis)]
    assert all(0 < p <= 1 for p in probabilities)
    end = math.exp(hypothesis.token_scores[-1])
    assert math.prod(probabilities) * end == pytest.approx(math.exp(sum(hypothesis.token_scores)), rel=1e-3)
    assert sentence(hypothesis) == pytest.approx(math.exp(np.mean(hypothesis.token_scores)), rel=1e-6)


def test_the_command_line_and_json_lines(number_words: Path, tmp_path: Path) -> None:
    from command_line import run_here

    text = ">>deu<< twenty-one {name}"
    out, _ = run_here("translate", number_words, text, "--keep", "icu", "--confidence", "--json", "--patience", 1.5)
    output = json.loads(out)["outputs"][0]
    assert output["text"] == "einundzwanzig {name}" and 0 < output["confidence"] < 1
    assert [entry["word"] for entry in output["words"]] == ["einundzwanzig"]
    out, _ = run_here("translate", number_words, text, "--num-return-sequences", 3, "--mbr", "--keep", r"\{\w+\}")
    assert len(out.splitlines()) == 3 and all("{name}" in line for line in out.splitlines())
    choices = tmp_path / "choices.txt"
    choices.write_text("eins\nelf\n", encoding="utf-8")
    assert run_here("translate", number_words, text, "--choices", choices, "--patience", 2)[0] in ("eins\n", "elf\n")
    glossary = tmp_path / "glossary.tsv"
    glossary.write_text("twenty-one\teinszwanzig\n", encoding="utf-8")
    assert "einszwanzig" in run_here("translate", number_words, text, "--terms", glossary)[0]
    assert "--stream" in run_here("translate", number_words, text, "--stream", "--mbr", status=2)[1]
    assert "neither a regular expression" in run_here("translate", number_words, text, "--keep", "(", status=2)[1]
    cases, results = tmp_path / "cases.jsonl", tmp_path / "out.jsonl"
    lines: list[Any] = [{"text": text, "keep": ["icu"], "confidence": True}, {"text": text, "mbr": 3}, {"text": text}]
    cases.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run_here("generate", number_words, "--input", cases, "--output", results, status=1)
    first, second, third = (json.loads(line) for line in results.read_text(encoding="utf-8").splitlines())
    assert first["outputs"][0]["text"] == "einundzwanzig {name}" and "words" in first["outputs"][0]
    assert "'mbr' is 3; expected true or false" in second["error"]
    assert set(third["outputs"][0]) == {"token_ids", "score", "text"}


def test_what_cant_be_kept_is_said(bundled: Any) -> None:
    with pytest.raises(InvalidOption, match="matches an empty text"):
        keeping.expressions(["a*"])
    with pytest.raises(InvalidOption, match="does not have; leave it out"):
        Finishing(keep_unknown=True).check(s2s_export.load(bundled("lstm")))
    assert all(re.compile(pattern) for pattern in keeping.SYNTAXES.values())
