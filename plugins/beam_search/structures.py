"""The arguments of the beam-search kernels, as ctypes mirrors parameters.h."""

from __future__ import annotations

import ctypes


def fields(pointers: str, integers: str) -> tuple[tuple[str, type], ...]:
    return (
        *((name, ctypes.c_void_p) for name in pointers.split()),
        *((name, ctypes.c_int32) for name in integers.split()),
    )


class LogSoftmaxTopParameters(ctypes.Structure):
    _fields_ = fields(
        "logits list_values list_ids list_maximum list_sum log_normalizer candidate_log_probs candidate_ids",
        "rows vocabulary candidates lists",
    )


class BeamUpdateParameters(ctypes.Structure):
    _fields_ = fields(
        "candidate_log_probs candidate_ids position end_ids length_divisor scores next_tokens tokens parents ancestors "
        "pool_scores pool_finished pool_steps pool_parents pool_tokens open all_hit",
        "sources beams candidates n_end prompt limit capacity early_stopping bound_at_limit",
    )


class BeamStopParameters(ctypes.Structure):
    _fields_ = fields("open all_hit pool_finished position stop", "sources beams early_stopping")
