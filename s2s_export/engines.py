"""Engines: what `s2s build` stores in a bundle. `building/` writes them, backends read them, and both meet here.

An engine is a folder, engines/<target>/ of its bundle, with the files that a library runs and engine.json, which says
what they are. A folder whose name begins with a dot is a build under way or its remains, and no engine.

engine.json, format version 2, holds for every engine

    format_version    the integer 2; a reader refuses a larger one. A file without it is of version 1
    target            text: the target's name, which is the folder's too
    flavour           text: who runs it. A backend declares the flavours that it runs
    precision         text: fp32, fp16, bf16, int8 or fp8
    key               text: hash of the bundle's graphs, the recipe and the library; an engine with the same key is not
                      built again
    made_from         text by text: sha256 of every file of the bundle when the engine was built, by its name
    built_with        text by text: s2s_export, the exporter's version; library, the builder's name and version
    recipe            the target's recipe, key by key (recipes.py)
    files             bytes and sha256 of every file of the engine but engine.json, by its name
    graphs            encoder, cross_kv_init and decoder_step, perhaps prefill; of an encoder's bundle encoder alone.
                      Each its file, inputs and outputs as in the manifest (name, dtype and shape). They are the
                      graph's own: a backend compares them when it opens the graph
    bytes, seconds    numbers: size of all files together, and how long the build took
    summary           list of text: what the build told its user

and more, for information only: what the passes did to the graphs, agreement with fp32, and so on. These keys are
not read when an engine is run.

flavour "cpu", for ONNX Runtime on a CPU, has also

    onnxruntime       text: the version of ONNX Runtime that may run it
    weights           "engine" or "bundle": whose weights.bin the graphs read
    shared            by graph and weight: dtype, shape and offset in weights.bin of weights that several graphs read
    operators         sources, text: a hash of the sources of our own operators that the graphs use; or null. The
                      package has the library or compiles it. Version 1 named a library in the engine's folder here:
                      such an engine is refused, as nothing in a bundle is ever loaded as a library
    processor         text: the kind of processor that it was built for
    stored            by type (fp32, fp16, bf16, int8), of the weights of our own operators: weights, how many; bytes;
                      rounded, how many had values that the type does not hold; names, by which the first graph that
                      has one knows it
    passes            by graph, what each pass did to it: pass, its name; left, how many places it left, by the reason
    graphs.*.max_rows a whole number: the most rows (sources times beams) that this decoder step serves. The graph
                      decoder_step has none: it serves the rest

flavour "cuda", for ONNX Runtime on an NVIDIA GPU, has nothing else. Flavours "tensorrt" and "tensorrt-rtx" have also

    ranges            by letter (B sources, K beams, S source length, and T target length): min, opt and max
    slots             a whole number: slots of the K/V caches, positions times beams; 0 for a decoder without caches
    target_length     a whole number: the most tokens that the decoder can be fed
    device            compute_capabilities, a list of text: the GPUs that can run it
    recipe.plugins    true or false: whether it holds our kernels, whose binaries (*.fatbin) lie beside it
    recipe.buckets    list of whole numbers: source lengths that are run; others run as the next larger

flavour "cuda-native", for the backend cuda, has

    layout            a whole number: the version of its packed weights (runtime/backends/_cuda_native/model.py), in
                      the files model.json and weights.bin. It has no graphs of its own: `graphs` describes what they
                      would read and write, and all three name weights.bin

Engines that were built before a key was added lack it; those that are read are required below.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .bundle import DTYPES, FILES, GRAPH, GRAPHS, Bundle, first_changed, inside, is_file, is_folder
from .errors import BackendError, BundleError, EngineError, InvalidOption, nearest
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

PORTABLE = "portable"  # the target that is always there: the bundle's own graphs
RECORD = "engine.json"
FORMAT_VERSION = 2
BYTES_OF = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0}  # of a number, by the type that stores it
_LIBRARIES = (".so", ".dll", ".dylib", ".pyd")
_MACH = (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_CUDA = b"\xbe\x00"  # e_machine 190, EM_CUDA: a cubin

_WEIGHT_TYPES = (*DTYPES, "float64", "int8", "uint8", "int16", "uint16", "uint32", "uint64")
_RANGE = record({"min": integer(1), "opt": integer(1), "max": integer(1)})
_CPU: Check = record(
    {"onnxruntime": text, "weights": one_of("engine", "bundle")},
    optional={
        "shared": null_or(
            mapping_of(
                mapping_of(
                    record({"dtype": one_of(*_WEIGHT_TYPES), "shape": list_of(integer(0)), "offset": integer(0)})
                )
            )
        ),
        "operators": null_or(either(file_name, record({"sources": text}), "sources of operators")),
        "processor": text,
        "stored": mapping_of(
            record({"weights": integer(0), "bytes": integer(0), "rounded": integer(0)}, {"names": list_of(text)})
        ),
        "passes": mapping_of(list_of(record({}, {"pass": text, "left": mapping_of(integer(0))}))),
    },
)
_TENSORRT: Check = record(
    {
        "key": text,
        "ranges": record({letter: _RANGE for letter in "BKS"}, {"T": _RANGE}),
        "slots": integer(0),
        "target_length": integer(1),
        "built_with": record({"library": text}),
        "device": record({"compute_capabilities": list_of(text)}),
        "recipe": record({"plugins": boolean, "buckets": list_of(integer(1))}),
    }
)
# The keys that a flavour has beyond those of all engines. For flavours that are not here, no others are checked.
_OF_FLAVOUR: Mapping[str, Check] = {
    "cpu": _CPU,
    "tensorrt": _TENSORRT,
    "tensorrt-rtx": _TENSORRT,
    "cuda-native": record({"layout": integer(1)}),
}
_GRAPHS: Check = all_of(
    record(dict.fromkeys(GRAPHS, GRAPH)), mapping_of(all_of(GRAPH, record({}, {"max_rows": integer(0)})))
)
_ENCODER_ALONE: Check = record({"encoder": GRAPH})


def _graphs(value: Any, where: str) -> str | None:
    is_alone = isinstance(value, dict) and value.keys() == {"encoder"}
    return (_ENCODER_ALONE if is_alone else _GRAPHS)(value, where)


_ENGINE: Check = record(
    {
        "flavour": text,
        "made_from": mapping_of(text),
        "files": FILES,
        "graphs": _graphs,
    },
    optional={
        "target": file_name,
        "precision": text,
        "key": text,
        "built_with": mapping_of(text),
        "recipe": record({}, {"buckets": list_of(integer(1))}),
        "bytes": number,
        "seconds": number,
        "summary": list_of(text),
        "passes": mapping_of(anything),
    },
)


# Reading


def names(bundle: Bundle) -> list[str]:
    """The targets that `s2s build` made an engine for, readable or not."""
    folder = bundle.path / "engines"
    try:
        found = sorted(os.listdir(folder)) if is_folder(folder) else []
    except OSError as error:
        raise BundleError(f"{folder}: can't be listed ({error.strerror}); let it be readable") from error
    return [name for name in found if not name.startswith(".") and os.path.lexists(folder / name / RECORD)]


def folder_of(bundle: Bundle, target: str) -> Path:
    return bundle.path / "engines" / target


def read(folder: Path) -> dict[str, Any]:
    """engine.json of an engine's folder; presence and types of all that is used are as described above.

    Raises EngineError, which names what is wrong by its path in the file.
    """
    file = folder / RECORD
    again = rebuild(folder, {})
    try:
        engine = read_json(file)
    except Unreadable as error:
        raise EngineError(f"{file}: not readable as JSON ({error}); {again}") from error
    version = engine.get("format_version", FORMAT_VERSION) if isinstance(engine, dict) else FORMAT_VERSION
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise EngineError(
            f"{file}: engine format {shown(version)}, but this version reads up to {FORMAT_VERSION}; "
            "upgrade s2s-export, or build the target again"
        )
    problem = _ENGINE(engine, "") or _OF_FLAVOUR.get(engine["flavour"], anything)(engine, "") or _contradiction(engine)
    if problem:
        raise EngineError(f"{file}: {problem}; {again}")
    return dict(engine)


def _contradiction(engine: Mapping[str, Any]) -> str | None:
    """How two keys contradict each other, or None."""
    named = {f"graphs.{name}.file": graph["file"] for name, graph in engine["graphs"].items()}
    for where, name in named.items():
        if name not in engine["files"]:
            return f"{where} is {shown(name)}, expected one of the names in files"
    if "max_rows" in engine["graphs"].get("decoder_step", {}):
        return "graphs.decoder_step.max_rows is there, expected none, as this graph serves any number of rows"
    return None


def engines(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """engine.json of every engine, by target. Raises EngineError for one that can't be read."""
    return {name: read(folder_of(bundle, name)) for name in names(bundle)}


