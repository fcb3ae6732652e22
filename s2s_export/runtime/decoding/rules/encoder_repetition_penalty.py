"""`encoder_repetition_penalty`: above 1 favours the tokens of the source."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..device_form import DeviceForm
from ..generation_options import GenerationOptions
from ..option import Option
from ..rule import NO_TOKEN, Edit, SparseRule, View
from ..state import Ints

ORDER = 20
OPTIONS = {"encoder_repetition_penalty": Option(values.above_0, default=1.0, example=1.5, reads_source=True)}


class EncoderRepetitionPenalty(SparseRule):
    """`EncoderRepetitionPenaltyLogitsProcessor`: repetition_penalty with 1/penalty over the tokens of the source.

    transformers also counts the padding of a source; here, a source's result does not depend on its batch.
    (transformers 5.17 confused the sources in beam search; this follows 5.23.) Device: the source's ids [S], 1/penalty.
    """

    shift_invariant = False

    def __init__(self, penalty: float, vocabulary_size: int) -> None:
        self._amount = 1.0 / penalty
        self._vocabulary_size = vocabulary_size
        self._edit: tuple[Ints, Edit] | None = None

    def edit(self, view: View) -> Edit:
        if self._edit is None or self._edit[0] is not view.sources:
            ids = view.sources[:, None, :]
            ids = np.where(ids < self._vocabulary_size, ids, NO_TOKEN)
            self._edit = (view.sources, Edit("scale", ids, self._amount))
        return self._edit[1]

    def device_form(self, max_length: int) -> DeviceForm:
        return DeviceForm("scale", "source", amount=self._amount)


def from_options(options: GenerationOptions, vocabulary_size: int) -> EncoderRepetitionPenalty | None:
    penalty = options.encoder_repetition_penalty
    return EncoderRepetitionPenalty(penalty, vocabulary_size) if penalty is not None and penalty != 1.0 else None
