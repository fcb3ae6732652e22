"""What a worker does where sources can't join a batch: it decodes one batch after another."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import is_failure
from ..runtime.decoding import Hypothesis
from ..runtime.session import Session
from .jobs import BatchReport, Job, late


class WholeBatches:
    """Decodes batches of jobs with equal keys. Not for use by several threads."""

    joins = False
    n_sources = 0  # between two calls of `work`
    present: tuple[Job, ...] = ()
    patience = None  # it keeps no memory between two calls

    def __init__(
        self, session: Session, clock: Callable[[], float], report: Callable[[BatchReport], None] = lambda report: None
    ) -> None:
        self._session = session
        self._clock = clock
        self._report = report

    def n_more_kinds(self, n_waiting: int) -> int:
        return min(1, n_waiting)

    def rest(self) -> None:
        pass

    def work(self, batch: list[Job]) -> None:
        """Decode a batch. One that fails is halved until the job that fails is alone."""
        begin = self._clock()
        try:
            found = self._decode(batch)
        except BaseException as error:
            if not is_failure(error):
                raise
            if len(batch) == 1:
                batch[0].settle(error)
                return
            middle = len(batch) // 2
            self.work(batch[:middle])
            self.work(batch[middle:])
            return
        end = self._clock()
        for job, hypotheses in zip(batch, found, strict=True):
            job.settle(hypotheses or late(job, end))
        self._report(
            BatchReport(
                queue_seconds=tuple(begin - job.arrived for job in batch),
                n_joined=0,
                n_together=len(batch),
                source_tokens=sum(job.length for job in batch),
                target_tokens=sum(len(hypotheses[0].token_scores) for hypotheses in found if hypotheses),
                steps=max((len(h.token_scores) for of_source in found for h in of_source), default=0),
                seconds=end - begin,
            )
        )

    def _decode(self, batch: list[Job]) -> list[list[Hypothesis]]:
        first, begin = batch[0], self._clock()
        tellers = [job.teller() for job in batch]
        for job in batch:
            job.began, job.encoded = begin, None

        def is_wanted(i: int) -> bool:
            """Asked before each step: before the first one, a source has just been encoded."""
            now = self._clock()
            if batch[i].encoded is None:
                batch[i].encoded = now
            return batch[i].is_wanted(now)

        return self._session.decode_batch(
            [job.source for job in batch],
            first.options,
            alignments=first.alignments,
            source_numbers=[job.number for job in batch],
            wanted=is_wanted,
            on_prefix=(lambda i, ids: tellers[i](ids)) if first.on_prefix is not None else None,
        )
