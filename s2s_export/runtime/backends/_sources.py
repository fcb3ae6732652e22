"""Sources as the encoder's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..decoding.state import Ints


def pad_sources(sources: Sequence[Sequence[int]], rules: Any) -> tuple[Ints, Ints]:
    """Ids [B,S] filled on the right with the manifest's padding id, and the mask [B,S] of what may be attended to.

    A padding id that a source itself holds is a token like any other, as for `generate()` with an encoder-decoder.
    """
    lengths = np.array([len(source) for source in sources])
    ids = np.full((len(sources), int(lengths.max())), rules["pad_token_id"] or 0, dtype=np.int64)
    for row, source in zip(ids, sources, strict=True):
        row[: len(source)] = source
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    return ids, mask.astype(np.int64)
