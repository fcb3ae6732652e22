"""A source on its way through a server, and the requests that sources came with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..errors import InputError, InvalidOption, S2SError, explain
from ..runtime.decoding import GenerationOptions, Hypothesis
from ..runtime.decoding.state import Ints
from ..runtime.session import Session
from ..runtime.sources import Source

OnPrefix = Callable[[list[int]], None]


class Overloaded(S2SError):
    """The queue is full. retry_after: seconds after which there should be room. code: a word for programs."""

    code = "overloaded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooLarge(InputError):
    """More than the queue ever holds."""


class DeadlinePassed(S2SError):
    pass


class Closed(Overloaded):
    """The batcher takes no more work."""


class EngineLost(Overloaded):
    """The process that decoded a source ended."""

    code = "engine_lost"


@dataclass(eq=False)
class Job:
    """One source on its way. future: its hypotheses, best first, each with its text.

    began, encoded: when a batch took it, and when its encoder was done.
    """

    source: Source
    length: int
    options: GenerationOptions
    alignments: bool | str
    number: int
    deadline: float
    on_prefix: OnPrefix | None
    arrived: float
    priority: int = 0
    future: Future[list[Hypothesis]] = field(default_factory=Future)
    cancelled: bool = False
    n_told: int = 0
    began: float | None = None
    encoded: float | None = None
    version: Ints | None = None  # of the queue that it came into

    def cancel(self) -> None:
        """Nobody wants the result any more. The decoding of its batch goes on without it."""
        self.cancelled = True
        if self.version is not None:
            self.version += 1
        self.future.cancel()

    def __post_init__(self) -> None:
        # What must be equal among sources of one search. Options of one request are one object, which makes comparing
        # them cheap.
        self.key = (self.options, self.alignments, self.on_prefix is not None)
        # What must be equal in a batch that several searches share: the rows of a source, and which large outputs of
        # a step are copied.
        wants_attention = bool(self.alignments) or bool(self.options.coverage_penalty)
        self.joint_key = (self.options.n_rows, wants_attention, bool(self.options.do_sample))

    def is_wanted(self, now: float) -> bool:
        return not self.cancelled and self.deadline > now

    def teller(self) -> OnPrefix:
        """Hands on the ids that became final, of a decoding that may repeat what an earlier one told."""
        n_found = 0

        def tell(ids: list[int]) -> None:
            nonlocal n_found
            new = ids[max(0, self.n_told - n_found) :]
            n_found += len(ids)
            if new and self.on_prefix is not None and not self.cancelled:
                self.n_told = n_found
                self.on_prefix(new)

        return tell

    def settle(self, result: list[Hypothesis] | BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            if isinstance(result, S2SError):
                self.future.set_exception(result)
            elif isinstance(result, BaseException):
                self.future.set_exception(S2SError(explain(result)))
            else:
                self.future.set_result(result)


def jobs_of(
    session: Session,
    sources: Sequence[Source],
    options: GenerationOptions,
    alignments: bool | str,
    priority: int,
    timeout: float | None,
    on_prefix: OnPrefix | None,
    now: float,
) -> list[Job]:
    """The jobs of one request. Raises InvalidOption for what can't be had of this model."""
    if alignments and not session.has_attention:
        raise InvalidOption("this model has no attention, so there is no alignment; don't ask for one")
    if on_prefix is not None and len(sources) != 1:
        raise InvalidOption(f"{len(sources)} sources are to be streamed; expected one")
    deadline = float("inf") if timeout is None else now + timeout
    return [
        Job(source, session.kind.length(source), options, alignments, number, deadline, on_prefix, now, priority)
        for number, source in enumerate(sources)
    ]


class Request:
    """Jobs that were submitted together, which take turns with others as one. n_tokens: of the sources that wait.

    since: how many sources had been taken from the queue when it came, or when a source of it was last taken.
    """

    def __init__(self, jobs: Sequence[Job], since: int) -> None:
        self.waiting = list(jobs)
        self.priority = jobs[0].priority
        self.since = since
        self.n_tokens = sum(job.length for job in jobs)

    def take(self, job: Job) -> None:
        self.waiting.remove(job)
        self.n_tokens -= job.length

    def nearest(self, fits: Callable[[Job], bool], length: int) -> Job | None:
        """The waiting job that fits and is nearest in length, the oldest of several."""
        fitting = [job for job in self.waiting if fits(job)]
        return min(fitting, key=lambda job: abs(job.length - length), default=None)


@dataclass(frozen=True)
class BatchReport:
    """Work that was done: a whole batch, or a stretch of steps of one that sources join and leave.

    queue_seconds: how long each source that came in waited. n_joined: how many of them joined others. n_together:
    sources decoded side by side, on average over the steps. source_tokens, target_tokens: of the sources that were
    finished. seconds: of the decoding.
    """

    queue_seconds: tuple[float, ...]
    n_joined: int
    n_together: float
    source_tokens: int
    target_tokens: int
    steps: int
    seconds: float


def late(job: Job, now: float) -> DeadlinePassed:
    return DeadlinePassed(
        f"the text was not decoded within {now - job.arrived:.1f} seconds, the time that was allowed; send less, or "
        "allow more time"
    )
