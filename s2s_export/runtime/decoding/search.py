"""Beam search, as transformers' generate() does it since 4.50 (`GenerationMixin._beam_search`).

Letters: B sources, K beams, C = K * max(2, 1 + end tokens) candidates, W tokens considered, P prompt length.

A source has K running beams, with the sums of their log-probabilities, and a pool of its K best finished outputs. A
step takes the C best continuations of all beams. Those that are finished and among the best K go to the pool, with
their sum divided by length ** length_penalty. The best K that are not finished become the running beams. A source is
closed once its best running beam, divided likewise, is no better than the worst output in its pool; then the pool does
not change any more.

Scores are float32. Impossible candidates are not removed, but their scores are reduced by 1e9: if too few candidates
are possible, transformers' search continues with impossible ones, and so does this one. Ties go to the lower beam, then
to the lower token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import InputError
from .beams import Beams
from .draws import Draws
from .endings import Endings
from .hypothesis import Hypothesis
from .options import GenerationOptions
from .prompts import without_gaps
from .rule import Rule
from .state import DecodeState, Ints, Question
from .steps import Steps

IMPOSSIBLE = -1e8  # a lower sum of log-probabilities stands for no output


class BeamSearch:
    """One batch. `advance` makes a step and says whether there is another; `results` are complete after the last.

    leave_early: closed sources leave the batch, once there are enough of them. That changes no token: the pool of a
    closed source does not change any more, and the search of the others does not depend on it.
    """

    def __init__(
        self,
        state: DecodeState,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        draws: Draws,
        *,
        alignments: bool | str = False,
        keep_history: bool = False,
        leave_early: bool = True,
        source_lengths: Sequence[int] | None = None,
        source_numbers: Sequence[int] | None = None,
        sparse_sums: bool = False,
    ) -> None:
        self.steps = Steps(
            state,
            sources,
            options,
            alignments=alignments,
            keep_history=keep_history,
            whole_distribution=bool(options.do_sample),
            source_lengths=source_lengths,
            source_numbers=source_numbers,
            sparse_sums=sparse_sums,
            rules=self._rules(sources, options),
        )
        self.results: list[list[Hypothesis]] = [[] for _ in sources]
        self._options = options
        self._leave_early = leave_early
        self._beams = self._make_beams(draws, Endings(options, self.steps))

    def _rules(self, sources: Sequence[Sequence[int]], options: GenerationOptions) -> Sequence[Rule]:
        """Rules of the search itself."""
        return ()

    def _make_beams(self, draws: Draws, endings: Endings) -> Beams:
        return Beams(self.steps, self._options, draws, endings, self._options.num_beams)

    @property
    def _n_wanted(self) -> int:
        """How many of the best tokens of each row a step needs."""
        return self._beams.n_candidates

    def ask(self) -> Question:
        """What the next `advance` will ask the state."""
        return self.steps.ask(self._n_wanted)

    def advance(self) -> bool:
        """One more token. Returns whether the search goes on."""
        scored = self.steps.look(self._n_wanted)
        with np.errstate(over="ignore", invalid="ignore"):  # Rules may make scores infinite, which is not an error.
            token, parent, log_prob, goes_on = self._beams.advance(scored)
            self.steps.append(token, parent, log_prob)
        if not goes_on:
            self._report(np.arange(len(self.steps.present)))
            return False
        if self._leave_early:
            self._let_closed_leave()
        return True

    def _let_closed_leave(self) -> None:
        settled = self._beams.is_settled()
        if settled.sum() < max(1.0, self.steps.leave_at * len(settled)):
            return
        self._report(np.flatnonzero(settled))
        self.leave(np.flatnonzero(~settled))

    def leave(self, staying: Ints) -> None:
        """Keep only these sources (ascending indices) in the batch. The others get no further results."""
        self.steps.leave(staying)
        self._beams.keep(staying)

    def _report(self, sources: Ints) -> None:
        for source in sources.tolist():
            outputs = range(self._options.num_return_sequences)
            found = [output(self.steps, self._beams, source, place) for place in outputs]
            if is_guided(self._options):
                found = allowed(found, self._options)
            self.results[self.steps.present[source]] = found

    def stable(self, source: int) -> list[int]:
        """The final tokens, including the prompt, of the best output of a source in the batch."""
        pool = self._beams.pool
        best = None
        if pool.step[source, 0] >= 0:
            before = self.steps.generated(source, int(pool.step[source, 0]), int(pool.parent[source, 0]))
            best = [*self.steps.prompt(source), *before, int(pool.token[source, 0])]
            if self._beams.is_settled()[source]:
                return best
        running = self.steps.history()[source]  # [K, length]
        agree = (running == running[0]).all(axis=0)
        common = without_gaps(running[0, : len(agree) if agree.all() else int(agree.argmin())].tolist())
        if best is None:
            return common
        n = next((i for i, (a, b) in enumerate(zip(common, best, strict=False)) if a != b), min(len(common), len(best)))
        return best[:n]


def is_guided(options: GenerationOptions) -> bool:
    """Whether only some outputs are allowed."""
    return bool(options.guides) or options.prefix_allowed_tokens_fn is not None


def allowed(found: list[Hypothesis], options: GenerationOptions) -> list[Hypothesis]:
    """The outputs that a guide allows. Fewer may be than were asked for; raises InputError if there is none."""

    def is_allowed(hypothesis: Hypothesis) -> bool:
        n = len(hypothesis.token_scores)
        generated = hypothesis.token_ids[len(hypothesis.token_ids) - n :]
        tokens = [token for token in generated if token not in options.eos_token_id]
        is_possible = n > 0 and hypothesis.score * float(n) ** options.length_penalty > IMPOSSIBLE
        return is_possible and all(guide.may_end(guide.after(tokens)) for guide in options.guides or ())

    found = [hypothesis for hypothesis in found if is_allowed(hypothesis)]
    if not found:
        raise InputError(
            "nothing that is allowed can be spelled within max_new_tokens; allow more outputs, or raise max_new_tokens"
        )
    return found


def output(steps: Steps, beams: Beams, source: int, place: int) -> Hypothesis:
    """What a place of the pool holds."""
    pool, at = beams.pool, (source, place)
    step, score = int(pool.step[at]), float(pool.score[at])
    if step < 0:  # An empty place, for which generate() returns the prompt only.
        return Hypothesis(steps.prompt(source), score, [])
    last = (int(pool.token[at]), float(pool.log_prob[at]))
    return steps.hypothesis(source, score, step, int(pool.parent[at]), last)
