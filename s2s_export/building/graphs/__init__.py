"""Graphs in memory, and what all passes that rewrite them share."""
