"""`begin_suppress_tokens`: tokens that are not generated first."""

from __future__ import annotations

from .. import option_values as values
from ..device_form import DeviceForm, distinct
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View, shared_ids

ORDER = 140
OPTIONS = {"begin_suppress_tokens": Option(values.token_list, example=[10], token_ids=list)}


class BeginSuppressTokens(SparseRule):
    """`SuppressTokensAtBeginLogitsProcessor`. With forced_bos_token_id, it applies to the second token.

    Device: the tokens, the length at which they are banned.
    """

    def __init__(self, tokens: tuple[int, ...], length: int) -> None:
        self._length = length
        self._edit = Edit("ban", shared_ids(tokens))

    def edit(self, view: View) -> Edit | None:
        return self._edit if view.length == self._length else None

    def device_form(self, max_length: int) -> DeviceForm:
        ids = distinct(self._edit.ids.ravel())
        return DeviceForm("ban", first_length=self._length, last_length=self._length, ids=ids)


def from_options(options: GenerationOptions, vocabulary_size: int) -> BeginSuppressTokens | None:
    if not options.begin_suppress_tokens:
        return None
    length = len(options.prompt)
    if length == 1 and options.forced_bos_token_id is not None:
        length += 1
    return BeginSuppressTokens(options.begin_suppress_tokens, length)
