"""What is done to the outputs of a source once they are decoded: reranked, mended, described word by word.

    finishing = Finishing(mbr=True, confidence=True)
    outputs = finishing.apply(session, "a text", source_ids, outputs)

Minimum Bayes risk first, then what is kept of the source, so that confidence is of what was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidOption
from . import keeping, mbr
from .decoding import Hypothesis
from .session import Session
from .sources import Source


@dataclass(frozen=True)
class Finishing:
    """confidence: probabilities of words and of the whole output in the JSON, and `calibrated` where the bundle has a
    calibration for the target (calibration.py). mbr: order outputs by minimum Bayes risk.
    keep: patterns or names of catalogues' syntaxes (keeping.py) whose matches are copied from the source.
    keep_unknown: copy what the source's vocabulary can't spell.
    """

    confidence: bool = False
    mbr: bool = False
    keep: tuple[str, ...] = ()
    keep_unknown: bool = False

    @property
    def wants_alignments(self) -> bool:
        return bool(self.keep) or self.keep_unknown

    def check(self, session: Session) -> None:
        """Raises InvalidOption for what this bundle can't do."""
        if self.wants_alignments and not session.has_attention:
            raise InvalidOption(
                f"--keep copies along the attention to the source, which a model of the family "
                f"'{session.bundle.manifest['family']}' does not have; leave it out"
            )
        keeping.expressions(self.keep)
        if self.mbr:
            mbr.require()

    def apply(
        self, session: Session, text: str | None, source: Source, outputs: Sequence[Hypothesis]
    ) -> list[Hypothesis]:
        """text: of the source, None where it was given as ids."""
        found = list(outputs)
        if self.mbr:
            found = [found[i] for i in mbr.order([hypothesis.text or "" for hypothesis in found])]
        if self.wants_alignments and text is not None:
            found = [
                keeping.keep(session, text, source, hypothesis, self.keep, unknown=self.keep_unknown)
                for hypothesis in found
            ]
        return found

    def details(self, session: Session, hypothesis: Hypothesis) -> dict[str, Any]:
        """What the JSON has of an output beside its text and score."""
        if not self.confidence:
            return {}
        from .confidence import of_words, sentence

        found = {"confidence": sentence(hypothesis), "words": of_words(session, hypothesis)}
        return found if session.calibration is None else {**found, "calibrated": session.calibration.of(hypothesis)}
