"""The bundle: what `export` writes and everything else reads. Both halves of this package meet here and nowhere else.

A bundle is a folder:

    manifest.json         this file's subject
    encoder.onnx          source -> encoder states
    cross_kv_init.onnx    encoder states -> what is computed once per source
    decoder_step.onnx     one token per beam
    prefill.onnx          the tokens of a decoder prompt at once -> their keys and values, a slot of the caches each;
                          bundles of some models, and older ones, have none and are fed prompts token by token
                          (of a bundle of the kind "encoder" there is encoder.onnx alone)
    weights.bin           external data of the graphs; equal tensors are stored once
    tokenizer/            what turns text into ids and back (absent when the checkpoint had no tokenizer)
    engines/<target>/     what `s2s build` made
    prepared/<target>/    what `s2s build --prepare` made, to be compiled elsewhere: data, and no engine
                          (building/prepared.py)

manifest.json, format version 1, holds (their types are below, in `_MANIFEST`)

    format, format_version    "s2s-bundle" and the integer 1; a reader refuses a larger one
    kind                      "encoder" for a model that encodes and generates nothing, which `s2s encode` runs and
                              every other command refuses; "decoder" for one whose sources are prompts that it goes on
                              with; left out for an encoder-decoder
    family, model_type        which family exported it, and the checkpoint's own `model_type`
    precision                 what the weights are stored in: fp32, fp16 or bf16
    decoder                   "attention" (K/V caches) or "recurrent" (states that follow their beams)
    sizes                     integers by name: vocabulary_size, decoder_layers, heads, head_size, ...
    limits                    max_source_length, max_target_length in tokens; null where there is none
    source                    what the model reads: its kind, by the name of a file of runtime/sources/ ("token_ids"
                              where it is left out), pad_token_id, which fills shorter lists of ids, or null, and what
                              else the kind needs: audio_features n_bands and n_frames; waveform convolutions, and
                              is_normalized where clips are;
                              filter_banks n_bands, convolutions, normalize_means and normalize_vars;
                              prompts chat_template, a Jinja program, and template_values, special tokens by name, where
                              the checkpoint had them (runtime/templates.py);
                              pixels n_channels, height, width, n_positions and preprocessing, null where the
                              checkpoint had none (runtime/pictures/steps.py);
                              features n_features and min_length;
                              flattened_patches patch_size and patching, null where the checkpoint had none
                              (runtime/pictures/patches.py)
    speech                    of a speech model: the ids and numbers that its prompts and times need
                              (runtime/speech/tokens.py has the list); left out for others
    prompt_replaces_start     true where `decoder_input_ids` stand in place of the start token and not behind it, as
                              transformers has it for Donut; left out for others
    generation                the checkpoint's generation defaults by their Hugging Face names, nulls left out
    tokenizer                 what `text.load` needs, or null
    graphs                    for each graph its file, inputs and outputs: name, dtype, shape in dimension letters
    parity                    what export measured against PyTorch
    provenance                checkpoint hash and the versions that exported it
    files                     bytes and sha256 of every file but the manifest itself, engines/ and prepared/

A bundle of the kind "encoder" has no decoder and no generation, and of the limits only max_source_length. It has

    head                      what becomes of the encoder's states: its task, "embedding", "sequence_classification" or
                              "token_classification"; of an embedding pooling ("mean", "cls", "max", "mean_sqrt_len"
                              or "last"), normalize, prompts and default_prompt (text that is put before a source, by
                              name), and dense, the activation and width of each layer after the pooling, whose weights
                              are in dense.npz; of the others labels in the order of the logits, and their activation,
                              "softmax", "sigmoid" or "none"
    source                    token_ids, or typed_token_ids where the encoder reads the types of tokens; pair, where the
                              tokenizer has a form for two texts: the ids before, between and behind them, and the
                              type of the second's (runtime/encoding/pairs.py)

It is written to a hidden sibling and exchanged for what was there (replacing.py): at any moment the old or the new one
is whole.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import replacing
from .errors import BundleError, InvalidOption, S2SError
from .hashing import sha256, sha256_of
from .schema import (
    Check,
    Unreadable,
    all_of,
    anything,
    boolean,
    either,
    file_name,
    integer,
    list_of,
    mapping_of,
    null_or,
    number,
    one_of,
    read_json,
    record,
    shown,
    text,
)

FORMAT = "s2s-bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPHS = ("encoder", "cross_kv_init", "decoder_step")
PREFILL = "prefill"  # a graph that a bundle may have besides
KINDS = ENCODER_DECODER, ENCODER, DECODER = "encoder-decoder", "encoder", "decoder"  # of bundles
GENERATING = (ENCODER_DECODER, DECODER)
POOLINGS = ("mean", "cls", "max", "mean_sqrt_len", "last")
ACTIVATIONS = ("softmax", "sigmoid", "none")
# What stands for a size in a shape: sources, beams, source length, positions, slots, candidates, probes, samples; P is
# tokens of a prompt in the graph prefill, and places of sources in an engine's decoder step; F is a length that follows
# from the source's, as behind a convolution with strides, of a module of one's own.
LETTERS = ("B", "K", "S", "C", "N", "M", "Q", "W", "P", "F")
DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "bool")

# The types of what is read below and by the runtime, which may rely on them.
_SIZE = either(integer(0), one_of(*LETTERS), f"a size or one of the letters {', '.join(LETTERS)}")
_VALUES = list_of(record({"name": text, "dtype": one_of(*DTYPES), "shape": list_of(_SIZE)}))
GRAPH: Check = record({"file": file_name, "inputs": _VALUES, "outputs": _VALUES})
FILES: Check = mapping_of(record({"bytes": integer(0), "sha256": text}), key=file_name)
_LIMIT = null_or(integer(1))
_IDS = list_of(integer(0))
SPEECH: Check = record(
    {
        **dict.fromkeys(("startoftranscript", "endoftext", "notimestamps"), integer(0)),
        "lang_to_id": mapping_of(integer(0)),
        "task_to_id": mapping_of(integer(0)),
        "is_multilingual": boolean,
        "alignment_heads": list_of(list_of(integer(0))),
        "median_filter_width": integer(1),
    },
    optional={
        **dict.fromkeys(("startofprev", "nospeech", "max_initial_timestamp_index"), null_or(integer(0))),
        "forced_decoder_ids": null_or(list_of(list_of(null_or(integer(0))))),
        "return_timestamps": boolean,
    },
)
_STEP_SIZES = dict.fromkeys(("height", "width", "edge"), integer(1))
PREPROCESSING: Check = record(
    {
        "steps": list_of(record({"name": text}, optional={**_STEP_SIZES, "resample": integer(0)})),
        "factor": null_or(number),
        "mean": null_or(list_of(number)),
        "std": null_or(list_of(number)),
    }
)
PATCHING: Check = record(
    {
        **dict.fromkeys(("max_patches", "patch_height", "patch_width"), integer(1)),
        "normalize": boolean,
        "has_header": boolean,
    }
)
_PARITY = record({"graph": text, "output": text, "max_error": number, "relative": number})
_MANIFEST: Check = record(
    {
        "family": text,
        "model_type": text,
        "precision": text,
        "decoder": one_of("attention", "recurrent"),
        "sizes": all_of(
            mapping_of(integer(0)),
            record({"vocabulary_size": integer(1)}, optional={"source_vocabulary_size": integer(1)}),
        ),
        "limits": record({"max_source_length": _LIMIT, "max_target_length": _LIMIT}),
        "source": record(
            {"pad_token_id": null_or(integer(0))},
            optional={
                "kind": text,
                "n_bands": integer(1),
                "n_frames": integer(2),
                "convolutions": list_of(list_of(integer(1))),
                "normalize_means": boolean,
                "normalize_vars": boolean,
                "is_normalized": boolean,
                **dict.fromkeys(("n_channels", "height", "width", "n_positions"), integer(1)),
                "preprocessing": null_or(PREPROCESSING),
                **dict.fromkeys(("n_features", "min_length"), integer(1)),
                "patch_size": integer(1),
                "patching": null_or(PATCHING),
                "chat_template": text,
                "template_values": mapping_of(text),
            },
        ),
        "generation": mapping_of(anything),
        "graphs": record(dict.fromkeys(GRAPHS, GRAPH), optional={PREFILL: GRAPH}),
        "files": FILES,
    },
    optional={
        "tokenizer": null_or(mapping_of(anything)),  # its keys are checked by runtime/text/entry.py
        "provenance": mapping_of(anything),
        "parity": record({}, {"outputs": list_of(_PARITY)}),
        "speech": SPEECH,
        "prompt_replaces_start": boolean,
        "kind": one_of(*GENERATING),
    },
)
DENSE = (
    "dense.npz"  # of an encoder whose embedding goes through layers after its pooling: weight_0, bias_0, weight_1, ...
)
DENSE_ACTIVATIONS = ("identity", "tanh", "relu", "gelu", "sigmoid")
PAIR: Check = record({**dict.fromkeys(("prefix", "middle", "suffix"), list_of(integer(0))), "second_type": integer(0)})
_LABELS: Check = record({"labels": list_of(text), "activation": one_of(*ACTIVATIONS)})
_OF_TASK: dict[str, Check] = {
    "embedding": record(
        {"pooling": one_of(*POOLINGS), "normalize": boolean},
        optional={
            "prompts": mapping_of(text),
            "default_prompt": null_or(text),
            "dense": list_of(record({"activation": one_of(*DENSE_ACTIVATIONS), "width": integer(1)})),
        },
    ),
    "sequence_classification": _LABELS,
    "token_classification": _LABELS,
}


def _head(value: Any, where: str) -> str | None:
    return record({"task": one_of(*_OF_TASK)})(value, where) or _OF_TASK[value["task"]](value, where)


_ENCODER_MANIFEST: Check = record(
    {
        "kind": one_of(ENCODER),
        "family": text,
        "model_type": text,
        "precision": text,
        "sizes": all_of(mapping_of(integer(0)), record({"source_vocabulary_size": integer(1), "width": integer(1)})),
        "limits": record({"max_source_length": _LIMIT}),
        "source": record({"pad_token_id": null_or(integer(0))}, optional={"kind": text, "pair": PAIR}),
        "head": _head,
        "graphs": record({"encoder": GRAPH}),
        "files": FILES,
    },
    optional={
        "tokenizer": null_or(mapping_of(anything)),
        "provenance": mapping_of(anything),
        "parity": record({}, {"outputs": list_of(_PARITY)}),
    },
)
_MANIFESTS: dict[str, Check] = {ENCODER_DECODER: _MANIFEST, ENCODER: _ENCODER_MANIFEST, DECODER: _MANIFEST}
_KNOWN_KIND: Check = record({"kind": one_of(*_MANIFESTS)})
# What is said where a bundle of a kind is not what was expected.
_OTHER_KIND = {
    ENCODER: "holds an encoder alone (model type '{model_type}'), which generates no text; expected an "
    "encoder-decoder; run `s2s encode`, or open it with s2s_export.load_encoder",
    ENCODER_DECODER: "holds an encoder-decoder (model type '{model_type}'); expected an encoder alone, such as BERT; "
    "run `s2s generate`, or open it with s2s_export.load",
    DECODER: "holds a decoder alone (model type '{model_type}'), which goes on with a prompt; run `s2s generate`, or "
    "open it with s2s_export.load",
}


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it is and what its manifest says."""

    path: Path
    manifest: Mapping[str, Any]
    verify: bool = False  # whether the files of an engine are compared with their sha256 before they are used

    def graph_path(self, name: str) -> Path:
        return inside(self.path, self.manifest["graphs"][name]["file"])

    @property
    def kind(self) -> str:
        return str(self.manifest.get("kind", ENCODER_DECODER))

    @property
    def max_source_length(self) -> int | None:
        return self.manifest["limits"]["max_source_length"]  # type: ignore[no-any-return]

    @property
    def max_target_length(self) -> int | None:
        return self.manifest["limits"].get("max_target_length")  # type: ignore[no-any-return]

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
    """folder/name. Raises BundleError if that is outside the folder."""
    path = folder / name
    try:
        is_inside = not Path(name).is_absolute() and ".." not in Path(name).parts and _is_below(path, folder)
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a name too long
        raise BundleError(
            f"{folder}: the manifest names {shown(name)}, which can't be a file's name ({error})"
        ) from error
    if not is_inside:
        raise BundleError(
            f"{folder}: the manifest names {shown(name)}, which leads out of the bundle; don't use this bundle"
        )
    return path


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


