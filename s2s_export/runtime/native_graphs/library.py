"""The library of plugins/search, as ctypes sees it."""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from ... import plugin_sources
from ...errors import BuildError

# search.h, `Status`
ENDED, GOES_ON, LEAVE, NEEDS_ROOM, PAUSED = range(5)
IMPRECISE, NO_POSITION, FAILED, TOO_MANY = -1, -2, -3, -4


def _fields(pointers: str, integers: str) -> list[tuple[str, Any]]:
    return [
        *((name, c_void_p) for name in pointers.split()),
        *((name, c_int32) for name in integers.split()),
    ]


class Settings(ctypes.Structure):
    """S2SSettings of search.h."""

    _fields_ = _fields(
        "prompt end_ids length_divisor rules ids amounts sources",
        "n_sources n_rows vocabulary prompt_length n_end max_length n_rules n_ids n_amounts source_width "
        "is_beam_search early_stopping bound_at_limit edits_logits keeps_history leave_early fill reads_whole",
    )


class Tensor(ctypes.Structure):
    """S2STensor of onnxruntime.h."""

    _fields_ = [("name", c_char_p), *_fields("data shape", "n_dimensions type")]


class Node(ctypes.Structure):
    """S2SNode of direct.h."""

    _fields_ = [(name, c_char_p) for name in ("op", "inputs", "outputs", "attributes")]


class Batch(ctypes.Structure):
    """S2SBatch of loop.h."""

    _fields_ = _fields(
        "token position ancestors watched", "n_positions capacity limit step watched_position watched_token"
    )


class OpenBatch(ctypes.Structure):
    """S2SOpenBatch of open.h."""

    _fields_ = [
        *_fields("token position places positions ancestors version", ""),
        ("expected", c_int64),
        ("seconds", c_double),
        *_fields("", "n_sources capacity limit n_steps"),
    ]


# (result, arguments) of each function.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "s2s_search_error": (c_char_p, ()),
    "s2s_search_new": (c_void_p, (POINTER(Settings),)),
    "s2s_search_delete": (None, (c_void_p,)),
    "s2s_search_leave_at": (None, (c_void_p, c_double)),
    "s2s_search_ask": (c_int32, (c_void_p, POINTER(c_int32), POINTER(c_void_p))),
    "s2s_search_advance": (c_int32, (*[c_void_p] * 6, c_int32, c_int32, c_void_p, c_void_p)),
    "s2s_search_settled": (c_int32, (c_void_p, c_void_p)),
    "s2s_search_leave": (None, (c_void_p, c_void_p, c_int32)),
    "s2s_search_output": (c_int32, (c_void_p, c_int32, c_int32, c_void_p, c_void_p, c_void_p, POINTER(c_float))),
    "s2s_search_stable": (c_int32, (c_void_p, c_int32, c_void_p)),
    "s2s_search_run": (c_int32, (c_void_p, c_void_p, POINTER(Batch), c_int32)),
    "s2s_search_fed": (None, (c_void_p, c_void_p, c_void_p)),
    "s2s_open_run": (c_int32, (c_void_p, POINTER(OpenBatch), c_void_p, c_int32, c_int32, c_void_p)),
    "s2s_step_run": (c_int32, (c_void_p, c_int32, c_int32, c_int32, *[c_void_p] * 5)),
    "s2s_session_new": (
        c_void_p,
        (c_char_p, c_uint64, c_char_p, c_char_p, c_int32, c_int32, POINTER(Tensor), c_int32),
    ),
    "s2s_session_delete": (None, (c_void_p,)),
    "s2s_step_new": (
        c_void_p,
        (c_void_p, POINTER(Tensor), c_int32, POINTER(Tensor), c_int32, c_int32, c_int32),
    ),
    "s2s_step_listed": (c_void_p, (c_void_p, c_void_p, c_int64, c_int32)),
    "s2s_step_delete": (None, (c_void_p,)),
    "s2s_graph_new": (c_void_p, (c_char_p, POINTER(Node), c_int32, POINTER(Tensor), c_int32, c_char_p)),
    "s2s_graph_delete": (None, (c_void_p,)),
    "s2s_graph_run": (c_void_p, (c_void_p, POINTER(Tensor), c_int32)),
    "s2s_run_output": (c_int32, (c_void_p, POINTER(Tensor))),
    "s2s_run_delete": (None, (c_void_p,)),
    "s2s_direct_new": (
        c_void_p,
        (c_void_p, POINTER(Tensor), c_int32, POINTER(Tensor), c_int32, c_int32, c_int32),
    ),
}


@functools.cache
def load() -> Any:
    """The library with its functions declared, compiled where the package brings none.

    Raises BuildError where it can't be had, in one sentence.
    """
    return declare(Path(plugin_sources.module("search.build").library()))


def declare(path: Path) -> Any:
    """Raises BuildError for a library that can't be loaded, or whose structures differ."""
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path}: can't be loaded ({error}); delete it and it is compiled again") from error
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    rule = plugin_sources.module("beam_search.structures").DeviceRule
    ours = [ctypes.sizeof(kind) for kind in (Settings, Tensor, Batch, Node, OpenBatch, rule)]
    theirs = (c_int32 * len(ours))()
    found.s2s_search_sizes(theirs)
    if list(theirs) != ours:
        raise BuildError(f"{path}: has structures of {list(theirs)} bytes, expected {ours}; delete it")
    return found


def screened(operators: str | os.PathLike[str]) -> tuple[int, int, int]:
    """What screening the output projection did in this process (plugins/cpu/screen.h): rows that it served, blocks of
    16 tokens that were multiplied for them, and rows whose whole product was computed as too many blocks were left.

    operators: the library of plugins/cpu.
    """
    found = (c_int64 * 3)()
    ctypes.CDLL(os.fspath(operators)).s2s_screened(found)
    return found[0], found[1], found[2]


def error(library: Any) -> str:
    """What went wrong in this thread's last call."""
    return str(library.s2s_search_error().decode(errors="replace"))


def address(array: Any) -> int:
    """Of a C-contiguous numpy array."""
    return int(array.__array_interface__["data"][0])
