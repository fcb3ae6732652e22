"""The bundle: what `export` writes and everything else reads. Both halves of this package meet here and nowhere else.

A bundle is a folder:

    manifest.json         this file's subject
    encoder.onnx          source -> encoder states
    cross_kv_init.onnx    encoder states -> what is computed once per source
    decoder_step.onnx     one token per beam
    weights.bin           external data of the three graphs; equal tensors once
    tokenizer/            what turns text into ids and back (absent when the checkpoint had no tokenizer)
    engines/<target>/     what `s2s build` made

manifest.json, format version 1, holds

    format, format_version    "s2s-bundle" and the integer 1; a reader refuses a larger one
    family, model_type        which family exported it, and the checkpoint's own `model_type`
    precision                 what the weights are stored in: fp32, fp16 or bf16
    decoder                   "attention" (K/V caches) or "recurrent" (states that follow their beams)
    sizes                     integers by name: vocabulary_size, decoder_layers, heads, head_size, ...
    limits                    max_source_length, max_target_length in tokens; null where there is none
    source                    how ids become a batch: pad_token_id fills the shorter ones
    generation                the checkpoint's generation defaults by their Hugging Face names, nulls left out
    tokenizer                 what `text.load` needs, or null
    graphs                    for each graph its file, inputs and outputs: name, dtype, shape in dimension letters
    parity                    what export measured against PyTorch
    provenance                checkpoint hash and the versions that exported it
    files                     bytes and sha256 of every file but the manifest itself and engines/

It is written to a hidden sibling and exchanged for what was there (replacing.py): at any moment the old or the new one
is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import replacing
from .errors import BundleError, InvalidOption, S2SError
from .hashing import sha256, sha256_of

__all__ = ["FORMAT", "Bundle", "read", "sha256", "writing"]

FORMAT = "s2s-bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPHS = ("encoder", "cross_kv_init", "decoder_step")
REQUIRED = ("family", "precision", "decoder", "sizes", "limits", "source", "generation", "graphs", "files")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it is and what its manifest says."""

    path: Path
    manifest: Mapping[str, Any]
    verify: bool = False  # whether the files of an engine are compared with their sha256 before they are used

    def graph_path(self, name: str) -> Path:
        return inside(self.path, self.manifest["graphs"][name]["file"])

    @property
    def max_source_length(self) -> int | None:
        return self.manifest["limits"]["max_source_length"]  # type: ignore[no-any-return]

    @property
    def max_target_length(self) -> int | None:
        return self.manifest["limits"]["max_target_length"]  # type: ignore[no-any-return]

    @property
    def vocabulary_size(self) -> int:
        return int(self.manifest["sizes"]["vocabulary_size"])

    def hashes(self) -> dict[str, str]:
        """sha256 of every file by its name: what an engine is made from."""
        return {name: entry["sha256"] for name, entry in self.manifest["files"].items()}

    @property
    def n_bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["files"].values())


def inside(folder: Path, name: str) -> Path:
    """folder/name, refused where it leads out of the folder."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not _is_below(path, folder):
        raise BundleError(
            f"{folder}: the manifest names '{name}', which leads out of the bundle; don't use this bundle"
        )
    return path


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def output_of(name: str) -> str:
    """The output of a decoder step that becomes the input `name` of the next: self_key.3 -> self_key_out.3."""
    stem, _, layer = name.partition(".")
    return f"{stem}_out.{layer}" if layer else f"{stem}_out"


def read(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """Open a bundle; `verify` compares every file with its recorded sha256.

    Raises BundleError for a folder that is no bundle, is damaged, was changed or comes from a newer exporter.
    """
    folder = Path(path)
    file = folder / MANIFEST
    with suppress(OSError):  # a folder that can't be written may still be read
        replacing.put_back(folder)
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; expected a bundle made by `s2s export`")
    if not file.is_file():
        raise BundleError(f"{folder}: no {MANIFEST} in it; expected a bundle made by `s2s export`")
    try:
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: not readable as JSON ({error}); export the bundle again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f'{file}: not the manifest of a bundle; expected "format": "{FORMAT}"')
    version = manifest.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise BundleError(
            f"{folder}: bundle format {version}, but this version reads up to {FORMAT_VERSION}; upgrade s2s-export"
        )
    if missing := [key for key in REQUIRED if key not in manifest]:
        raise BundleError(f"{file}: lacks {', '.join(missing)}; export the bundle again")
    for graph in GRAPHS:
        if graph not in manifest["graphs"]:
            raise BundleError(f"{file}: lacks the graph '{graph}'; export the bundle again")
    bundle = Bundle(folder, manifest, verify)
    _check_files(bundle, verify)
    return bundle


def _check_files(bundle: Bundle, verify: bool) -> None:
    files: Mapping[str, Any] = bundle.manifest["files"]
    named = [graph["file"] for graph in bundle.manifest["graphs"].values()]
    for name in [*files, *named]:
        path = inside(bundle.path, name)
        if name not in files:
            raise BundleError(f"{bundle.path}: {name} has no recorded hash; export the bundle again")
        if not path.is_file():
            raise BundleError(f"{bundle.path}: {name} is missing; copy the bundle again or export it again")
        size = path.stat().st_size
        if size != files[name]["bytes"]:
            raise BundleError(
                f"{bundle.path}: {name} has {size} bytes, expected {files[name]['bytes']}; "
                "copy the bundle again or export it again"
            )
    if verify and (name := first_changed(bundle.path, files)) is not None:
        raise BundleError(
            f"{bundle.path}: {name} was changed (sha256 mismatch); copy the bundle again or export it again"
        )


def first_changed(folder: Path, files: Mapping[str, Any]) -> str | None:
    """The first of the files recorded in a manifest or an engine.json whose sha256 is another one."""
    names = list(files)
    try:
        found = sha256_of([inside(folder, name) for name in names])
    except OSError as error:
        raise BundleError(f"{error.filename or folder}: can't be read ({error.strerror or error})") from error
    return next((name for name, digest in zip(names, found, strict=True) if digest != files[name]["sha256"]), None)


@contextmanager
def writing(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """A temporary sibling folder that becomes `path` when the block ends well, and vanishes when it does not.

    An older bundle at `path` is replaced in one move when `force` is set, and survives a failure.
    """
    final = Path(path)
    try:
        replacing.put_back(final)
        check_destination(final, force=force)
        with replacing.folder(final, replace=force) as work:
            yield work
            check_destination(final, force=force)  # again: an export takes minutes
    except replacing.Appeared as error:
        raise InvalidOption(f"{final}: {error}; choose another name, or pass --force to replace it") from None
    except OSError as error:
        raise _disk_error(error, final) from error


def check_destination(path: Path, *, force: bool) -> None:
    """Refuse what must not be overwritten, before any work is done."""
    if not os.path.lexists(replacing.resolved(path)):
        return
    if not force:
        raise InvalidOption(f"{path}: exists already; expected a new folder; pass --force to replace it")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise InvalidOption(f"{path}: --force replaces a bundle, but this folder holds something else; choose another")
    if not path.is_dir():
        raise InvalidOption(f"{path}: is a file; expected a folder's name; choose another")


def _disk_error(error: OSError, path: Path) -> S2SError:
    return BundleError(f"{path}: can't be written ({error.strerror or error}); nothing was left behind")


def describe_files(folder: Path, progress: Callable[[str], None] | None = None) -> dict[str, dict[str, Any]]:
    """bytes and sha256 of every file below `folder`, by its name inside."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(replacing.NEW)):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST or name.startswith("engines/"):
            continue
        if progress:
            progress(name)
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return files


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json, whole or not at all."""
    replacing.write_text(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