@dataclass(frozen=True)
class Tensor:
    """An input or output as a graph itself has it. shape: sizes and letters; None where the graph does not say."""

    dtype: str
    shape: Sequence[int | str | None] | None = None


def difference(described: Mapping[str, Any], inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> str | None:
    """How a graph differs from its description in manifest.json or engine.json, or None.

    inputs, outputs: the graph's own, by name. A backend asks when it opens a graph: an input that the description
    leaves out would not be bound, and the graph would read memory that is not its own.
    """
    for what, own in (("input", inputs), ("output", outputs)):
        listed = {entry["name"]: entry for entry in described[f"{what}s"]}
        if missing := [name for name in own if name not in listed]:
            return f"the graph has the {what} {shown(missing[0])}, which its description leaves out"
        if unknown := [name for name in listed if name not in own]:
            return f"its description has the {what} {shown(unknown[0])}, which the graph does not have"
        for name, entry in listed.items():
            tensor = own[name]
            if tensor.dtype != entry["dtype"]:
                return f"the graph's {what} {shown(name)} is {tensor.dtype}, its description says {entry['dtype']}"
            if not _is_shape_of(tensor, entry["shape"]):
                found, expected = (", ".join(map(str, shape or ())) for shape in (tensor.shape, entry["shape"]))
                return f"the graph's {what} {shown(name)} has shape [{found}], its description says [{expected}]"
    return None


def _is_shape_of(tensor: Tensor, described: Sequence[int | str]) -> bool:
    """Sizes that the graph does not know, or for which it has a name of its own, match any size."""
    if tensor.shape is None:
        return True
    known = [(own, size) for own, size in zip(tensor.shape, described, strict=False) if _is_known(own)]
    return len(tensor.shape) == len(described) and all(own == size for own, size in known)


def _is_known(size: int | str | None) -> bool:
    return isinstance(size, int) or size in LETTERS


def output_of(name: str) -> str:
    """The output of a decoder step that becomes the input `name` of the next: self_key.3 -> self_key_out.3."""
    stem, _, layer = name.partition(".")
    return f"{stem}_out.{layer}" if layer else f"{stem}_out"


def is_file(path: Path) -> bool:
    """Whether there is a regular file of this name; False for a name that no file can have."""
    return _mode_is(path, stat.S_ISREG)


def is_folder(path: Path) -> bool:
    """Whether there is a folder of this name; False for a name that no folder can have."""
    return _mode_is(path, stat.S_ISDIR)


def _mode_is(path: Path, wanted: Callable[[int], bool]) -> bool:
    try:
        return wanted(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read(path: str | os.PathLike[str], *, verify: bool = True, kinds: Sequence[str] = (ENCODER_DECODER,)) -> Bundle:
    """Open a bundle; `verify` compares every file with its recorded sha256. kinds: that the caller can handle.

    Raises BundleError for a folder that is no bundle, is damaged, was changed or comes from a newer exporter, and for a
    bundle of another kind.
    """
    folder = Path(path)
    file = folder / MANIFEST
    with suppress(OSError, ValueError):  # a folder that can't be written may still be read
        replacing.put_back(folder)
    if not is_folder(folder):
        raise BundleError(f"{folder}: no such folder; expected a bundle made by `s2s export`")
    if not os.path.lexists(file):
        raise BundleError(f"{folder}: no {MANIFEST} in it; expected a bundle made by `s2s export`")
    try:
        manifest = read_json(file)
    except Unreadable as error:
        raise BundleError(f"{file}: not readable as JSON ({error}); export the bundle again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f'{file}: not the manifest of a bundle; expected "format": "{FORMAT}"')
    version = manifest.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleError(f"{file}: format_version is {shown(version)}, expected a number; export the bundle again")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{folder}: bundle format {shown(version)}, but this version reads up to {FORMAT_VERSION}; "
            "upgrade s2s-export"
        )
    kind = manifest.get("kind", ENCODER_DECODER)
    if problem := _MANIFESTS.get(kind if isinstance(kind, str) else "", _KNOWN_KIND)(manifest, ""):
        raise BundleError(f"{file}: {problem}; export the bundle again")
    bundle = Bundle(folder, manifest, verify)
    if kind not in kinds:
        raise BundleError(f"{folder}: {_OTHER_KIND[kind].format(model_type=manifest['model_type'])}")
    _check_files(bundle, verify)
    return bundle


def _check_files(bundle: Bundle, verify: bool) -> None:
    files: Mapping[str, Any] = bundle.manifest["files"]
    named = [graph["file"] for graph in bundle.manifest["graphs"].values()]
    for name in [*files, *named]:
        path = inside(bundle.path, name)
        if name not in files:
            raise BundleError(f"{bundle.path}: {name} has no recorded hash; export the bundle again")
        if not is_file(path):
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
    """The first file whose sha256 is not the one recorded in a manifest or engine.json, or None."""
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
        if name == MANIFEST or name.startswith(("engines/", "prepared/")):
            continue
        if progress:
            progress(name)
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return files


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json, whole or not at all."""
    replacing.write_text(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
