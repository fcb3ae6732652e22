"""Windows of sound decoded where the model runs: the whole search on a device, times included.

Letters: B windows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import InvalidOption
from ..backends import Searcher
from ..decoding.generation_options import GenerationOptions
from ..decoding.hypothesis import Hypothesis
from ..decoding.state import Floats
from ..device_search.rules import serialise
from ..device_search.searcher import DeviceSearcher
from ..device_search.step_executor import PromptLogits
from ..device_search.tables import MOST_BEAMS


class DeviceWindows:
    """The search on the device for windows. What it has not is served by the search on the host."""

    def __init__(self, searcher: DeviceSearcher, vocabulary_size: int) -> None:
        self._searcher = searcher
        self._vocabulary_size = vocabulary_size

    def serves(self, options: GenerationOptions) -> bool:
        """Whether all options have a form for the device."""
        try:
            serialise(options, self._vocabulary_size)
        except InvalidOption:
            return False
        return options.n_rows <= MOST_BEAMS

    def decode(
        self, features: Sequence[Floats], options: GenerationOptions, numbers: Sequence[int], watched: int | None,
        attention: bool,
    ) -> tuple[list[list[Hypothesis]], list[Floats]]:  # fmt: skip
        """The outputs of each window, best first, and the logits [V] behind the prompt's token `watched`, if it is one.

        numbers: of the windows, as draws count them. attention: whether its weights are wanted as well.
        """
        watch = None if watched is None else PromptLogits(watched)
        found = self._searcher.decode(
            features, options, source_numbers=numbers, watch=watch, alignments="heads" if attention else False
        )
        return found, [] if watch is None else watch.found


def on_device(searcher: Searcher, vocabulary_size: int) -> DeviceWindows | None:
    """None for a searcher that is on the host."""
    return DeviceWindows(searcher, vocabulary_size) if isinstance(searcher, DeviceSearcher) else None
