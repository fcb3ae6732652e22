"""From a bundle to an engine for a target, stored inside the bundle as engines/<target>/.

engine.json (engines.py explains it) has a key: the hash of graphs, recipe and library version. An engine whose key is
unchanged is not built again. A build that fails or is interrupted leaves the older engine as it was. What `prepare`
left in the bundle (prepared.py) is compiled; where it can't be used, the bundle's own graphs are, which is said.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import bundle, recipes, replacing
from ..bundle import Bundle
from ..engines import FORMAT_VERSION, RECORD, read
from ..errors import BuildError, EngineError, InvalidOption, MissingExtra
from ..hashing import sha256
from ..recipes import Recipe
from ..version import __version__
from . import builders, prepared
from .changes import Changes
from .prepared import Prepared

NO_CHANGES = Changes()


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
    changes: Changes = NO_CHANGES,
    progress: Callable[[str], None] | None = None,
) -> BuildReport:
    """Build the engine of a target: a name of engines/*.toml, or a recipe's path.

    force: build although an engine with the same key is there. changes: to the recipe. progress: called with each stage
    as it begins.
    Raises UnknownOption, InvalidOption, MissingExtra, BundleError, BuildError.
    """
    is_prepared = prepared.is_there(Path(bundle_path), target)
    recipe = None if is_prepared and target not in recipes.names() else _changed(target, changes)
    opened = bundle.read(bundle_path, kinds=bundle.KINDS)
    ready, why_not = _ready(opened, target, recipe, changes) if is_prepared else (None, "")
    if ready is not None:
        recipe = ready.recipe
    if recipe is None:
        raise BuildError(why_not)
    builder = builders.find(recipe.flavour)
    _check_kind(opened, recipe, builder)
    _check_ranges(opened, recipe)
    extra = {"prepared": ready} if ready is not None else {}
    try:
        builder.check(opened, recipe, **extra)
    except (MissingExtra, BuildError) as error:
        if not why_not:
            raise
        raise BuildError(f"{why_not} ({error})") from error
    key = _key(opened, recipe, builder.version(recipe), ready)
    final = opened.path / "engines" / recipe.name
    with suppress(OSError):  # if this fails, so does writing, whose error is reported below
        replacing.put_back(final)
    if not force and (found := _cached(final, key)) is not None:
        return BuildReport(final, found, was_cached=True)
    try:
        with replacing.folder(final, replace=True) as work:
            told = progress or (lambda stage: None)
            if why_not:
                told(f"{why_not}; building from the bundle's own graphs")
            engine = _make(opened, recipe, builder, key, work, told, extra)
    except OSError as error:
        raise BuildError(
            f"{final}: can't be written ({error.strerror or error}); the older engine is untouched"
        ) from error
    return BuildReport(final, engine, was_cached=False)


def prepare(
    bundle_path: str | os.PathLike[str],
    target: str,
    *,
    changes: Changes = NO_CHANGES,
    progress: Callable[[str], None] | None = None,
) -> Prepared:
    """All of a build that the target's own machine could not do: prepared/<target>/ of the bundle, replaced as a whole.

    Raises UnknownOption, InvalidOption, MissingExtra, BundleError, BuildError.
    """
    recipe = _changed(target, changes)
    builder = builders.find(recipe.flavour)
    if not hasattr(builder, "prepare"):
        raise InvalidOption(
            f"target '{recipe.name}': needs ONNX Runtime where it runs as well, so nothing is to be prepared; run: "
            f"s2s build {bundle_path} --target {recipe.name}"
        )
    opened = bundle.read(bundle_path, kinds=getattr(builder, "KINDS", (bundle.ENCODER_DECODER,)))
    _check_ranges(opened, recipe)
    builder.check_prepare(opened, recipe)
    final = prepared.folder_of(opened.path, recipe.name)
    try:
        with replacing.folder(final, replace=True) as work:
            builder.prepare(opened, recipe, work, progress or (lambda stage: None))
    except OSError as error:
        raise BuildError(
            f"{final}: can't be written ({error.strerror or error}); what was there is untouched"
        ) from error
    return prepared.read(opened, recipe.name)


def _changed(target: str, changes: Changes) -> Recipe:
    recipe = recipes.load(target)
    return changes.apply(recipe, getattr(builders.find(recipe.flavour), "RANGES", {})) if changes else recipe


def _ready(opened: Bundle, target: str, recipe: Recipe | None, changes: Changes) -> tuple[Prepared | None, str]:
    """What was prepared for a target, if it can be used; else why not."""
    try:
        found = prepared.read(opened, target)
    except BuildError as error:
        return None, str(error)
    if changes and recipe is not None and prepared.without_samples(recipe) != found.recipe:
        return None, (
            f"{found.folder}: was prepared with other limits than are given now; leave them out, or prepare with them: "
            f"s2s build {opened.path.name} --prepare {target}"
        )
    return found, ""


def _make(
    opened: Bundle,
    recipe: Recipe,
    builder: Any,
    key: str,
    work: Path,
    progress: Callable[[str], None],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The engine's files in `work`; returns what engine.json says."""
    begin = time.perf_counter()
    facts = builder.build(opened, recipe, work, progress, **extra)
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
    _write(work, engine)
    if extra:
        progress("run the samples")
        tried = builder.try_out(opened, recipe, work, **extra)
        engine |= {**tried, "summary": [*engine["summary"], *tried["summary"]]}
        _write(work, engine)
    return engine


def _write(folder: Path, engine: Mapping[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(engine, indent=2, default=list) + "\n", encoding="utf-8")


def _check_kind(opened: Bundle, recipe: Recipe, builder: Any) -> None:
    known = getattr(builder, "KINDS", (bundle.ENCODER_DECODER,))
    if opened.kind not in known:
        raise BuildError(
            f"{opened.path}: is a bundle of the kind '{opened.kind}', but the flavour '{recipe.flavour}' of target "
            f"'{recipe.name}' is for {' and '.join(known)}s; build cpu-fp32 or cpu-int8"
        )


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


def _key(opened: Bundle, recipe: Recipe, library: str, ready: Prepared | None = None) -> str:
    graphs = {name: entry["sha256"] for name, entry in opened.manifest["files"].items()}
    parts = [FORMAT_VERSION, __version__, graphs, asdict(recipe), library]
    value = json.dumps([*parts, ready.key()] if ready else parts, sort_keys=True, default=list)
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
