"""One file for each kind of tokenizer, found by listing this folder. Its `load(folder, entry)` returns a tokenizer."""
