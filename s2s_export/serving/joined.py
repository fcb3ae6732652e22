"""What a worker does where sources can join a batch: it keeps one open batch, and makes one step after another.

Between two steps newcomers come in and finished sources go, with their results, at once; while nobody does, several
steps are made in one call. Sources that come in together with equal options are one cohort
(runtime/decoding/joining.py). A batch that runs empty stays open for a second, as its memory costs more to get again
than a few steps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from ..errors import is_failure
from ..runtime.decoding import Hypothesis
from ..runtime.decoding.joining import Until
from ..runtime.decoding.state import Ints
from ..runtime.joining import OpenDecoding
from ..runtime.session import Session
from .jobs import BatchReport, Job, late
from .whole import WholeBatches

REPORT_EVERY = 32  # steps
KEPT = 1.0  # seconds that an empty batch stays open
# Of what is made at a time without Python where nobody comes in or leaves: who is late is seen after so long.
MOST_STEPS, MOST_SECONDS = 64, 0.02


class JoinedBatches:
    """An open batch of jobs with equal `joint_key`. Not for use by several threads.

    present: the jobs that are being decoded.
    """

    joins = True

    def __init__(
        self,
        session: Session,
        batch_size: int,
        clock: Callable[[], float],
        report: Callable[[BatchReport], None] = lambda report: None,
        version: Ints | None = None,
    ) -> None:
        """version [1]: of the queue; when it changes, the steps that are made at a time come to an end."""
        self.present: list[Job] = []
        self._session = session
        self._batch_size = batch_size
        self._clock = clock
        self._whole = WholeBatches(session, clock, report)
        self._report = report
        self._version = version
        self._decoding: OpenDecoding | None = None
        self._n_rows = 0  # of each of its sources
        self._again: list[Job] = []  # of a cohort that failed: each may be the one at fault
        self._stretch = _Stretch(clock())

    @property
    def n_sources(self) -> int:
        return len(self.present)

    @property
    def patience(self) -> float | None:
        """Seconds after which `rest` frees memory where nothing comes; None where there is none to free."""
        return None if self._decoding is None else KEPT

    def rest(self) -> None:
        """Give back the memory of an empty batch."""
        self._decoding = None

    def n_more_kinds(self, n_waiting: int) -> int:
        """How many kinds of options may come in now, where so many jobs wait; 0 if nobody may."""
        n = min(n_waiting, self._batch_size - len(self.present))
        return n if self._decoding is None else n // self._decoding.fewest_newcomers

    def work(self, newcomers: list[Job]) -> None:
        """Let jobs come in, make some steps, until others may come in, and settle what is finished."""
        expected = 0 if self._version is None else int(self._version[0])
        if not self.present:
            if newcomers and newcomers[0].options.n_rows != self._n_rows:
                self._decoding = None
            of = self._decoding
            self._stretch = _Stretch(self._clock(), *(() if of is None else (of.n_steps, of.n_stepped)))
        for kind in _by_key(newcomers):
            self._join(kind)
        if self._decoding is not None and self.present:
            try:
                self._decoding.advance(Until(MOST_STEPS, MOST_SECONDS, self._version, expected))
            except BaseException as error:
                if not is_failure(error):
                    raise
                # Not one source's fault, or nobody knows whose: what is there is decoded in whole batches.
                self._again += self.present
                self.present, self._decoding = [], None
        for kind in _by_key(self._again):
            self._whole.work(kind)
        self._again = []
        self._tell()
        if not self.present and self._decoding is not None and self._decoding.n_sources:
            self._decoding = None  # of nobody's

    def _join(self, jobs: list[Job]) -> None:
        now, first, n_before = self._clock(), jobs[0], len(self.present)
        tellers = [job.teller() for job in jobs]
        for job in jobs:
            job.began = now

        def on_result(i: int, found: list[Hypothesis] | BaseException) -> None:
            self._settle(jobs[i], found, is_alone=len(jobs) == 1)

        self.present += jobs
        try:
            if self._decoding is None:
                self._n_rows = first.options.n_rows
                self._decoding = OpenDecoding(self._session, self._n_rows, self._batch_size)
            self._decoding.join(
                [job.source for job in jobs],
                first.options,
                on_result=on_result,
                alignments=first.alignments,
                source_numbers=[job.number for job in jobs],
                wanted=lambda i: jobs[i].is_wanted(self._clock()),
                on_prefix=(lambda i, ids: tellers[i](ids)) if first.on_prefix is not None else None,
            )
        except BaseException as error:
            if not is_failure(error):
                raise
            for job in jobs:
                self._settle(job, error, is_alone=len(jobs) == 1)
            if not self.present:
                self._decoding = None
            return
        encoded = self._clock()
        for job in jobs:
            job.encoded = encoded
        self._stretch.queue_seconds += [now - job.arrived for job in jobs]
        self._stretch.n_joined += len(jobs) if n_before else 0

    def _settle(self, job: Job, found: list[Hypothesis] | BaseException, *, is_alone: bool) -> None:
        self.present.remove(job)
        if isinstance(found, BaseException) and not is_alone:
            self._again.append(job)
            return
        if not isinstance(found, BaseException):
            self._stretch.source_tokens += job.length
            self._stretch.target_tokens += len(found[0].token_scores) if found else 0
        job.settle(found or late(job, self._clock()) if isinstance(found, list) else found)

    def _tell(self) -> None:
        """Report the steps since the last report, where there are enough of them or the batch is empty."""
        decoding, stretch = self._decoding, self._stretch
        if decoding is None:
            return
        steps, stepped = decoding.n_steps - stretch.n_steps, decoding.n_stepped - stretch.n_stepped
        if steps and (steps >= REPORT_EVERY or not self.present):
            now = self._clock()
            self._report(
                BatchReport(
                    queue_seconds=tuple(stretch.queue_seconds),
                    n_joined=stretch.n_joined,
                    n_together=stepped / steps,
                    source_tokens=stretch.source_tokens,
                    target_tokens=stretch.target_tokens,
                    steps=steps,
                    seconds=now - stretch.begin,
                )
            )
            self._stretch = _Stretch(now, decoding.n_steps, decoding.n_stepped)


class _Stretch:
    """What happened since the last report. begin: when. n_steps, n_stepped: of the decoding, then."""

    def __init__(self, begin: float, n_steps: int = 0, n_stepped: int = 0) -> None:
        self.begin = begin
        self.n_steps = n_steps
        self.n_stepped = n_stepped
        self.queue_seconds: list[float] = []
        self.n_joined = 0
        self.source_tokens = 0
        self.target_tokens = 0


def _by_key(jobs: list[Job]) -> list[list[Job]]:
    """Jobs with equal keys together, in the order in which kinds first appear."""
    order: dict[object, int] = {}
    for job in jobs:
        order.setdefault(job.key, len(order))
    ordered = sorted(jobs, key=lambda job: order[job.key])
    return [list(kind) for _, kind in groupby(ordered, key=lambda job: order[job.key])]
