"""Kinds of source: what each of them owes the rest, and token ids, the first one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2s_export import bundle
from s2s_export.bundle import Bundle
from s2s_export.errors import InputError
from s2s_export.runtime import sources
from s2s_export.runtime.sources.token_ids import TokenIds

SIZE, PADDING, END = 50, 3, 2


def kind(limit: int | None = 6, padding: int | None = PADDING, generation: Any = None) -> TokenIds:
    manifest = {
        "source": {"pad_token_id": padding},
        "limits": {"max_source_length": limit},
        "sizes": {"vocabulary_size": 90, "source_vocabulary_size": SIZE},
        "generation": {"eos_token_id": [END], "bos_token_id": 0} if generation is None else generation,
    }
    found = sources.kind_of(Bundle(Path("made"), manifest))
    assert isinstance(found, TokenIds)
    return found


@pytest.mark.parametrize("name", sorted(name for name, kind in sources.kinds().items() if kind.has_ids))
def test_a_batch_is_the_encoders_inputs_padded_to_the_longest(name: str, bundled: Any) -> None:
    opened = bundle.read(bundled("marian"))
    made = sources.kinds()[name](opened)
    rng = np.random.default_rng(4)
    batch = [made.check(make(rng, length)) for make in (made.random, made.typical) for length in (2, 7, 1)]
    assert [made.length(source) for source in batch] == [2, 7, 1] * 2
    prepared = made.prepare(batch)
    assert prepared[sources.MASK].dtype == np.int64
    assert prepared[sources.MASK].sum(axis=1).tolist() == [2, 7, 1] * 2
    assert (np.diff(prepared[sources.MASK], axis=1) <= 0).all()
    assert all(len(array) == len(batch) for array in prepared.values())
    for source, alone in ((batch[0], made.prepare([batch[0]])), (batch[5], made.prepare([batch[5]]))):
        assert alone[sources.MASK].shape == (1, made.length(source))
        assert bool(len(made.ids(source))) == made.has_ids


def test_token_ids_are_filled_on_the_right() -> None:
    prepared = kind().prepare([[5, 6, 7], [PADDING]])
    assert prepared["input_ids"].tolist() == [[5, 6, 7], [3, 3, 3]]
    assert prepared["source_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]  # its own padding id is a token
    assert kind(padding=None).prepare([[5, 6], [7]])["input_ids"].tolist() == [[5, 6], [7, 0]]


def test_token_ids_are_checked() -> None:
    assert kind().check(np.array([5, 49])) == [5, 49]
    for source, message in (
        ([], "the source has no tokens; expected at least one id"),
        ([5, 50], "the source has the id 50; expected ids from 0 to 49"),
        ([-1], "the source has the id -1; expected ids from 0 to 49"),
        ([5] * 7, "the source has 7 tokens, but the model allows 6; shorten it, or cut it off with --truncate"),
        (7, "the source is 7; expected a list of token ids"),
        (["a"], "expected a list of token ids"),
    ):
        with pytest.raises(InputError, match=message):
            kind().check(source)
    assert kind(limit=None).check([5] * 700) == [5] * 700
    assert kind().check([4, 5, 6, 7, 8, 9, END], truncate=True) == [4, 5, 6, 7, 8, END]
    for value in ("a", [True], [1.0], {"a": 1}, None):
        with pytest.raises(InputError, match="'input_ids' is no list of whole numbers; expected token ids"):
            kind().from_json(value)


def test_random_token_ids_hold_no_padding_and_typical_ones_end() -> None:
    rng = np.random.default_rng(0)
    assert set(kind().random(rng, 2000)) == set(range(SIZE)) - {PADDING}
    typical = kind().typical(rng, 2000)
    assert set(typical[:-1]) == set(range(SIZE)) - {PADDING, END, 0} and typical[-1] == END
    assert kind(generation={}).typical(rng, 5)[-1] != PADDING
    assert kind(generation={"eos_token_id": 80}).typical(rng, 5)[-1] != 80  # of the target's vocabulary only
