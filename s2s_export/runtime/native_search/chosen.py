"""Decides for each call which search serves it, and counts them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...errors import BackendError, BuildError
from ..decoding.generation_options import GenerationOptions
from ..decoding.prompts import Prompts
from ..decoding.state import DecodeState
from ..decoding.watch import Watch
from ..native_graphs import library
from . import loop
from .open_step import DirectSteps
from .search import StepSearch
from .search import TooMany as TooMany
from .settings import MOST_REMEMBERED, prepare

LOOP, STEPS, PYTHON = "C++ loop", "C++ steps", "Python"


class NativeSearches:
    """Makes the searches in C++ of a session. Safe to use from several threads.

    why_python: why all calls use numpy's search, in one sentence; empty where they don't. why_steps: why no call uses
    the loop although its state would suit it; empty where that is not so. counts: how many batches each of LOOP, STEPS
    and PYTHON decoded.
    """

    def __init__(self, is_wanted: bool = True) -> None:
        self.why_python = "" if is_wanted else "search='python' was asked for"
        self.why_steps = ""
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._too_many: set[GenerationOptions] = set()
        if is_wanted:
            try:
                library.load()
            except BuildError as error:
                self.why_python = str(error).splitlines()[0]

    def why_not(self, options: GenerationOptions, vocabulary_size: int) -> str:
        """Why numpy's search is used with these options, or nothing."""
        if self.why_python:
            return self.why_python
        return prepare(options, vocabulary_size).why_not

    def count(self, kind: str) -> None:
        with self._lock:
            self.counts[kind] += 1

    def remember(self, options: GenerationOptions) -> None:
        """A step needed too many candidates with these options: from now on the whole distribution is read."""
        with self._lock:
            if len(self._too_many) >= MOST_REMEMBERED:
                self._too_many.clear()
            self._too_many.add(options)

    def open_steps(self, backend: Any) -> DirectSteps | None:
        """What makes the steps of open batches without ONNX Runtime, where that can be done."""
        if self.why_python:
            return None
        try:
            return DirectSteps.of(backend)
        except BackendError:
            return None

    def make(
        self,
        state: DecodeState,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        is_watched: bool,
        alignments: bool | str,
        keep_history: bool,
        leave_early: bool,
        source_lengths: Sequence[int] | None,
        sparse_sums: bool = True,
    ) -> StepSearch | None:
        """The search of a batch, or None where numpy's serves it.

        is_watched: whether the caller looks after each token. The other arguments are those of `decoding.decode`;
        without sparse_sums the whole distribution is read.
        """
        # Texts that begin with prompts of their own are numpy's: the library has one prompt for all.
        if isinstance(sources, Prompts) or self.why_not(options, state.vocabulary_size):
            self.count(PYTHON)
            return None
        prepared = prepare(options, state.vocabulary_size, not sparse_sums or options in self._too_many)
        given: dict[str, Any] = {
            "alignments": alignments,
            "keep_history": keep_history,
            "leave_early": leave_early,
            "source_lengths": source_lengths,
        }
        watch, bare = (state, state.state) if isinstance(state, Watch) else (None, state)
        if not alignments and not self.why_steps and loop.serves(bare) and loop.tells(bare, prepared.whole, watch):
            try:
                loop.Sessions.of_state(loop.batch_of(bare))
            except BackendError as error:
                self.why_steps = str(error)
            else:
                self.count(LOOP)
                at_once = 1 if is_watched else loop.AT_ONCE
                return loop.LoopSearch(prepared, bare, sources, options, at_once=at_once, watch=watch, **given)
        self.count(STEPS)
        return StepSearch(prepared, state, sources, options, **given)
