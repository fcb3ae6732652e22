"""Measures this machine: the benchmark, the check of a GPU, and the GPU memory that a search takes."""
