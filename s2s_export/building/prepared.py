"""What `s2s build --prepare` leaves in a bundle: all of a build that needs onnx, ONNX Runtime or torch, done already.

A Jetson with JetPack 6 has Python 3.10, for which no ONNX Runtime can load the portable graphs. So another machine
lowers and measures them, and the device only compiles them with its TensorRT. The folder prepared/<target>/ of a bundle
holds

    <graph>.onnx, ...   the lowered graphs, with their weights as external data
    samples.npz         sources to try the engine on, and the tokens that the portable graphs gave for them
    prepared.json       what they are

It lies beside engines/ and not in it, so that nothing takes it for an engine. All of it is data. prepared.json, format
version 1, holds

    format_version    the integer 1; a reader refuses any other
    target            text: the target's name, which is the folder's too
    prepared_with     text: the version of s2s_export, which the device must have too
    made_from         text by text: sha256 of every file of the bundle when it was prepared, by its name
    recipe            the target's recipe, key by key (recipes.py), changes from the command line included
    files             bytes and sha256 of every file of the folder but prepared.json, by its name
    graphs            encoder, cross_kv_init and decoder_step: each its file, inputs and outputs as in engine.json, and
                      operators, how many nodes of each type it has
    lowering, agreement, summary    as in engine.json

The recipe on the device is the one that was prepared, so a target that was changed on the command line keeps its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import bundle as bundles
from .. import recipes
from ..bundle import FILES, GRAPH, GRAPHS, Bundle
from ..engines import native_code
from ..errors import BuildError, S2SError
from ..recipes import Recipe
from ..schema import Check, Unreadable, all_of, anything, integer, list_of, mapping_of, read_json, record, text
from ..version import __version__

FOLDER = "prepared"
RECORD = "prepared.json"
SAMPLES = "samples.npz"
FORMAT_VERSION = 1
_GRAPH: Check = all_of(GRAPH, record({"operators": mapping_of(integer(0))}))
_PREPARED: Check = record(
    {
        "format_version": integer(1),
        "target": text,
        "prepared_with": text,
        "made_from": mapping_of(text),
        "recipe": mapping_of(anything),
        "files": FILES,
        "graphs": record(dict.fromkeys(GRAPHS, _GRAPH)),
        "lowering": mapping_of(anything),
        "agreement": mapping_of(anything),
        "summary": list_of(text),
    }
)


@dataclass(frozen=True)
class Prepared:
    """A folder that was read and checked. record: prepared.json."""

    folder: Path
    recipe: Recipe
    record: Mapping[str, Any]

    def graph_path(self, name: str) -> Path:
        return bundles.inside(self.folder, self.record["graphs"][name]["file"])

    def key(self) -> list[str]:
        """What an engine that is compiled from it depends on."""
        return sorted(entry["sha256"] for entry in self.record["files"].values())


def folder_of(bundle_path: Path, target: str) -> Path:
    return bundle_path / FOLDER / target


def is_there(bundle_path: Path, target: str) -> bool:
    """Whether a target was prepared, well or not. False for what is no name of one."""
    return "/" not in target and not target.startswith(".") and bundles.is_folder(folder_of(bundle_path, target))


def read(bundle: Bundle, target: str) -> Prepared:
    """What was prepared for a target.

    Raises BuildError, with the command that prepares it again, where it is damaged, or was made from another bundle or
    by another version.
    """
    folder = folder_of(bundle.path, target)
    again = f"run, where it was prepared: s2s build {bundle.path.name} --prepare {target}"
    try:
        found = read_json(folder / RECORD)
    except Unreadable as error:
        raise BuildError(f"{folder / RECORD}: not readable as JSON ({error}); {again}") from error
    if problem := _PREPARED(found, ""):
        raise BuildError(f"{folder / RECORD}: {problem}; {again}")
    if found["format_version"] != FORMAT_VERSION or found["prepared_with"] != __version__:
        raise BuildError(
            f"{folder}: was prepared by s2s_export {found['prepared_with']}, and this is {__version__}; expected the "
            f"same version on both machines; {again}"
        )
    if found["made_from"] != bundle.hashes():
        raise BuildError(f"{folder}: was prepared from another version of this bundle; {again}")
    _check_files(folder, found["files"], again)
    if (name := native_code(folder, found["files"])) is not None:
        raise BuildError(f"{folder}: brings {name}, a library, which is never loaded from a bundle; {again}")
    for name, graph in found["graphs"].items():
        if graph["file"] not in found["files"]:
            raise BuildError(f"{folder / RECORD}: graphs.{name}.file is not one of the names in files; {again}")
    if SAMPLES not in found["files"]:
        raise BuildError(f"{folder / RECORD}: files lacks {SAMPLES}; {again}")
    try:
        recipe = recipes.of(found["recipe"], target, folder / RECORD)
    except S2SError as error:
        raise BuildError(f"{error}; {again}") from error
    return Prepared(folder, recipe, found)


def _check_files(folder: Path, files: Mapping[str, Any], again: str) -> None:
    for name, entry in files.items():
        path = bundles.inside(folder, name)
        if not bundles.is_file(path) or path.stat().st_size != entry["bytes"]:
            raise BuildError(f"{path}: is missing or has another size than when it was prepared; {again}")
    if (changed := bundles.first_changed(folder, files)) is not None:
        raise BuildError(f"{folder / changed}: is not what was prepared, the file is damaged; {again}")


def write_record(
    folder: Path, bundle: Bundle, recipe: Recipe, graphs: Mapping[str, Any], facts: Mapping[str, Any]
) -> Prepared:
    """Writes prepared.json beside the files that are in `folder` already. facts: lowering, agreement, summary."""
    portable = without_samples(recipe)
    found = {
        "format_version": FORMAT_VERSION,
        "target": recipe.name,
        "prepared_with": __version__,
        "made_from": bundle.hashes(),
        "recipe": {key: value for key, value in asdict(portable).items() if key != "name"},
        "files": bundles.describe_files(folder),
        "graphs": dict(graphs),
        **facts,
    }
    (folder / RECORD).write_text(json.dumps(found, indent=2, default=list) + "\n", encoding="utf-8")
    return Prepared(folder, portable, json.loads((folder / RECORD).read_text(encoding="utf-8")))


def without_samples(recipe: Recipe) -> Recipe:
    """The recipe without the path of its samples, which are in the folder now."""
    return replace(recipe, options={name: value for name, value in recipe.options.items() if name != "samples"})
