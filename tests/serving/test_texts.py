"""Sentences, white space, tags and languages, without a server."""

from __future__ import annotations

import random

import numpy as np
import pytest

from s2s_export.errors import InputError
from s2s_export.serving import languages, markup, splitting

PARAGRAPH = "  Dr. Smith paid 3.50 euros. Did he?\r\n\r\n\tYes! «Oui.» 这是一句。那是另一句。 \n"


def fits(n):
    return lambda text: len(text) <= n


@pytest.mark.parametrize("limit", [1, 2, 7, 20, 1000])
@pytest.mark.parametrize("sentences", [True, False])
@pytest.mark.parametrize("lines", [True, False])
def test_pieces_are_the_text_and_each_source_fits(limit, sentences, lines):
    pieces = splitting.split(PARAGRAPH, "en", fits(limit), sentences=sentences, lines=lines)
    assert "".join(piece.text for piece in pieces) == PARAGRAPH
    assert all(len(piece.text) <= limit and piece.text == piece.text.strip() for piece in pieces if piece.is_source)
    assert not any(piece.text.strip() for piece in pieces if not piece.is_source)


def test_abbreviations_end_no_sentence():
    found = [piece.text for piece in splitting.split("Dr. Smith came. He left.", "en", fits(99)) if piece.is_source]
    assert found == ["Dr. Smith came.", "He left."]


def test_a_long_sentence_is_cut_where_a_clause_ends():
    found = [
        piece.text for piece in splitting.split("when it rains hard, we all go home", "en", fits(25)) if piece.is_source
    ]
    assert found == ["when it rains hard,", "we all go home"]


def test_a_character_that_never_fits_is_an_error():
    with pytest.raises(InputError, match="alone is longer"):
        splitting.split("ab", "en", lambda text: False)


def identity(segment):
    """Attention of a translation that is the text itself, word for word."""
    words = markup.words_of(segment.text)
    return markup.attention(words, words, words, np.eye(len(words), dtype=np.float32))


def rebuilt(text, **options):
    """The markup with each segment translated to itself."""
    return "".join(
        part if isinstance(part, str) else markup.place(part, part.text, identity(part))
        for part in markup.parse(text, **options)
    )


@pytest.mark.parametrize(
    "text",
    [
        "<p>one <b>two</b> three</p>",
        '<div><a href="x?a=1&amp;b=2">one <i>two</i></a> three</div><!-- four --><br/>five',
        "<ul><li>one</li><li><em>two</em></li></ul>",
        "one &lt;two&gt; &amp; three",
        "<script>if (a < b) { one }</script><pre>two  three</pre> four",
        '<span translate="no">one</span> <b>two</b>',
        "<b><p>one</p></b>",
        "<b>one<p>two",
        "</i>one",
        "<b> </b>",
        "a < b",
    ],
)
def test_tags_of_html_stay_where_they_were(text):
    assert rebuilt(text).replace("&lt; b", "< b").replace("&gt;", "&gt;") == text


def test_what_is_not_running_text_is_copied():
    parts = markup.parse('<p>one</p><code>two</code><span class="notranslate">three</span>')
    assert [part.text for part in parts if isinstance(part, markup.Segment)] == ["one"]
    parts = markup.parse("<x>one</x><keep>two</keep><cut>three</cut>", xml=True, ignored=["keep"], splitting=["cut"])
    assert [part.text for part in parts if isinstance(part, markup.Segment)] == ["one", "three"]


def test_tags_follow_their_words():
    """ "one <b>two</b> three" whose translation turns the words around."""
    [segment] = markup.parse("one <b>two</b> three")
    source = markup.words_of(segment.text)
    words = markup.words_of("III II I")
    looked = markup.attention(words, words, source, np.eye(3, dtype=np.float32)[::-1])
    assert markup.place(segment, "III II I", looked) == "III <b>II</b> I"
    [segment] = markup.parse("<b>one</b> <i>two three</i>")
    assert markup.place(segment, "III II I", looked) == "<i>III II</i> <b>I</b>"


@pytest.mark.parametrize("seed", range(200))
def test_each_tag_comes_once_and_nested_whatever_the_alignment(seed):
    rng = random.Random(seed)

    def element(depth):
        inner = "".join(
            element(depth + 1) if depth < 3 and rng.random() < 0.4 else rng.choice(["aa ", "bb", " c "])
            for _ in range(3)
        )
        name = rng.choice("biu")
        return f"<{name}>{inner}</{name}>"

    text = "x " + element(0) + " y" + element(0)
    [segment] = markup.parse(text)
    translation = " ".join(rng.choice(["uu", "v", "www"]) for _ in range(rng.randint(0, 8)))
    words, source = markup.words_of(translation), markup.words_of(segment.text)
    weights = np.random.default_rng(seed).random((len(words), len(source)), dtype=np.float32)
    placed = markup.place(segment, translation, markup.attention(words, words, source, weights))
    tags = lambda markup_text: [part for part in markup.TOKEN.findall(markup_text)]  # noqa: E731
    assert sorted(tags(placed)) == sorted(tags(text))
    assert markup.TOKEN.sub("", placed) == translation
    opened = []
    for tag in tags(placed):
        if not tag.startswith("</"):
            opened.append(tag[1:-1])
        else:
            assert opened.pop() == tag[2:-1]


@pytest.mark.parametrize(
    ("code", "expected"),
    [("EN-US", "en"), ("eng_Latn", "en"), ("zh-Hans", "zh"), ("cmn_Hans", "zh"), ("fra", "fr"), ("x1", "x1")],
)
def test_codes_of_one_language(code, expected):
    assert languages.base(code) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("en-fr", ("en", "fr")),
        ("opus-mt-en-mul", ("en", "mul")),
        ("opus-mt-deu-eng", ("de", "en")),
        ("my-model", None),
        ("t5", None),
    ],
)
def test_languages_in_a_name(name, expected):
    assert languages.pair_in(name) == expected


def test_detection_is_among_the_languages_that_are_served():
    text = "Où est la bibliothèque, s'il vous plaît ?"
    assert languages.detect(text, ["en", "fr", "de"])[0][0] == "fr"
    assert languages.detect(text, ["en"]) == [("en", 1.0)]
    assert sum(probability for _, probability in languages.detect(text, ["en", "de"])) == pytest.approx(1.0, abs=1e-4)
