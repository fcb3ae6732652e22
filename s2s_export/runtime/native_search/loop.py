"""The decode loop of a batch in one native call: steps of the decoder and of the search, without Python between them.

It takes the batch of a backend of ONNX Runtime as it is, with its caches in numpy's memory, and runs the decoder step
in a session that the library opens through ONNX Runtime's C interface. The session reads the same mapped weights.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...bundle import output_of
from ...errors import BackendError
from ..backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeState, step_failure
from ..decoding.state import FEWEST_PREFILLED, DecodeState, Ints
from ..decoding.watch import Watch
from ..native_graphs import library
from ..native_graphs.graph import tensors
from .search import TOO_MANY, StepSearch, TooMany
from .settings import Prepared

WANTS_WHOLE = "want_log_probs"  # the input of a step by which the whole distribution is asked for
DIRECT, SESSION = "called directly", "a session of ONNX Runtime"
AT_ONCE = 32  # tokens that a native call makes at most, so that Python gets to see Ctrl-C


@dataclass(frozen=True)
class Opened:
    """What runs a decoder step natively: its handle, the function that makes a batch's step, and what has to live as
    long."""

    by: str  # DIRECT or SESSION
    handle: Any
    new_step: Callable[..., Any]
    kept: Any


class Sessions:
    """The native sessions of one backend's decoder steps, opened when they are first wanted."""

    _of: ClassVar[weakref.WeakKeyDictionary[OnnxRuntimeBackend, Sessions]] = weakref.WeakKeyDictionary()
    _making = threading.Lock()

    @classmethod
    def of(cls, backend: OnnxRuntimeBackend) -> Sessions:
        with cls._making:
            if backend not in cls._of:
                cls._of[backend] = cls(backend)
            return cls._of[backend]

    @classmethod
    def of_state(cls, state: OnnxRuntimeState) -> Opened:
        """The session of a batch's decoder step. Raises BackendError where it can't be opened."""
        return cls.of(state.backend).get(state.backend.step_name(state.first_rows))

    def __init__(self, backend: OnnxRuntimeBackend) -> None:
        self._library = library.load()
        self._sessions: dict[str, Opened] = {}
        self.why_not_direct = ""  # why ONNX Runtime runs the step, in a few words
        self._kept: list[Any] = []
        self._lock = threading.Lock()
        self._backend = weakref.proxy(backend)

    def __del__(self) -> None:
        for opened in getattr(self, "_sessions", {}).values():
            if opened.by is SESSION:
                self._library.s2s_session_delete(opened.handle)

    def _register(self) -> None:
        """Let ONNX Runtime hand its interface to the library."""
        import onnxruntime

        onnxruntime.SessionOptions().register_custom_ops_library(self._library._name)

    def get(self, name: str) -> Opened:
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = self._open_graph(name) or self._open(name)
            return self._sessions[name]

    def _open_graph(self, name: str) -> Opened | None:
        """The step's operators, to be called directly; None where ONNX Runtime has to run them (`why_not_direct`)."""
        graph = self._backend.native(name)
        self.why_not_direct = self._backend.natives.why_not.get(name, "")
        return None if graph is None else Opened(DIRECT, graph.handle, self._library.s2s_direct_new, graph)

    def _open(self, name: str) -> Opened:
        backend = self._backend
        self._register()
        model = backend.file_of(name).read_bytes()
        shared = tensors(backend.shared.get(name) or {}, self._kept)
        made = self._library.s2s_session_new(
            model, len(model), os.fsencode(backend.operators), os.fsencode(backend.weights), backend.threads,
            backend.spin, shared, len(shared),
        )  # fmt: skip
        if made is None:
            raise BackendError(
                f"ONNX Runtime can't open the decoder step natively ({library.error(self._library)[:300]}); "
                "load with search='python'"
            )
        return Opened(SESSION, made, self._library.s2s_step_new, None)


def serves(state: DecodeState) -> bool:
    """Whether the loop runs the steps of this state: those of an engine with our own operators, whose weights are read
    as they lie in the mapped file, so that a second session takes no memory for them."""
    batch = batch_of(state)
    return (
        isinstance(batch, OnnxRuntimeState)
        and batch.backend.operators is not None
        and {"token", "position", "ancestors", "n_candidates", "probe_ids"} <= set(batch.inputs)
    )


def batch_of(state: DecodeState) -> Any:
    """The state that has the batch, where another is around it: that of a shortlist."""
    return getattr(state, "inner", state)


