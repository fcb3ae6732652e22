"""Graphs held in memory to be changed: what every rewriting shares."""
