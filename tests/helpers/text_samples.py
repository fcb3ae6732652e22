"""Texts that tokenizers disagree about, and strategies for more of them."""

from __future__ import annotations

from hypothesis import strategies as st
from text_folders import CORPUS

from s2s_export.exporting.tokenizers.check import SAMPLES

SPECIALS = (
    "</s>", "<s>", "<pad>", "<unk>", "<mask>", "<extra_id_0>", "<extra_id_9>", "<extra_id_99>", "<mask_1>", "<mask_2>",
    "<unk_2>", "en_XX", "ro_RO", "eng_Latn", "fra_Latn", "__en__", "__fr__", ">>fra<<", ">>deu<<", ">>", "<<", "<0x41>",
)  # fmt: skip
FRAGMENTS = (
    " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2028", "\u3000", "\u200b", "\u200d", "\ufeff", "\x00", "\x1b", "\x85",
    "▁", "▁▁", "⁇", "\ufffd", "e\u0301", "\u0301", "ﬁ", "Å", "½", "ｆ", "ß", "İ", "ı",
    "🙂", "👩‍👩‍👧", "🇫🇷", "\U0010ffff",
    "Hello", "world", "ça", "Größe", "мир", "世界", "こんにちは", "مرحبا", "नमस्ते", "안녕", "123", "3.14",
    "'s", " n't", " .", " ,",
    " ' ", " 've", "!", "?", "<", ">", "_", "@", "#", "\\", '"', "a" * 40,
)  # fmt: skip

TEXTS = [
    *SAMPLES,
    *CORPUS,
    *SPECIALS,
    *FRAGMENTS,
    *(around.format(token) for token in SPECIALS[:20] for around in (" {} ", "a{}b", "x {}", "{} y")),
    *(f"{a} {b}" for a, b in zip(FRAGMENTS, reversed(FRAGMENTS), strict=True)),
    *(f"word{fragment}word  {fragment}" for fragment in FRAGMENTS),
    "".join(SPECIALS),
    " ".join(SPECIALS),
]  # fmt: skip

mixed_texts = st.lists(st.sampled_from(SPECIALS + FRAGMENTS), max_size=12).map("".join)
any_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
texts = st.one_of(
    mixed_texts, any_texts, st.lists(st.one_of(any_texts, st.sampled_from(SPECIALS)), max_size=4).map("".join)
)


def id_lists(size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.one_of(st.integers(0, size - 1), st.integers(0, min(size, 8) - 1)), max_size=16)
