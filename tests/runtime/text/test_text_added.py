"""Added tokens cut a text exactly where transformers' trie does."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from s2s_export.runtime.text.added import AddedToken, AddedTokens

words = st.text(st.sampled_from("ab<>"), min_size=1, max_size=4)


@settings(max_examples=1500, deadline=None)
@given(tokens=st.lists(words, min_size=1, max_size=5), text=st.text(st.sampled_from("ab<> "), max_size=16))
def test_overlapping_tokens_cut_as_the_trie_cuts(tokens, text):
    try:
        from transformers.tokenization_python import Trie
    except ImportError:  # transformers 4
        from transformers.tokenization_utils import Trie

    ours = AddedTokens(AddedToken(i, token) for i, token in enumerate(tokens))
    assert ours.split(text) == Trie(tokens).split(text)


def test_tokens_eat_spaces_and_respect_words():
    added = AddedTokens(
        [AddedToken(0, "<l>", lstrip=True), AddedToken(1, "<r>", rstrip=True), AddedToken(2, "w", single_word=True)]
    )
    assert added.split("a  <l>  b") == ["a", "<l>", "  b"]
    assert added.split("a  <r>  b") == ["a  ", "<r>", "b"]
    assert added.split("a w b") == ["a ", "w", " b"]
    assert "".join(added.split("aw b")) == "aw b"
    assert "w" not in added.split("aw b")
    assert added.split("") == []
    assert added.split("<l><r>") == ["<l>", "<r>"]
