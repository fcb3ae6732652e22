"""`min_length`: no end token before the text has that many tokens, including the decoder prompt."""

from __future__ import annotations

from .. import option_values as values
from ..device_form import DeviceForm, distinct
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import Edit, SparseRule, View, shared_ids

ORDER = 70
OPTIONS = {"min_length": Option(values.integer(0), default=0, example=5)}


class MinLength(SparseRule):
    """`MinLengthLogitsProcessor`. It also implements `min_new_tokens`: generate() sets min_length from it, and its
    second processor for it (`MinNewTokensLengthLogitsProcessor`) has the same effect.

    Device: the end tokens, the length before which they are banned.
    """

    def __init__(self, min_length: int, eos: tuple[int, ...]) -> None:
        self._min_length = min_length
        self._edit = Edit("ban", shared_ids(eos))

    def edit(self, view: View) -> Edit | None:
        return self._edit if view.length < self._min_length else None

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("ban", last_length=self._min_length - 1, ids=distinct(self._edit.ids.ravel()))


def from_options(options: GenerationOptions, vocabulary_size: int) -> MinLength | None:
    return MinLength(options.min_length, options.eos_token_id) if options.min_length and options.eos_token_id else None
