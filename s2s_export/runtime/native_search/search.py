"""One batch that is searched in C++, in the place of decoding's `BeamSearch` or `RowSearch`.

Letters: B sources in the batch, K rows of each, T tokens generated, S source length.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ..decoding.chain import Imprecise
from ..decoding.generation_options import GenerationOptions
from ..decoding.hypothesis import Hypothesis
from ..decoding.state import DecodeState, Floats, Ints, Question, StepQuery, StepResult, feed
from ..native_graphs import library
from .settings import Prepared, settings

TOO_MANY = "more candidates are needed than a step is asked for"


class TooMany(Imprecise):
    """A step needs more candidates than are asked for one by one; numpy's search then reads the whole distribution."""


class Batch:
    """What is read and set of a search's `Steps`: present [B], the original sources in the batch, and `leave_at`."""

    def __init__(self, search: StepSearch, n_sources: int) -> None:
        self._search = weakref.proxy(search)  # weak, so that a search ends when nobody has it
        self.present = np.arange(n_sources)

    def _set_leave_at(self, share: float) -> None:
        self._search.set_leave_at(share)

    leave_at = property(fset=_set_leave_at, doc="The share of the batch that has to be closed before it leaves.")


class StepSearch:
    """Advances with a call of the decode state and one of the library for each token."""

    def __init__(
        self,
        prepared: Prepared,
        state: DecodeState,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        alignments: bool | str = False,
        keep_history: bool = False,
        leave_early: bool = True,
        source_lengths: Sequence[int] | None = None,
    ) -> None:
        """The arguments are those of `decoding.decode`."""
        self.handle = None
        if len(sources) != state.n_sources or state.n_beams != options.n_rows:
            raise ValueError(
                f"the decode state holds {state.n_sources} sources of {state.n_beams} beams, expected {len(sources)} "
                f"of {options.n_rows}; make it for the sources and options that are decoded"
            )
        self._library = library.load()
        self.state = state
        self.options = options
        self.results: list[list[Hypothesis]] = [[] for _ in sources]
        self.steps = Batch(self, len(sources))
        self._whole = prepared.whole
        self._query: StepQuery | None = None  # of the next step, where it was asked for already
        self._prompt = list(options.prompt)
        self._source_lengths = [len(source) for source in sources] if source_lengths is None else source_lengths
        self._alignments = alignments
        self._attention: list[Floats] = []
        given, self._arrays = settings(
            prepared, options, sources, state.vocabulary_size, keeps_history=keep_history, leave_early=leave_early
        )
        self.handle = self._library.s2s_search_new(ctypes.byref(given))
        if self.handle is None:
            raise BackendError(f"the search can't begin ({library.error(self._library)}); use a smaller batch size")
        self._n_candidates = ctypes.c_int32()
        self._probes = ctypes.c_void_p()
        self._begin()

    def __del__(self) -> None:
        if self.handle is not None:
            self._library.s2s_search_delete(self.handle)

    def _begin(self) -> None:
        """Feed the prompt without its last token."""
        shape = (len(self.steps.present), self.options.n_rows)
        self._tokens = np.full(shape, self._prompt[-1], dtype=np.int64)
        self._parents = feed(self.state, self._fed_first())

    def _fed_first(self) -> Ints:
        """The prompt without its last token, [B, P-1]."""
        return np.tile(np.asarray(self._prompt[:-1], dtype=np.int64), (len(self.steps.present), 1))

    def advance(self) -> bool:
        """One more token. Returns whether the search goes on."""
        query = self._query or self.ask().query
        self._query = None
        found = self.state.step(self._tokens, self._parents, query)
        self._keep_attention(found)
        ids = np.ascontiguousarray(found.candidate_ids, dtype=np.int64)
        log_probs = np.ascontiguousarray(found.candidate_log_probs, dtype=np.float32)
        normalizer = np.ascontiguousarray(found.log_normalizer, dtype=np.float32)
        probed = log_probs
        if query.probe_ids is not None:
            if found.probe_log_probs is None:
                raise ValueError("the decode state returned no probe_log_probs, expected them for a query with some")
            probed = np.ascontiguousarray(found.probe_log_probs, dtype=np.float32)
        if self._whole and found.log_probs is None:
            raise ValueError("the decode state returned no log_probs, expected them for a query with dense=True")
        whole = np.require(found.log_probs, np.float32, ["C", "W"]) if self._whole else log_probs
        self._tokens, self._parents = np.empty_like(self._tokens), np.empty_like(self._parents)
        status = self._library.s2s_search_advance(
            self.handle, *map(library.address, (ids, log_probs, normalizer, probed, whole)), ids.shape[2],
            probed.shape[2], library.address(self._tokens), library.address(self._parents),
        )  # fmt: skip
        return self._after(status)

    @property
    def is_sparse(self) -> bool:
        """Whether its steps find no more than the best and the probed tokens."""
        return not self._whole and not self._alignments

    def made(self, status: int) -> bool:
        """What `advance` does after its step, where the library made steps and searched. Returns whether it goes on."""
        self._query = None
        self._library.s2s_search_fed(self.handle, library.address(self._tokens), library.address(self._parents))
        if status == library.TOO_MANY:
            raise TooMany(TOO_MANY)
        return self._after(status)

    def ask(self) -> Question:
        """What the next `advance` will ask the state, for whoever makes one step for several searches."""
        n_probes = self._library.s2s_search_ask(self.handle, self._n_candidates, self._probes)
        if n_probes == library.TOO_MANY:
            raise TooMany(TOO_MANY)
        wants_attention = bool(self._alignments)
        if self._whole:
            self._query = StepQuery(dense=True, attention=wants_attention)
        else:
            self._query = StepQuery(self._n_candidates.value, self._probe_ids(n_probes), attention=wants_attention)
        return Question(self._tokens, self._parents, self._query)

    def _probe_ids(self, n_probes: int) -> Ints | None:
        if not n_probes:
            return None
        n = self._tokens.size * n_probes
        address = self._probes.value
        assert address is not None
        ids: Ints = np.ctypeslib.as_array((ctypes.c_int64 * n).from_address(address))
        return ids.reshape(*self._tokens.shape, n_probes)

    def _after(self, status: int) -> bool:
        """What a status of the library asks for."""
        if status == library.GOES_ON:
            return True
        if status == library.IMPRECISE:
            raise Imprecise("too little probability is left to renormalise by the tokens that rules changed")
        if status not in (library.ENDED, library.LEAVE):
            raise BackendError(f"the search failed ({library.error(self._library)}); use a smaller batch size")
        settled = self._settled()
        for place in settled.tolist():
            self.results[self.steps.present[place]] = [
                self._output(place, k) for k in range(self.options.num_return_sequences)
            ]
        if status == library.LEAVE:
            self.leave(np.setdiff1d(np.arange(len(self.steps.present)), settled))
        return status == library.LEAVE

    def set_leave_at(self, share: float) -> None:
        self._library.s2s_search_leave_at(self.handle, share)

    def _settled(self) -> NDArray[np.int32]:
        out = np.empty(len(self.steps.present), dtype=np.int32)
        return out[: self._library.s2s_search_settled(self.handle, library.address(out))]

    def leave(self, staying: Ints) -> None:
        """Keep only these sources (ascending indices) in the batch. The others get no further results."""
        self.state.keep(staying)
        places = np.ascontiguousarray(staying, dtype=np.int32)
        self._library.s2s_search_leave(self.handle, library.address(places), len(places))
        self.steps.present = self.steps.present[staying]
        self._tokens = np.ascontiguousarray(self._tokens[staying])
        self._parents = np.ascontiguousarray(self._parents[staying])
        self._attention = [attention[staying] for attention in self._attention]

    def stable(self, source: int) -> list[int]:
        """The final tokens, including the prompt, of the best output of a source in the batch."""
        out = np.empty(self.options.max_length + 1, dtype=np.int64)
        n = self._library.s2s_search_stable(self.handle, source, library.address(out))
        found: list[int] = out[:n].tolist()
        return found

    def _output(self, source: int, place: int) -> Hypothesis:
        most = self.options.max_length + 1
        ids, scores, rows = np.empty(most, np.int64), np.empty(most, np.float32), np.empty(most, np.int32)
        of_score = ctypes.c_float()
        n = self._library.s2s_search_output(
            self.handle, source, place, *map(library.address, (ids, scores, rows)), ctypes.byref(of_score)
        )
        if n < 0:  # An empty place, for which generate() returns the prompt only.
            return Hypothesis(list(self._prompt), of_score.value, [])
        found = Hypothesis([*self._prompt, *ids[:n].tolist()], of_score.value, scores[:n].tolist())
        if self.options.num_beams == 1:
            found.score = sum(found.token_scores) / float(n) ** self.options.length_penalty
        if self._alignments and n:
            self._align(found, source, rows[:n].tolist())
        return found

    def _align(self, found: Hypothesis, source: int, rows: list[int]) -> None:
        length = self._source_lengths[self.steps.present[source]] or None
        looked = [self._attention[step][source, row] for step, row in enumerate(rows)]
        if self._alignments == "heads":
            heads = np.stack(looked, axis=2)[..., :length]  # [L, H, T, S]
            found.alignment_heads = heads
            found.alignment = heads[-1].mean(axis=0)
        else:
            found.alignment = np.stack(looked)[:, :length]

    def _keep_attention(self, found: StepResult) -> None:
        if not self._alignments:
            return
        if found.attention is None:
            raise ValueError("the decode state returned no attention, expected it for a query with attention=True")
        if self._alignments == "heads":
            self._attention.append(found.attention.copy())
        else:
            self._attention.append(found.attention[:, :, -1].mean(axis=2))  # [B, K, S]