def targets_of(bundle: Bundle, flavours: Collection[str]) -> list[str]:
    """Targets whose engine is of one of these flavours. One that can't be read is among them: opening it says why."""
    found = []
    for name in names(bundle):
        try:
            is_ours = read(folder_of(bundle, name))["flavour"] in flavours
        except EngineError:
            is_ours = True
        if is_ours:
            found.append(name)
    return found


# Whether an engine can run here


def refuse_stale(
    bundle: Bundle,
    folder: Path,
    engine: Mapping[str, Any],
    *,
    library: str | None = None,
    capability: str | None = None,
) -> None:
    """Raises EngineError, with the command that rebuilds it, for an engine that can't run here.

    It was made from another bundle, for another version of the library, for another GPU, it brings native code, or its
    files are not those that were built. library: name and version of the one that is installed, where an engine
    depends on it. capability: compute capability of this GPU, where there is one.
    """
    again = rebuild(folder, engine)
    if engine["made_from"] != bundle.hashes():
        raise EngineError(f"{folder}: was built from another version of this bundle; {again}")
    if missing := [n for n in GRAPHS if n in bundle.manifest["graphs"] and n not in engine["graphs"]]:
        raise EngineError(f"{folder}: has no graph {missing[0]}, which the bundle has; {again}")
    if library is not None and _library_of(engine) != library:
        raise EngineError(f"{folder}: built with {_library_of(engine)}, but {library} is installed; {again}")
    if capability is not None and capability not in engine["device"]["compute_capabilities"]:
        served = ", ".join(engine["device"]["compute_capabilities"]) or "unknown"
        raise EngineError(f"{folder}: built for compute capability {served}, but this GPU has {capability}; {again}")
    if (name := native_code(folder, engine["files"])) is not None:
        raise EngineError(f"{folder}: brings {name}, a library, which is never loaded from a bundle; {again}")
    if isinstance(operators := engine.get("operators"), str):
        raise EngineError(f"{folder}: brings {operators}, a library, which is never loaded from a bundle; {again}")
    check_files(bundle, folder, engine, again)


