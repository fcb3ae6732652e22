"""The tokenizers of every family, for the library that reads text."""

from text_pairs import pair_of

__all__ = ["pair_of"]
