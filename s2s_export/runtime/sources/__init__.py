"""What a model reads, and how a batch of it becomes the inputs of the encoder: one file a kind of source.

manifest.json names the kind of a bundle's sources in `source.kind`, token ids where it names none. The file of a kind
holds `KIND`, a class that is made for a bundle and does what `SourceKind` says. It is found by listing this directory.
What decodes handles a source as a whole: only its kind looks inside.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from ...bundle import Bundle
from ...errors import BundleError
from ...schema import shown
from ..decoding.state import Floats, Ints
from ..text import Tokenizer

Source: TypeAlias = Any  # one source in the form that the `check` of its kind returns: token ids, an array of features
DEFAULT = "token_ids"  # of bundles made before manifest.json named the kind
MASK = "source_mask"


def is_prompt(kind: SourceKind) -> bool:
    """Whether sources of this kind are what the decoder itself goes on with (prompts.py)."""
    return bool(getattr(kind, "is_prompt", False))


class SourceKind(Protocol):
    """One kind of source, for one bundle. Safe to use from several threads.

    Letters: B sources, S source length: the positions in the encoder's states that the decoder attends to.

    name: as manifest.json has it.
    field: the field of a JSON line that holds a source, as `s2s generate` reads them.
    has_ids: whether a source is token ids. Then a tokenizer makes sources from text, and decoding rules may read them.
    """

    name: ClassVar[str]
    field: ClassVar[str]
    has_ids: ClassVar[bool]

    def __init__(self, bundle: Bundle) -> None:
        """Raises BundleError where the manifest lacks what the kind needs."""

    def from_json(self, value: Any) -> Source:
        """The source that `field` holds in a JSON line, to be given to `check`. Raises InputError."""
        ...

    def check(self, source: Any, *, truncate: bool = False, tokenizer: Tokenizer | None = None) -> Source:
        """What a caller gave, as a source. Raises InputError: not of this kind, empty, longer than the bundle's limit.

        truncate: cut a source that is too long instead. tokenizer: the bundle's, for sources that are text.
        """
        ...

    def length(self, source: Source) -> int:
        """S of one source: what batches are sorted by, what an engine has buckets for, the width of its alignment."""
        ...

    def prepare(self, batch: Sequence[Source]) -> dict[str, Any]:
        """The encoder's inputs by name, the batch's sources padded to the longest, as numpy arrays.

        Always with `source_mask` [B,S] int64: 1 where the decoder may attend to, 0 at padding. Backends learn B and S
        from it. All other inputs are [B,...], and zeros are added behind them where an engine's bucket is longer.
        """
        ...

    def ids(self, source: Source) -> Sequence[int]:
        """The token ids that decoding rules may read; none where `has_ids` is False."""
        ...

    def random(self, rng: np.random.Generator, length: int) -> Source:
        """A source of this length, to compare graphs and to measure ranges with: anything that the encoder takes."""
        ...

    def typical(self, rng: np.random.Generator, length: int) -> Source:
        """A random source of this length that has the form of a user's, to measure times with."""
        ...


def rows_of(sources: Sequence[Floats], width: int) -> tuple[Floats, Ints]:
    """[B,S,width] of sources [S,width] of unequal length, with zeros behind the shorter ones, and their lengths [B]."""
    lengths = np.array([len(source) for source in sources], dtype=np.int64)
    values = np.zeros((len(sources), int(lengths.max()), width), dtype=np.float32)
    for row, source in zip(values, sources, strict=True):
        row[: len(source)] = source
    return values, lengths


def mask_of(lengths: Ints) -> Ints:
    """[B,S] with 1 in the places of sources that are so long [B], and 0 behind them."""
    return (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)


def kinds() -> dict[str, type[SourceKind]]:
    """Every kind by its name."""
    files = [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]
    found: list[type[SourceKind]] = [importlib.import_module(f"{__name__}.{name}").KIND for name in files]
    return {kind.name: kind for kind in found}


def kind_of(bundle: Bundle) -> SourceKind:
    """The kind of a bundle's sources. Raises BundleError for one that this version does not know."""
    name, known = bundle.manifest["source"].get("kind", DEFAULT), kinds()
    if name not in known:
        raise BundleError(
            f"{bundle.path}: its model reads sources of the kind {shown(name)}, but this version knows "
            f"{', '.join(sorted(known))}; upgrade s2s-export"
        )
    return known[name](bundle)
