"""Recurrent models for the backend `cuda`: read from their graphs, packed, and computed in numpy.

structure.py    their parts with weights as arrays
parse.py        read from the graphs that the exporter writes for the reference models
pack.py         model.json and weights.bin
numpy_model.py  the definition
"""
