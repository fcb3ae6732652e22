"""`export_module`: a bundle of a module of one's own."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ... import bundle
from ...errors import CheckpointError, InvalidOption
from ..checkpoint import require_export_packages
from ..export import PRECISIONS, STAGES, ExportReport, Progress, write_bundle
from .config import ModuleConfig

if TYPE_CHECKING:
    from ...bundle import Bundle
    from ..families import Family
    from ..parity import OutputError, Reference


def export_module(
    model: Any,
    config: ModuleConfig,
    bundle_path: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    precision: str = "fp32",
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the bundle of a module, which then decodes as any other.

    model: a module with `encode`, `start` and `step`, or a `TransformerModule` around torch.nn.Transformer.
    tokenizer: a tokenizer of transformers or of the tokenizers package, or a folder that AutoTokenizer reads; without
    one the bundle takes ids.
    Raises UnsupportedModel, which says what could not be traced, InvalidOption, ParityError, CheckpointError,
    BundleError; a failed export writes no bundle.
    """
    if precision not in PRECISIONS:
        raise InvalidOption(f"precision is '{precision}'; expected one of {', '.join(PRECISIONS)}")
    if not isinstance(config, ModuleConfig):
        raise InvalidOption(f"config is a {type(config).__name__}; expected a s2s_export.ModuleConfig")
    destination = Path(bundle_path)
    bundle.check_destination(destination, force=force)
    require_export_packages()
    tell = progress or (lambda stage: None)
    tell(STAGES[0])
    with _evaluated(model), _tokenizer_folder(tokenizer) as folder:
        family, reference, of_source, notices = _described(model, config)
        source = _Source(config.name, family, model, folder, reference, of_source, notices=notices)
        stand_in = SimpleNamespace(
            config=SimpleNamespace(pad_token_id=config.pad_token_id),
            generation_config=SimpleNamespace(to_dict=config.defaults),
        )
        limits = {"max_source_length": family.max_source_length, "max_target_length": family.max_target_length}
        report = write_bundle(source, stand_in, family, limits, destination, precision, force, tell)
        if tokenizer is not None and report.manifest["tokenizer"] is None:
            raise CheckpointError(f"{tokenizer}: has no tokenizer's files in it; leave it out to export for ids only")
        return report


def _described(model: Any, config: ModuleConfig) -> tuple[Family, Reference, dict[str, Any], list[str]]:
    """The family of a module, the module as the three graphs, the manifest's words on its sources, and notices."""
    from ..families import Family
    from ..graphs.traced import TracedModule
    from . import attention, behaviour, check, interface, sources, trace

    read = sources.of(config)
    if isinstance(model, attention.TransformerModule):
        if not isinstance(read, sources.Ids):
            raise InvalidOption(
                f"a TransformerModule reads token ids, and source is {config.source!r}; leave it out, or give a module "
                "with encode, start and step"
            )
        structure = attention.structure_of(model)
        positions = None if model.positions is None else len(model.positions)
        others = model.target_positions
        longest_source = _least(positions, config.max_source_length)
        longest_target = _least(None if others is None else len(others), config.max_target_length)
        family = Family(config.name, structure, longest_source, longest_target)
        return family, attention.TransformerReference(model), {}, []
    attention.refuse_bare_transformer(model)
    before = behaviour.snapshot(model)
    found, example = interface.probe(model, read, config.decoder_start_token_id, config.max_source_length)
    behaviour.require_functions_of_arguments(model, example, before)
    traced = TracedModule(trace.trace(model, read, found, example), found, read)
    notices = [n for n in [behaviour.effect_of_padding(model, read, example, config.pad_token_id)] if n]
    family = Family(config.name, traced, config.max_source_length, config.max_target_length)
    n_positions = found.attention[2] if found.attention is not None else None
    of_source = {"kind": read.kind, **read.manifest(n_positions if isinstance(n_positions, int) else None)}
    if traced.functions.why_copied:
        notices.append(
            "caches along time are copied at every step, so that beams can change places: "
            f"{traced.functions.why_copied}; docs/own-module.md shows caches that are not"
        )
    slots = traced.functions.slots
    reference = check.ModuleReference(model, found, read, frozenset() if slots is None else slots.caches)
    return family, reference, of_source, notices


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


@dataclass
class _Source:
    """What stands for a checkpoint (`checkpoint.Checkpoint`) where a bundle is written."""

    name: str
    described: Family
    model: Any
    path: Path | None
    reference: Reference
    of_source: dict[str, Any] = field(default_factory=dict)
    adapter: None = None
    notices: list[str] = field(default_factory=list)

    @property
    def model_type(self) -> str:
        return self.described.name

    @property
    def family(self) -> Any:
        return SimpleNamespace(Reference=lambda stand_in: self.reference, source=lambda stand_in: self.of_source)

    def check(self, written: Bundle, errors: list[OutputError]) -> None:
        from . import check

        errors += check.check(written, self.reference)

    def sha256(self) -> str:
        """One hash over the module's parameters and buffers."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(-1).numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def _evaluated(model: Any) -> Iterator[None]:
    """The model in evaluation mode, as without dropout, until the block ends."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise InvalidOption(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _tokenizer_folder(tokenizer: Any) -> Iterator[Path | None]:
    """A folder with the tokenizer's files, or None."""
    if tokenizer is None:
        yield None
        return
    if isinstance(tokenizer, (str, os.PathLike)):
        folder = Path(tokenizer)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; expected one with a tokenizer's files")
        yield folder
        return
    import tokenizers
    import transformers

    if isinstance(tokenizer, tokenizers.Tokenizer):
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    if not hasattr(tokenizer, "save_pretrained"):
        raise InvalidOption(
            f"tokenizer is a {type(tokenizer).__name__}; expected a folder, or a tokenizer of transformers or of the "
            "tokenizers package"
        )
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        yield Path(temporary)
