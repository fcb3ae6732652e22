"""Exports a checkpoint: emits graphs, writes a bundle, compares it with PyTorch, moves it into place."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import bundle
from ..errors import InvalidOption, ParityError
from ..version import __version__
from . import bundle_kinds
from .checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from .families import Family
    from .parity import OutputError

PRECISIONS = ("fp32", "fp16", "bf16")
STAGES = ("read weights", "emit graphs", "write tokenizer", "hash files", "compare with PyTorch")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What an export did: where the bundle is, its manifest, the error of each output, and sentences worth reading."""

    path: Path
    manifest: dict[str, Any]
    parity: list[OutputError]
    notices: tuple[str, ...] = ()


def export(
    checkpoint: str | os.PathLike[str],
    bundle_path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    max_source_length: int | None = None,
    max_target_length: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the bundle of a checkpoint.

    precision: the type in which weights are stored; the portable graphs always compute in fp32.
    max_source_length, max_target_length: limits in tokens, at most the model's own.
    progress: called with each of STAGES as it begins.
    Raises CheckpointError, UnsupportedModel, InvalidOption, ParityError, BundleError; a failed export writes no bundle.
    """
    if precision not in PRECISIONS:
        raise InvalidOption(f"precision is '{precision}'; expected one of {', '.join(PRECISIONS)}")
    destination = Path(bundle_path)
    bundle.check_destination(destination, force=force)
    source = open_checkpoint(os.fspath(checkpoint))
    tell = progress or (lambda stage: None)
    tell(STAGES[0])
    model = source.load_model()
    if stretch := getattr(source.family, "stretch", None):
        stretch(model, max(max_source_length or 0, max_target_length or 0))
    family = source.family.describe(model)
    limits = _limits(family, max_source_length, max_target_length)
    return write_bundle(source, model, family, limits, destination, precision, force, tell)


def write_bundle(
    source: Any,
    model: Any,
    family: Family,
    limits: dict[str, int | None],
    destination: Path,
    precision: str,
    force: bool,
    tell: Progress,
) -> ExportReport:
    """Emit graphs, write the bundle, compare it with PyTorch. source: a Checkpoint, or what stands for one."""
    kind = bundle_kinds.of(family.structure)
    with bundle.writing(destination, force=force) as folder:
        tell(STAGES[1])
        graphs = _write_graphs(folder, family, precision)
        tell(STAGES[2])
        tokenizer = _write_tokenizer(source, folder)
        manifest = _manifest(source, model, family, precision, limits, graphs, tokenizer)
        if write_files := getattr(kind, "write_files", None):
            write_files(folder, source)
        tell(STAGES[3])
        manifest["files"] = bundle.describe_files(folder)
        bundle.write_manifest(folder, manifest)
        tell(STAGES[4])
        written = bundle.read(folder, verify=False, kinds=bundle.KINDS)
        expected = kind.expect(written, source, model)
        del model, family  # frees the memory that loading the graphs is about to need
        errors = kind.compare(written, expected)
        if bad := [error for error in errors if not error.is_close]:
            raise ParityError("the graphs differ from PyTorch: " + "; ".join(error.line() for error in bad))
        if check := getattr(source, "check", None):
            check(written, errors)
        manifest["parity"] = {"against": "torch fp32", "outputs": [error.record() for error in errors]}
        bundle.write_manifest(folder, manifest)
    return ExportReport(destination, manifest, errors, tuple(source.notices))


def _limits(family: Family, source: int | None, target: int | None) -> dict[str, int | None]:
    limits: dict[str, int | None] = {}
    wrong = []
    for name, wanted, own in (
        ("max_source_length", source, family.max_source_length),
        ("max_target_length", target, family.max_target_length),
    ):
        if wanted is not None and (wanted < 1 or (own is not None and wanted > own)):
            allowed = "at least 1" if own is None else f"1 to {own}, the model's own limit"
            wrong.append(f"{name} is {wanted}; expected {allowed}")
        limits[name] = wanted if wanted is not None else own
    if wrong:
        raise InvalidOption("; ".join(wrong))
    return limits


def _write_graphs(folder: Path, family: Family, precision: str) -> dict[str, Any]:
    import onnx
    import torch

    from .graphs import emitter_of
    from .graphs.weights import WeightStore

    described = {}
    with torch.no_grad(), WeightStore(folder / "weights.bin", precision) as store:
        models = emitter_of(family.structure)(family.structure, store)
    for name, model in models.items():
        onnx.save_model(model, folder / f"{name}.onnx")
        described[name] = {
            "file": f"{name}.onnx",
            "inputs": [_describe_value(value) for value in model.graph.input],
            "outputs": [_describe_value(value) for value in model.graph.output],
        }
    return described


def _describe_value(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = [size.dim_param or size.dim_value for size in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype, "shape": shape}


def _write_tokenizer(source: Checkpoint, folder: Path) -> dict[str, Any] | None:
    from .tokenizers.write import write_tokenizer

    target = folder / "tokenizer"
    target.mkdir()
    entry = write_tokenizer(source.adapter, target) if source.adapter is not None else None
    if source.path is not None:
        write = getattr(source.family, "write_tokenizer", write_tokenizer)
        entry = entry or write(source.path, target)
    if entry is None:
        target.rmdir()
    return entry


def _manifest(
    source: Checkpoint,
    model: Any,
    family: Family,
    precision: str,
    limits: dict[str, int | None],
    graphs: dict[str, Any],
    tokenizer: dict[str, Any] | None,
) -> dict[str, Any]:
    import onnx
    import onnxruntime
    import torch
    import transformers

    return {
        "format": bundle.FORMAT,
        "format_version": bundle.FORMAT_VERSION,
        "family": family.name,
        "model_type": source.model_type,
        "precision": precision,
        "sizes": {**family.structure.sizes(), **family.sizes},
        **bundle_kinds.of(family.structure).manifest(source, model, family, limits, graphs),
        "tokenizer": tokenizer,
        "graphs": graphs,
        "provenance": {
            "checkpoint": source.name,
            "checkpoint_sha256": source.sha256(),
            "s2s_export": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }
