"""`suppress_tokens`: never generated."""

from __future__ import annotations

from .. import option_values as values
from ..device_form import DeviceForm, distinct
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View, shared_ids

ORDER = 130
OPTIONS = {"suppress_tokens": Option(values.token_list, example=[8, 9], token_ids=list)}


class SuppressTokens(SparseRule):
    """`SuppressTokensLogitsProcessor`.

    Device: the tokens.
    """

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self._edit = Edit("ban", shared_ids(tokens))

    def edit(self, view: View) -> Edit:
        return self._edit

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("ban", ids=distinct(self._edit.ids.ravel()))


def from_options(options: GenerationOptions, vocabulary_size: int) -> SuppressTokens | None:
    return SuppressTokens(options.suppress_tokens) if options.suppress_tokens else None
