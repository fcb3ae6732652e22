"""Measures the same decoding work on every backend and on other systems, in one interleaved run.

    contestants/    one file a system: ours, and the peers; found by listing the directory
    work.py         what is decoded: batch sizes, beams, lengths, and the source ids
    worker.py       one contestant in a process of its own; remote.py is its other end
    rounds.py       round-robin timing of all contestants over all work
    files.py        translation of a file of mixed lengths, every system at its best setting
    bandwidth.py    the floor: the time it takes to read a step's weights once
    noise.py        what else the machine did meanwhile
    record.py       the measurements as plain data, for JSON, table and page
    table.py, page.py, charts.py    how they are shown

A worker process holds one contestant for as long as its measurements take, so that peak memory and load time are its
own. Timing goes round and round: every contestant does the same work once, then every one again, so that a slow
minute of the machine hits all alike. All work is fixed: an output has exactly the asked number of tokens.
"""