def tells(state: DecodeState, whole: bool, watch: Watch | None) -> bool:
    """Whether the loop's steps of this state tell what a search and a watch want to know."""
    if watch is not None and not whole and watch.is_last:
        return False  # the search asks the watched step for a few tokens, which the watched one is not among
    return not whole or (isinstance(state, OnnxRuntimeState) and WANTS_WHOLE in state.inputs)


class LoopSearch(StepSearch):
    """A search whose steps are made by the library. state: one that `serves`.

    at_once: how many tokens an `advance` makes at most. watch: what is to be noted in the prompt.
    """

    def __init__(
        self,
        prepared: Prepared,
        state: DecodeState,
        *arguments: Any,
        at_once: int = AT_ONCE,
        watch: Watch | None = None,
        **more: Any,
    ) -> None:
        self._step: Any = None
        self._at_once = at_once
        self._watch = watch
        self._of_batch: OnnxRuntimeState = batch_of(state)
        super().__init__(prepared, state, *arguments, **more)

    def __del__(self) -> None:
        self._unbind()
        super().__del__()

    def _begin(self) -> None:
        self._session = Sessions.of_state(self._of_batch)
        shape = (len(self.steps.present), self.options.n_rows)
        self._tokens = np.zeros(shape, dtype=np.int64)  # what the batch feeds is in the library
        self._parents = np.zeros(shape, dtype=np.int64)
        first, watch = self._fed_first(), self._watch
        if watch is not None:
            first = first[:, : watch.at]
        is_fed = first.shape[1] >= FEWEST_PREFILLED and self._of_batch.prefill(first)
        self._batch = library.Batch(step=first.shape[1] if is_fed else 0)  # what is not fed yet, the library feeds
        if watch is not None:
            self._batch.watched = library.address(watch.log_probs)
            self._batch.watched_position, self._batch.watched_token = watch.at, watch.token
        self._bind()

    def _bind(self) -> None:
        """Show the library where the batch lies in memory now."""
        self._unbind()
        state = self._of_batch
        arrays = state.tensors()
        self._kept: list[Any] = []
        caches = {output_of(name): arrays[name] for name in state.caches}
        limit = state.limit
        batch = self._batch
        batch.token, batch.position = library.address(arrays["token"]), library.address(arrays["position"])
        batch.ancestors = library.address(arrays["ancestors"])
        batch.n_positions, batch.capacity = arrays["position"].size, arrays["ancestors"].shape[2]
        batch.limit = -1 if limit is None else limit
        inputs, outputs = tensors(arrays, self._kept), tensors(caches, self._kept)
        opened = self._session
        self._step = opened.new_step(opened.handle, inputs, len(inputs), outputs, len(outputs), *arrays["token"].shape)
        if self._step is not None and state.listed is not None:
            listed = np.ascontiguousarray(state.listed, dtype=np.int64)
            self._step = self._library.s2s_step_listed(
                self._step, library.address(listed), len(listed), arrays["token"].size
            )
        if self._step is None:
            raise self._failure()

    def _unbind(self) -> None:
        if self._step is not None:
            self._library.s2s_step_delete(self._step)
            self._step = None

    def advance(self) -> bool:
        """Up to `at_once` more tokens. Returns whether the search goes on."""
        status = self._run()
        while status == library.NEEDS_ROOM:
            self._of_batch.make_room()
            self._bind()
            status = self._run()
        if status == library.PAUSED:
            return True
        if status == library.TOO_MANY:
            raise TooMany(TOO_MANY)
        if status == library.NO_POSITION:
            raise self._of_batch.no_position(self._batch.step)
        if status == library.FAILED:
            raise self._failure()
        return self._after(status)

    def _failure(self) -> BackendError:
        """What the library said of its last call."""
        found = step_failure(RuntimeError(library.error(self._library)))
        if self._session.by is not DIRECT or "out of memory" in str(found):
            return found
        return BackendError(
            f"the decoder step failed ({library.error(self._library)}); build the engine again, or load with "
            "search='python'"
        )

    def _run(self) -> int:
        status: int = self._library.s2s_search_run(self.handle, self._step, ctypes.byref(self._batch), self._at_once)
        self._of_batch.made_steps(self._batch.step)
        return status

    def leave(self, staying: Ints) -> None:
        super().leave(staying)
        self._bind()
