"""`forced_eos_token_id`: the last token when an output reaches max_length."""

from __future__ import annotations

from .. import option_values as values
from ..device_form import DeviceForm, distinct
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View, shared_ids

ORDER = 100
OPTIONS = {"forced_eos_token_id": Option(values.token_ids, example=[2, 3], token_ids=list)}


class ForcedEos(SparseRule):
    """`ForcedEOSTokenLogitsProcessor`. The token need not be one of the end tokens.

    Device: the tokens, max_length; applied where the length is max_length - 1.
    """

    def __init__(self, tokens: tuple[int, ...], max_length: int) -> None:
        self._last = max_length - 1
        self._edit = Edit("only", shared_ids(tokens))

    def edit(self, view: View) -> Edit | None:
        return self._edit if view.length == self._last else None

    def device_form(self, max_length: int) -> DeviceForm:
        ids = distinct(self._edit.ids.ravel())
        return DeviceForm("only", first_length=self._last, last_length=self._last, ids=ids)


def from_options(options: GenerationOptions, vocabulary_size: int) -> ForcedEos | None:
    if options.forced_eos_token_id is None:
        return None
    return ForcedEos(options.forced_eos_token_id, options.max_length)
