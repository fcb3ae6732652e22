"""Training of the reference models: data, tokenizer, training loop, evaluation."""
