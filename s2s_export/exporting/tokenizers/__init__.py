"""A checkpoint's tokenizer, written into a bundle as a description and its files, and compared with the original."""