def check_files(bundle: Bundle, folder: Path, engine: Mapping[str, Any], again: str) -> None:
    """Raises EngineError for a file that is not what was built. again: the command that builds it.

    Compares the sizes, and every sha256 unless the bundle was opened without `verify`.
    """
    files = engine["files"]
    for name, entry in files.items():
        path = inside(folder, name)
        if not is_file(path):
            raise EngineError(f"{path}: is missing; {again}")
        if path.stat().st_size != entry["bytes"]:
            raise EngineError(
                f"{path}: {path.stat().st_size} bytes, {entry['bytes']} bytes recorded; the engine is damaged; {again}"
            )
    if bundle.verify and (name := first_changed(folder, files)) is not None:
        raise EngineError(f"{folder / name}: is not what was built, the file is damaged; {again}")


def native_code(folder: Path, files: Mapping[str, Any]) -> str | None:
    """The first file that is a program or library for the host, by its name or its first bytes, or None.

    Looks at these files and at whatever else lies in the folder. Kernels for GPUs (*.fatbin) and TensorRT's plans are
    none: the host's loader can't read them.
    """
    for name in sorted({*files, *(path.name for path in folder.iterdir())}):
        path = inside(folder, name)
        if path.suffix in _LIBRARIES or ".so." in path.name:
            return name
        if not path.is_file():  # opening a pipe would wait for whoever writes to it
            continue
        try:
            with path.open("rb") as file:
                begin = file.read(20)
        except OSError:
            continue
        if begin.startswith((b"MZ", *_MACH)) or (begin.startswith(b"\x7fELF") and begin[18:20] != _CUDA):
            return name
    return None


