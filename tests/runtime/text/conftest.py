"""Tokenizers of every family: see helpers/text_pairs.py."""

from text_pairs import pair, pair_of

__all__ = ["pair", "pair_of"]
