"""Training of the reference models: data, tokenizer, loop, scores."""