def _library_of(engine: Mapping[str, Any]) -> str:
    if "onnxruntime" in engine:
        return f"onnxruntime {engine['onnxruntime']}"
    return engine["built_with"]["library"] or "an unknown library"


def rebuild(folder: Path, engine: Mapping[str, Any]) -> str:
    """The command that builds an engine again. folder: the engine's."""
    return f"run: s2s build {folder.parent.parent} --target {engine.get('target', folder.name)} --force"


# Which engine is taken


def why_no_engine(bundle: Bundle, target: str, flavours: Collection[str], others: Collection[str] = ()) -> str | None:
    """Why a bundle has no engine of these flavours for a target, or None. others: targets that would do as well."""
    wanted = " or ".join(flavours)
    fitting = targets_of(bundle, flavours)
    if target not in names(bundle):
        known = nearest(target, [*others, *fitting]) if others or fitting else ""
        return f"the bundle has no {wanted} engine for target {shown(target)}{known}; {_build(bundle, target)}"
    if target not in fitting:
        flavour = read(folder_of(bundle, target))["flavour"]
        return f"the engine '{target}' is one of flavour '{flavour}'; expected '{wanted}'"
    return None


def why_no_single_engine(bundle: Bundle, flavours: Collection[str]) -> str | None:
    """Why there is not exactly one engine of these flavours, which then needs no name, or None."""
    fitting, wanted = targets_of(bundle, flavours), " or ".join(flavours)
    if not fitting:
        return f"the bundle has no {wanted} engine; {_build(bundle, 'TARGET')} (see s2s build --list)"
    if len(fitting) > 1:
        return f"the bundle has several {wanted} engines ({', '.join(fitting)}); choose one with --target"
    return None


def _build(bundle: Bundle, target: str) -> str:
    return f"run: s2s build {bundle.path} --target {target}"


# What an engine says of itself


def weights_line(engine: Mapping[str, Any]) -> str:
    """In which types the weights of our own operators are stored, or nothing: "94 in fp16 exactly (138.9 MiB)"."""
    parts = []
    for storage, of_type in sorted((engine.get("stored") or {}).items()):
        n, n_rounded = of_type["weights"], of_type["rounded"]
        how = "" if storage in ("fp32", "int8") else " exactly" if not n_rounded else f", {n_rounded} of them rounded"
        parts.append(f"{n} in {storage}{how} ({of_type['bytes'] / 2**20:.1f} MiB)")
    return ", ".join(parts)


def bytes_of_weight(engine: Mapping[str, Any]) -> float | None:
    """The mean bytes of a weight's number in our own operators, or None where the engine doesn't say."""
    stored = engine.get("stored") or {}
    n_numbers = sum(of_type["bytes"] / BYTES_OF[storage] for storage, of_type in stored.items() if storage in BYTES_OF)
    return sum(stored[storage]["bytes"] for storage in stored if storage in BYTES_OF) / n_numbers if n_numbers else None


# Which batches fit into an engine


def beams_for(record: Mapping[str, Any], wanted: int) -> int:
    """The number of beams that the engine runs for `wanted`: it divides the slots of its caches."""
    limits, slots = record["ranges"]["K"], int(record["slots"])
    for beams in range(max(wanted, limits["min"]), limits["max"] + 1):
        if not slots or slots % beams == 0:
            return int(beams)
    raise InvalidOption(
        f"{wanted} beams wanted, but the engine was built for at most {limits['max']}; "
        f"build it again with --max-beams {wanted}"
    )


def bucket(record: Mapping[str, Any], length: int) -> int:
    """The source length that is run for `length`: the next bucket, so that few shapes exist; or `length` itself."""
    limits = record["ranges"]["S"]
    if length > limits["max"]:
        raise BackendError(
            f"a source has {length} tokens, but the engine was built for at most {limits['max']}; "
            f"build it again with --max-source-length {length}"
        )
    fitting = [size for size in record["recipe"]["buckets"] if length <= size <= limits["max"]]
    return int(max(min(fitting, default=length), limits["min"]))
