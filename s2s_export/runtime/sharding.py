"""Work split over machines: shard I of N decodes a part of the input, and its output is a file of its own.

The parts are runs of lines, so that the files of all shards, in the order of their names, are the output of one run
over the whole. A file's name depends on the output's name, I and N alone: a job that is started again finds what it
wrote.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidOption

MOST = 99_999


@dataclass(frozen=True)
class Shard:
    """index: from 0. n: how many there are."""

    index: int
    n: int

    @classmethod
    def of(cls, text: str) -> Shard:
        """Of "I/N". Raises InvalidOption."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        index, n = (int(part) for part in match.groups()) if match else (0, 0)
        if not match or not 1 <= n <= MOST or index >= n:
            raise InvalidOption(f"the shard is '{text}'; expected I/N with I from 0 to N - 1, such as 0/4 to 3/4")
        return cls(index, n)

    def of_items(self, n_items: int) -> range:
        """Which of so many items are this shard's. Sizes of shards differ by at most one."""
        return range(n_items * self.index // self.n, n_items * (self.index + 1) // self.n)

    def part(self, path: str) -> str:
        """Where the output goes instead of `path`: out.jsonl becomes out-00002-of-00016.jsonl."""
        whole = Path(path)
        return str(whole.with_name(f"{whole.stem}-{self.index:05d}-of-{self.n:05d}{whole.suffix}"))
