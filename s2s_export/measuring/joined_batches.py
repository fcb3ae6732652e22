"""Whether sources can join batches with each engine of a bundle, for `s2s doctor`."""

from __future__ import annotations

import os

from ..bundle import read
from ..engines import PORTABLE, engines
from ..errors import S2SError
from ..runtime.joining import why_whole_batches
from ..runtime.session import load


def of_bundle(path: str | os.PathLike[str]) -> dict[str, str | None]:
    """By target, the portable graphs first: None where sources join a batch that is being decoded, else why they don't,
    in one sentence. Each engine is opened, by the backend that runs it here. Raises BundleError."""
    opened = read(path, verify=False)
    return {target: _why_whole(path, target) for target in (PORTABLE, *engines(opened))}


def _why_whole(path: str | os.PathLike[str], target: str) -> str | None:
    try:
        return why_whole_batches(load(path, target=target, threads=1, verify=False))
    except S2SError as error:
        return f"it can't be opened here: {error}"
