"""What the readers of other toolkits' models share: a model in plain PyTorch, checked weights, pickles, tokenizers.

A reader is a family (`families/`): it fills in `graphs.structure` from the toolkit's own weights. No library here loads
such a model, so `plain.py` states in PyTorch what a structure computes, and the graphs are compared with that.
"""
