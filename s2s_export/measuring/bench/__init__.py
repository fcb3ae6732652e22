"""Measures the same decoding work on every backend and on other systems, in one interleaved run.

    contestants/    one file for each system: ours, and the peers; found by listing the directory
    work.py         what is decoded: batch sizes, beams, lengths, and the source ids
    worker.py       one contestant in a process of its own; remote.py is its other end
    rounds.py       round-robin timing of all contestants over all work
    files.py        translation of a file of mixed lengths, each system at its best setting
    audio/          transcription of sound
    bandwidth.py    the lower bound of a step: the time to read its weights once
    noise.py        what else the machine did during a measurement
    record.py       the measurements as plain data, for JSON, table and page
    table.py, page.py, charts.py    how they are shown

Each contestant runs in a worker process of its own, so that peak memory and load time can be told apart. Measurements
go in rounds: every contestant does the same work once, then all do it again, so that a slow minute of the machine
affects all of them alike. The work is fixed: every output has exactly the requested number of tokens.
"""
