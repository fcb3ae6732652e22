"""Which words of sound that is still coming are certain: those on which two hypotheses in a row agree.

LocalAgreement-2 of Macháček, Dabre and Bojar, "Turning Whisper into Real-Time Transcription System" (arXiv:2307.14743),
after Liu, Spanakis and Niehues (arXiv:2005.11185). The sound that is heard again for each hypothesis holds words that
are certain already. They are known by their text near the time at which the last of them ended, and by this time alone
where the text is another; the authors go by the time first, and lose words whose times move.
"""

from __future__ import annotations

from collections.abc import Sequence

from .segments import Word

SEAM = 1.0  # seconds by which the end of a word may move from one hypothesis to the next
MOST_COMPARED = 5  # words before the seam


class Agreement:
    """certain_until: seconds, the end of the last certain word. tentative: words that only the last hypothesis has."""

    def __init__(self) -> None:
        self.certain_until = 0.0
        self.tentative: list[Word] = []
        self._last: list[str] = []  # the latest certain words, bare

    def agree(self, hypothesis: Sequence[Word]) -> list[Word]:
        """The words that the hypothesis makes certain: the longest beginning that it shares with the one before."""
        new = self._behind(hypothesis)
        n = 0
        while n < min(len(new), len(self.tentative)) and new[n].word == self.tentative[n].word:
            n += 1
        self.tentative = new[n:]
        return self._made_certain(new[:n])

    def settle(self) -> list[Word]:
        """What is tentative becomes certain, as no more is to be heard of it."""
        words, self.tentative = self.tentative, []
        return self._made_certain(words)

    def _made_certain(self, words: list[Word]) -> list[Word]:
        if words:
            self.certain_until = max(self.certain_until, words[-1].end)
            self._last = [*self._last, *map(_bare, words)][-MOST_COMPARED:]
        return words

    def _behind(self, hypothesis: Sequence[Word]) -> list[Word]:
        """Its words behind the certain ones."""
        seam = sum((word.start + word.end) / 2 <= self.certain_until for word in hypothesis)
        best = (0, 0.0)
        for n, word in enumerate(hypothesis, 1):
            distance = abs(word.end - self.certain_until)
            found = (self._n_equal([_bare(w) for w in hypothesis[max(0, n - MOST_COMPARED) : n]]), -distance)
            if found[0] and distance <= SEAM and found > best:
                best, seam = found, n
        return list(hypothesis[seam:])

    def _n_equal(self, before: Sequence[str]) -> int:
        """How many words of the end of a hypothesis's beginning are the last certain ones."""
        n = 0
        while n < min(len(before), len(self._last)) and before[-1 - n] == self._last[-1 - n]:
            n += 1
        return n


def _bare(word: Word) -> str:
    """Without case and punctuation, which change as more is heard."""
    return "".join(c for c in word.word.casefold() if c.isalnum())
