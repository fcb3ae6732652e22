"""One file a kind of tokenizer, found by listing this folder: `load(folder, entry)` makes the tokenizer."""
