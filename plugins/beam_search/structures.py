"""The arguments of the beam-search kernels, as ctypes mirrors parameters.h."""

from __future__ import annotations

import ctypes


def fields(pointers: str, integers: str) -> tuple[tuple[str, type], ...]:
    return (
        *((name, ctypes.c_void_p) for name in pointers.split()),
        *((name, ctypes.c_int32) for name in integers.split()),
    )


class Structure(ctypes.Structure):
    """Refuses numbers that don't fit, of which ctypes drops bits. Raises OverflowError."""

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)
        for name, value in (*zip((name for name, *_ in self._fields_), given, strict=False), *named.items()):
            if isinstance(value, int) and (getattr(self, name) or 0) != value:
                raise OverflowError(f"{name} is {value}, expected at most {8 * getattr(type(self), name).size} bits")


class LogSoftmaxTopParameters(Structure):
    _fields_ = fields(
        "logits list_values list_ids list_maximum list_sum log_normalizer candidate_log_probs candidate_ids",
        "rows vocabulary candidates lists keeps_values",
    )


class BeamUpdateParameters(Structure):
    _fields_ = fields(
        "candidate_log_probs candidate_ids position end_ids length_divisor scores next_tokens tokens parents ancestors "
        "pool_scores pool_finished pool_steps pool_parents pool_tokens open all_hit stop",
        "sources beams candidates n_end prompt limit capacity early_stopping bound_at_limit",
    )


class BeamStopParameters(Structure):
    _fields_ = fields("open all_hit pool_finished position stop", "sources beams early_stopping")


# loop_parameters.h


class NormalizeParameters(Structure):
    _fields_ = fields("logits list_maximum list_sum scores choice stop", "rows vocabulary lists")


class DeviceRule(Structure):
    _fields_ = (
        *fields("", "effect which first_length last_length n first_id count first_amount"),
        ("amount", ctypes.c_float),
    )


class RulesParameters(Structure):
    _fields_ = fields(
        "rules n_rules ids amounts history sources position stop scores choice",
        "n_sources beams vocabulary history_width source_width",
    )


class FilterRow(Structure):
    """chain_parameters.h, as are the next two."""

    _fields_ = (
        ("counts", ctypes.c_uint64 * 2048),
        ("weights", ctypes.c_uint64 * 2048),
        ("count", ctypes.c_uint64),
        ("weight", ctypes.c_uint64),
        ("threshold", ctypes.c_uint32),
        *fields("", "last arrived n_likely"),
        ("likely", ctypes.c_float * 128),
        ("likely_ids", ctypes.c_int32 * 128),
    )


class FilterSlice(Structure):
    _fields_ = (
        ("sum", ctypes.c_double),
        ("entropy", ctypes.c_double),
        ("weight", ctypes.c_uint64),
        ("maximum", ctypes.c_float),
        *fields("", "unused"),
    )


class ChainParameters(Structure):
    _fields_ = (("rules", RulesParameters), *fields("filter_rows filter_slices", "first end digit lists"))


class DrawParameters(Structure):
    _fields_ = fields(
        "scores beam_scores seed numbers position stop maxima weights race arrived drawn_ids drawn_beams drawn_sums",
        "n_sources beams vocabulary n_drawn lists",
    )


class RecordParameters(Structure):
    _fields_ = fields(
        "scores candidate_log_probs candidate_ids tokens parents pool_steps pool_parents pool_tokens position stop "
        "token_scores finished_scores history",
        "n_sources beams vocabulary candidates prompt limit history_width",
    )


class RowUpdateParameters(Structure):
    _fields_ = fields(
        "chosen_ids chosen_log_probs scores end_ids position stop finished n_generated next_tokens tokens "
        "token_scores history",
        "rows vocabulary n_end fill prompt limit history_width",
    )


class PublishParameters(Structure):
    _fields_ = (
        *fields(
            "tokens parents pool_steps pool_parents pool_tokens pool_finished open position stop news progress "
            "iterations",
            "",
        ),
        ("condition", ctypes.c_uint64),
        *fields("", "n_sources beams prompt limit early_stopping"),
    )


class BeamStepParameters(Structure):
    _fields_ = (
        ("top", LogSoftmaxTopParameters),
        ("update", BeamUpdateParameters),
        ("record", RecordParameters),
        ("stop", BeamStopParameters),
        ("publish", PublishParameters),
        *fields("drawn_ids drawn_beams drawn_sums arrived", ""),
    )


class RowStepParameters(Structure):
    _fields_ = (
        ("top", LogSoftmaxTopParameters),
        ("rows", RowUpdateParameters),
        ("publish", PublishParameters),
        *fields("arrived", "merges"),
    )


class AlignmentParameters(Structure):
    """alignment_parameters.h."""

    _fields_ = fields("attention position stop alignment", "rows layers heads width prompt limit keeps_heads")


# In the order of s2s_beam_search_sizes.
ALL = (
    *(LogSoftmaxTopParameters, BeamUpdateParameters, BeamStopParameters, NormalizeParameters, DeviceRule),
    *(RulesParameters, DrawParameters, RecordParameters, RowUpdateParameters, PublishParameters),
    *(BeamStepParameters, RowStepParameters, AlignmentParameters),
    *(FilterRow, FilterSlice, ChainParameters),
)
EFFECTS = (
    *("ban", "add", "scale", "grow", "only"),
    *("temperature", "remove_invalid", "renormalize"),
    *("top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    "times",
)
NAMED = ("listed", "history", "source", "ngram", "source_ngram", "sequences")
