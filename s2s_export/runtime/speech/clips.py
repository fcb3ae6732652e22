"""Transcripts of models that take one clip at once and write no times, such as Moonshine: one segment of all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from ...errors import UsageError
from ..audio.log_mel import SAMPLE_RATE
from ..decoding import Hypothesis
from ..decoding.state import Floats
from .segments import Segment
from .side_by_side import Read, one_by_one
from .transcribe import Transcription

ALLOWED: Mapping[str, Collection[Any]] = {"timestamps": ("none", "segment"), "task": ("transcribe",)}


def check_options(given: Mapping[str, Any], family: str) -> None:
    """given: of `TranscribeOptions`. Raises UsageError, which names those that need windows, times or languages."""
    wrong = [name for name, value in given.items() if name != "batch_size" and value not in ALLOWED.get(name, ())]
    if wrong:
        raise UsageError(
            f"a model of the family '{family}' transcribes a short clip at once, without times and languages; leave "
            f"out {', '.join(sorted(wrong))}"
        )


class ClipTranscription(Transcription):
    """decode: gives the clip's best hypothesis, with its text."""

    def __init__(self, samples: Floats, decode: Callable[[], Hypothesis]) -> None:
        super().__init__(len(samples) / SAMPLE_RATE, None, None)
        self._source = self._decoded(decode)

    def _decoded(self, decode: Callable[[], Hypothesis]) -> Iterator[tuple[float, list[Segment]]]:
        found = decode()
        segment = Segment(
            0.0, self.duration, tuple(found.token_ids), text=found.text or "", avg_logprob=float(found.score)
        )
        yield self.duration, [segment]


class Clips:
    """Transcribes clips. decode: gives the best hypothesis of samples [L], with its text."""

    def __init__(self, decode: Callable[[Floats], Hypothesis]) -> None:
        self._decode = decode

    def one(self, samples: Floats) -> Transcription:
        return ClipTranscription(samples, lambda: self._decode(samples))

    def many(self, reads: Iterable[Read]) -> Iterator[Transcription]:
        return one_by_one(reads, self.one)
