"""Sound as a kind of source."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_whisper import BANDS, POSITIONS, SAMPLES, clip

from s2s_export.errors import InputError
from s2s_export.runtime import sources


def test_a_batch_is_windows_of_one_length(pairs: Any) -> None:
    kind = pairs().session.kind
    rng = np.random.default_rng(0)
    batch = [kind.check(source) for source in (clip(1, 0.3), kind.random(rng, 4), kind.typical(rng, 9))]
    assert [kind.length(source) for source in batch] == [POSITIONS] * 3
    prepared = kind.prepare(batch)
    assert prepared["input_features"].shape == (3, BANDS, 2 * POSITIONS)
    assert prepared[sources.MASK].shape == (3, POSITIONS) and prepared[sources.MASK].all()
    features = prepared["input_features"][0]
    assert (kind.prepare([kind.check(features)])["input_features"][0] == features).all()
    assert not kind.has_ids and not kind.ids(batch[0])


def test_what_is_longer_than_a_window_is_cut_only_when_asked(pairs: Any) -> None:
    kind, sound = pairs().session.kind, clip(1, 2.0)
    assert len(kind.check(sound, truncate=True)) == SAMPLES
    with pytest.raises(InputError, match=r"has 2\.0 s, but a window of the model has 0\.8 s"):
        kind.prepare([kind.check(sound)])
    with pytest.raises(InputError, match="hold NaN"):
        kind.check(np.full((BANDS, 2 * POSITIONS), np.nan, np.float32))
