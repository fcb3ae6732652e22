"""Reads many pictures, a batch at a time: one that can't be read affects no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import explain, is_failure
from .cases import Outcome, decode_each
from .decoding import GenerationOptions
from .session import Session


def read_each(
    session: Session,
    names: Sequence[str],
    options: GenerationOptions,
    batch_size: int,
    open_picture: Callable[[str], Any] = lambda name: name,
) -> Iterator[tuple[str, Outcome]]:
    """The name and outcome of each picture, in order. No more than a batch of pictures is in memory.

    open_picture: what `session.check_source` takes of a name.
    """
    for first in range(0, len(names), batch_size):
        part = names[first : first + batch_size]
        outcomes: dict[int, Outcome] = {}
        places, sources = [], []
        for place, name in enumerate(part):
            try:
                sources.append(session.check_source(open_picture(name)))
                places.append(place)
            except BaseException as error:
                if not is_failure(error):
                    raise
                outcomes[place] = explain(error)
        numbers = [first + place for place in places]
        for i, outcome in decode_each(session, sources, options, batch_size=batch_size, source_numbers=numbers):
            outcomes[places[i]] = outcome
        for place, name in enumerate(part):
            yield name, outcomes[place]
