"""Writes a checkpoint's tokenizer into a bundle, as a description and files, and compares it with the original."""
