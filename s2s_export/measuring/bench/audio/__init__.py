"""`s2s bench --audio`: every system transcribes the same sound with the same settings, taking turns.

    transcribers/   one file for each system: ours, and the peers; found by listing the directory
    plan.py         the sound, its reference texts, and the settings
    worker.py       one system in a process of its own
    run.py          rounds over all of it, and the record
    show.py         the record as text and as a page

Sound is read and resampled once, before all; each system computes its own features. A window is decoded once, at
temperature 0, without thresholds and without earlier text, so that all do the same work.
"""
