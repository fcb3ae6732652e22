"""transformers' `clean_up_tokenization_spaces`, and the part of a cleaned text that is final.

The rules remove the spaces that word-piece vocabularies leave before punctuation. Each is applied to the whole text
before the next one, so that their order matters.
"""

from __future__ import annotations

RULES = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)

_CHARACTERS = frozenset("".join(pattern for pattern, _ in RULES))


def clean_up(text: str) -> str:
    for pattern, replacement in RULES:
        text = text.replace(pattern, replacement)
    return text


def settled(text: str) -> str:
    """The beginning of the cleaned `text` that stays the same whatever text follows.

    A character that occurs in no rule is a boundary: text to its left is replaced independently of what follows. Every
    rule begins with a space, so that the text after the last boundary is final up to the first space. That space is
    not: " ' " loses both of its spaces, but in " ' ," only the one before the comma is removed.
    """
    wall = len(text)
    while wall > 0 and text[wall - 1] in _CHARACTERS:
        wall -= 1
    space = text.find(" ", wall)
    return clean_up(text if space < 0 else text[:space])
