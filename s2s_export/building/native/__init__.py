"""Engines of packed weights (flavour "cuda-native"): a Transformer read from its graphs, and stored as data.

structure.py    a Transformer's parts with their weights, as arrays
reading.py      what all parts of a graph are read with: norms, products, activations, positions
parse.py        the three graphs -> structure
pack.py         structure -> model.json and weights.bin
numpy_model.py  an engine's data, computed in numpy: what the kernels are compared with
"""
