"""Text models in CTranslate2's format, and Argos Translate's packages: decoded as ctranslate2.Translator decodes.

`exporting/ctranslate2/` reads the folder. Quantised weights are dequantised. A beam search ends as CTranslate2's does
(`early_stopping`), with its usual options; a first token that ends the target is not allowed there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .. import ctranslate2, packed
from ..ctranslate2 import _folder, _model_file
from ..ctranslate2._transformer import Reader
from ..tokenizers.write import write_tokenizer as write_checkpoint_tokenizer
from ..toolkits import vocabulary
from ..toolkits.plain import PlainTransformer, Reference, ToolkitModel, plain_of, positions_of
from . import Family

__all__ = ["MODEL_TYPES", "Reference", "describe", "load_model", "recognise", "stretch", "write_tokenizer"]

MODEL_TYPES = ("ctranslate2",)
# Translator.translate_batch's own, and those with which Argos Translate calls it.
USUAL = {"num_beams": 2, "length_penalty": 1.0}
ARGOS = {"num_beams": 4, "length_penalty": 0.2}
LONGEST = 256  # tokens of a target
PADS = ("<pad>", "<blank>")
CHECKPOINT_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
SENTENCEPIECE = (("source.spm", "target.spm"), ("source.model", "target.model"), ("sentencepiece.model", None),
         ("sentencepiece.bpe.model", None), ("spiece.model", None), ("spm.model", None))  # fmt: skip


def recognise(folder: Path) -> dict[str, Any] | None:
    """A folder whose model.bin holds a TransformerSpec."""
    if ctranslate2.spec_of(folder) != ctranslate2.TEXT_SPEC:
        return None
    return {"model_type": MODEL_TYPES[0]}


def load_model(path: Path, config: dict[str, Any]) -> ToolkitModel:
    model = _model_file.read(ctranslate2.parts(path))
    given = _folder.config_of(path)
    settings = _folder.settings_of(model, given)
    reader = Reader(model, given)
    structure = reader.structure(0)
    n_source, n_target = len(structure.encoder.embedding), len(model["decoder/embeddings/weight"])  # type: ignore[arg-type]
    _, target = _folder.vocabularies(path, settings.unk, n_source, n_target)
    ids = vocabulary.ids_of(target)
    if settings.eos not in ids:
        raise CheckpointError(f"{path}: the target vocabulary lacks the end token '{settings.eos}'; restore the folder")
    start = None if settings.start is None else ids.get(settings.start, ids[settings.unk])
    if len(structure.head.weight) > n_target:  # one more token, whose embedding is zero, begins every target
        start = n_target
    eos = ids[settings.eos]
    pad = next((ids[name] for name in PADS if name in ids), eos)
    plain = PlainTransformer(reader.structure, {"pad": pad, "bos": ids.get(settings.bos), "eos": eos})
    longest = positions_of(plain.structure.decoder)
    metadata = _metadata(path)
    defaults: dict[str, Any] = {
        **(USUAL if metadata is None else ARGOS),
        "early_stopping": True,
        "max_length": min(LONGEST + 1, longest or LONGEST + 1),
        "min_length": 2,  # the start token and one more
        "pad_token_id": pad,
        "eos_token_id": eos,
        "decoder_start_token_id": start,
    }
    if metadata is not None and (prefix := metadata.get("target_prefix")):
        if prefix not in ids:
            raise CheckpointError(f"{path}: the vocabulary lacks metadata.json's target_prefix '{prefix}'")
        defaults["forced_bos_token_id"] = ids[prefix]
    return ToolkitModel(plain, defaults, _notices(reader, path, metadata))


def stretch(model: ToolkitModel, positions: int) -> None:
    """Make computed tables of positions longer; stored ones stay as they are."""
    plain_of(model).stretch(positions)


def describe(model: ToolkitModel) -> Family:
    structure = plain_of(model).structure
    return Family("ctranslate2", structure, positions_of(structure.encoder), positions_of(structure.decoder))


def write_tokenizer(path: Path, folder: Path) -> dict[str, Any] | None:
    """The manifest's entry: of transformers' files where they are beside, else of a sentencepiece model and the
    vocabularies, else of pieces.
    """
    model = _model_file.read(ctranslate2.parts(path))
    settings = _folder.settings_of(model, _folder.config_of(path))
    sizes = (len(model[_first_embedding(model)]), len(model["decoder/embeddings/weight"]))
    source, target = _folder.vocabularies(path, settings.unk, *sizes)
    ids, target_ids = vocabulary.ids_of(source), vocabulary.ids_of(target)
    if all((path / name).is_file() for name in CHECKPOINT_TOKENIZERS):
        return _checked(write_checkpoint_tokenizer(path, folder), folder, ids)
    metadata = _metadata(path)
    skipped = [target_ids[name] for name in (settings.eos, settings.bos, *PADS) if name in target_ids]
    skipped.append(len(target))  # of models that begin with a zero embedding
    if metadata is not None and (prefix := metadata.get("target_prefix")) in target_ids:
        skipped.append(target_ids[prefix])
    around = vocabulary.Vocabularies(
        source,
        target,
        settings.unk,
        prefix=(ids[settings.bos],) if settings.add_source_bos and settings.bos in ids else (),
        suffix=(ids[settings.eos],) if settings.add_source_eos and settings.eos in ids else (),
        skip_ids=tuple(skipped),
    )
    return vocabulary.write(around, folder, *vocabulary.models_beside(path, SENTENCEPIECE))


def _checked(entry: dict[str, Any] | None, folder: Path, ids: dict[str, int]) -> dict[str, Any] | None:
    """Raises CheckpointError if the tokenizer of transformers' files has other ids than the vocabulary."""
    from ...runtime import text

    if entry is not None:
        tokenizer = text.load(folder, entry)
        for piece, i in list(ids.items())[:: max(1, len(ids) // 1000)]:
            if tokenizer.source_tokens([i]) not in ([piece], [""]):
                raise CheckpointError(
                    f"the folder's tokenizer has {tokenizer.source_tokens([i])[0]!r} for the id {i}, its vocabulary "
                    f"{piece!r}; remove the tokenizer's files to export for pieces"
                )
    return entry


def _first_embedding(model: _model_file.Model) -> str:
    name = "encoder/embeddings_0/weight"
    return name if name in model.variables else "encoder/embeddings/weight"


def _metadata(path: Path) -> dict[str, Any] | None:
    """Of a package of Argos Translate, or None."""
    file = path / packed.METADATA
    if not file.is_file():
        return None
    found = ctranslate2.read_json(file)
    return found if isinstance(found, dict) and "from_code" in found else None


def _notices(reader: Reader, path: Path, metadata: Any) -> list[str]:
    notices = []
    if reader.quantised:
        notices.append(
            f"the weights ({', '.join(reader.quantised)}) were dequantised: what they were rounded from is gone; "
            "export the original checkpoint where you have it"
        )
    if metadata is not None and not (path / "sentencepiece.model").is_file() and (path / "bpe.model").is_file():
        notices.append(
            "the package's bpe.model needs the Moses tokenizer, which is not in the runtime: the bundle takes pieces "
            "with spaces between them"
        )
    return notices
