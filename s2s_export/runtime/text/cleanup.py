"""transformers' `clean_up_tokenization_spaces`, and which part of a cleaned text is final.

The rules undo the spaces that word-piece vocabularies leave before punctuation. They run one after the other over the
whole text, so that the order below is part of the definition.
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
    """The cleaned beginning of `text`, as far as no continuation of `text` changes it.

    A character that occurs in no rule is a wall: what is left of it is replaced independently of what follows. Every
    rule begins with a space, so that right of the last wall all is final up to the first space. The space after that
    may still go two ways: " ' " loses both of its spaces, but " ' ," only the one before the comma.
    """
    wall = len(text)
    while wall > 0 and text[wall - 1] in _CHARACTERS:
        wall -= 1
    space = text.find(" ", wall)
    return clean_up(text if space < 0 else text[:space])
