"""`forced_bos_token_id`: the first token after a decoder prompt of one token."""

from __future__ import annotations

from .. import option_values as values
from ..device_form import DeviceForm, distinct
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View, shared_ids

ORDER = 90
OPTIONS = {"forced_bos_token_id": Option(values.token_id, example=7, token_ids=lambda token: [token])}


class ForcedBos(SparseRule):
    """`ForcedBOSTokenLogitsProcessor`. After a longer prompt, nothing is forced.

    Device: the token, applied where the length is 1.
    """

    def __init__(self, token: int) -> None:
        self._edit = Edit("only", shared_ids([token]))

    def edit(self, view: View) -> Edit | None:
        return self._edit if view.length == 1 else None

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("only", first_length=1, last_length=1, ids=distinct(self._edit.ids.ravel()))


def from_options(options: GenerationOptions, vocabulary_size: int) -> ForcedBos | None:
    return ForcedBos(options.forced_bos_token_id) if options.forced_bos_token_id is not None else None
