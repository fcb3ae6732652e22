"""From a bundle to an engine for a target, stored inside the bundle as engines/<target>/.

engine.json (engines.py explains it) has a key: the hash of graphs, recipe and library version. An engine whose key is
unchanged is not built again. A build that fails or is interrupted leaves the older engine as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import bundle, recipes, replacing
from ..bundle import Bundle
from ..engines import FORMAT_VERSION, RECORD, read
from ..errors import BuildError, EngineError, InvalidOption
from ..hashing import sha256
from ..recipes import Recipe
from ..version import __version__
from . import builders


@dataclass(frozen=True)
class BuildReport:
    """Where the engine is, what engine.json says of it, and whether it was there already."""

    path: Path
    engine: dict[str, Any]
    was_cached: bool


def build(
    bundle_path: str | os.PathLike[str],
    target: str,
    *,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> BuildReport:
    """Build the engine of a target: a name of engines/*.toml, or a recipe's path.

    force: build although an engine with the same key is there. progress: called with each stage as it begins.
    Raises UnknownOption, InvalidOption, MissingExtra, BundleError, BuildError.
    """
    recipe = recipes.load(target)
    builder = builders.find(recipe.flavour)
    opened = bundle.read(bundle_path)
    _check_ranges(opened, recipe)
    builder.check(opened, recipe)
    key = _key(opened, recipe, builder.version(recipe))
    final = opened.path / "engines" / recipe.name
    with suppress(OSError):  # if this fails, so does writing, whose error is reported below
        replacing.put_back(final)
    if not force and (found := _cached(final, key)) is not None:
        return BuildReport(final, found, was_cached=True)
    try:
        with replacing.folder(final, replace=True) as work:
            engine = _make(opened, recipe, builder, key, work, progress or (lambda stage: None))
    except OSError as error:
        raise BuildError(
            f"{final}: can't be written ({error.strerror or error}); the older engine is untouched"
        ) from error
    return BuildReport(final, engine, was_cached=False)


def _make(
    opened: Bundle, recipe: Recipe, builder: Any, key: str, work: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The engine's files in `work`; returns what engine.json says."""
    begin = time.perf_counter()
    facts = builder.build(opened, recipe, work, progress)
    engine = {
        "format_version": FORMAT_VERSION,
        "target": recipe.name,
        "flavour": recipe.flavour,
        "precision": recipe.precision,
        "key": key,
        "built_with": {"s2s_export": __version__, "library": builder.version(recipe)},
        "seconds": round(time.perf_counter() - begin, 3),
        "recipe": asdict(recipe),
        "files": bundle.describe_files(work),
        **facts,
    }
    engine["bytes"] = sum(entry["bytes"] for entry in engine["files"].values())
    (work / RECORD).write_text(json.dumps(engine, indent=2, default=list) + "\n", encoding="utf-8")
    return engine


def _check_ranges(opened: Bundle, recipe: Recipe) -> None:
    """Refuse a range that the model can't serve at all; one that goes too far is cut by the builder, which says so."""
    limits = {"S": opened.max_source_length, "T": opened.max_target_length}
    wrong = [
        f"ranges.{letter} begins at {recipe.ranges[letter].min}, but the bundle's limit is {limit}"
        for letter, limit in limits.items()
        if limit is not None and letter in recipe.ranges and recipe.ranges[letter].min > limit
    ]
    if wrong:
        raise InvalidOption(f"target '{recipe.name}': {'; '.join(wrong)}; lower the range in the recipe")


def _key(opened: Bundle, recipe: Recipe, library: str) -> str:
    graphs = {name: entry["sha256"] for name, entry in opened.manifest["files"].items()}
    value = json.dumps([FORMAT_VERSION, __version__, graphs, asdict(recipe), library], sort_keys=True, default=list)
    return hashlib.sha256(value.encode()).hexdigest()


def _cached(folder: Path, key: str) -> dict[str, Any] | None:
    try:
        engine = read(folder)
    except EngineError:
        return None
    if engine.get("key") != key:
        return None
    for name, entry in engine["files"].items():
        path = folder / name
        if not bundle.is_file(path) or path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
            return None
    return engine
