"""`s2s evaluate`: what each engine of a bundle makes of the user's own data, and how fast.

run      reads the pairs, asks a process for each engine, compares and scores what it wrote
worker   that process: one engine, or PyTorch, so that its memory is its own
page     the result as a table and as a page
"""
