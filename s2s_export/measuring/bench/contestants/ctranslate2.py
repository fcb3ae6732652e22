"""CTranslate2, in float32 and int8 at its default settings for this processor, or in float16 on a GPU.

It takes words, not ids. The conversion gets a vocabulary of made-up words, one for each id, so that the checkpoint
needs no tokenizer and only the model is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....bundle import Bundle
from ..work import Ids
from . import Absent, Choice, Entry, Job, Marks, _cublas

NAME = "ctranslate2"
PRECISIONS = {
    "cpu": {"fp32": ("float32", 4.0), "int8": ("int8", 1.0)},
    "cuda": {"fp16": ("float16", 2.0)},
}
IDS = "ids.json"
WHY_TOKENS_DIFFER = (
    "it never gives a Marian model's padding token a probability, which transformers only does with "
    "renormalize_logits, so that scores differ by what that token has; and sums are added up in another order, which "
    "decides where candidates nearly tie, as they do in models with random weights"
)


def entries(bundle: Bundle, choice: Choice) -> list[Entry]:
    return [
        Entry(NAME, f"CTranslate2 {theirs}", ours, weight_bytes, {"compute_type": theirs, "device": choice.device})
        for ours, (theirs, weight_bytes) in PRECISIONS[choice.device].items()
    ]


class Vocabulary:
    """Replaces the tokenizer in the conversion. Words are made up; special tokens have the names it looks for."""

    unk_token = "<unk>"
    eos_token = "</s>"
    pad_token = "<pad>"
    bos_token = "<s>"

    def __init__(self, config: dict[str, Any]) -> None:
        n_words = config.get("decoder_vocab_size") or config["vocab_size"]
        self.words = [f"w{i}" for i in range(n_words)]
        for name in ("bos", "eos", "pad"):
            place = config.get(f"{name}_token_id")
            if isinstance(place, int) and 0 <= place < n_words:
                self.words[place] = getattr(self, f"{name}_token")
        if self.unk_token not in self.words:
            # Any word that does not occur in sources; ids are looked up by position, not by this name.
            self.words[next(i for i in range(n_words) if self.words[i] == f"w{i}")] = self.unk_token
        missing = [word for word in (self.bos_token, self.eos_token, self.pad_token) if word not in self.words]
        for word in missing:
            setattr(self, {"<s>": "bos", "</s>": "eos", "<pad>": "pad"}[word] + "_token", self.unk_token)

    @property
    def unk_token_id(self) -> int:
        return self.words.index(self.unk_token)

    def __len__(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def convert_ids_to_tokens(self, ids: int | list[int]) -> str | list[str]:
        return self.words[ids] if isinstance(ids, int) else [self.words[i] for i in ids]


def keep_start(model: Any) -> Any:
    """A Marian model whose decoder may start from a zero embedding, as the conversion has it, without a difference.

    Marian's own models start from zeros, and so does every conversion of that type. A checkpoint whose padding token,
    which starts the decoder, has another embedding would become another model, with other tokens in fp32 too. Nothing
    but the start is at position 0, so its embedding is added to the encoding of that position.
    """
    if model.config.model_type == "marian":
        decoder, start = model.get_decoder(), model.config.decoder_start_token_id
        scale = model.config.d_model**0.5 if model.config.scale_embedding else 1.0
        positions = decoder.embed_positions.weight
        positions.data[0] += scale * decoder.embed_tokens.weight.data[start]
    return model


def prepare(job: Job, folder: str) -> None:
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        raise Absent(f"ctranslate2 can't be imported ({error}); pip install 's2s-export[bench]'") from error
    checkpoint = Path(job.need_checkpoint())
    vocabulary = Vocabulary(json.loads((checkpoint / "config.json").read_text(encoding="utf-8")))

    class Converter(TransformersConverter):
        def load_tokenizer(self, *arguments: Any, **options: Any) -> Vocabulary:
            return vocabulary

        def load_model(self, *arguments: Any, **options: Any) -> Any:
            return keep_start(super().load_model(*arguments, **options))

    try:
        Converter(str(checkpoint)).convert(str(Path(folder) / NAME), quantization=job.options["compute_type"])
    except (ValueError, AttributeError, KeyError) as error:
        raise Absent(f"its converter can't take this checkpoint ({str(error).splitlines()[0][:200]})") from error
    (Path(folder) / IDS).write_text(json.dumps(vocabulary.words), encoding="utf-8")
    if job.options["device"] == "cuda":
        _cublas.link(Path(folder) / _cublas.FOLDER)


def environment(folder: str) -> dict[str, str]:
    return _cublas.environment(Path(folder) / _cublas.FOLDER)


def open(job: Job, folder: str) -> CTranslate2:
    # Its converters import torch and transformers if these are installed. Translating does not need them, and they
    # would count as its memory and load time.
    for name in ("torch", "transformers"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    try:
        import ctranslate2
    except ImportError as error:
        raise Absent(f"ctranslate2 can't be imported ({error}); pip install 's2s-export[bench]'") from error
    words = json.loads((Path(folder) / IDS).read_text(encoding="utf-8"))
    workers = job.options.get("inter_threads", 1)
    try:
        translator = ctranslate2.Translator(
            str(Path(folder) / NAME),
            device=job.options["device"],
            compute_type=job.options["compute_type"],
            inter_threads=workers,
            intra_threads=job.threads,
        )
    except (RuntimeError, ValueError) as error:
        raise Absent(f"can't run on device '{job.options['device']}' ({str(error).splitlines()[0][:200]})") from error
    return CTranslate2(translator, words, {"ctranslate2": ctranslate2.__version__})


class CTranslate2:
    def __init__(self, translator: Any, words: list[str], versions: dict[str, str]) -> None:
        self.versions = versions
        self.marks = Marks()
        self._translator = translator
        self._words = words
        self._ids = {word: i for i, word in enumerate(words)}

    def decode(self, sources: Sequence[Ids], num_beams: int, new_tokens: int) -> list[Ids]:
        found = self._translator.translate_batch(
            self._text(sources), beam_size=num_beams, min_decoding_length=new_tokens, max_decoding_length=new_tokens
        )
        return [self._to_ids(result) for result in found]

    def translate(
        self, sources: Sequence[Ids], num_beams: int, max_new_tokens: int, setting: dict[str, Any]
    ) -> list[Ids]:
        found = self._translator.translate_batch(
            self._text(sources),
            beam_size=num_beams,
            max_decoding_length=max_new_tokens,
            max_batch_size=setting["max_batch_size"],
            batch_type=setting["batch_type"],
        )
        return [self._to_ids(result) for result in found]

    def _text(self, sources: Sequence[Ids]) -> list[list[str]]:
        return [[self._words[i] for i in source] for source in sources]

    def _to_ids(self, result: Any) -> Ids:
        return [self._ids[word] for word in result.hypotheses[0]]


def settings(cores: int) -> list[dict[str, Any]]:
    """Settings to try: workers of one thread (faster than threads of one call), batches by sentences or tokens."""
    batches = [("examples", 16), ("examples", 32), ("tokens", 1024), ("tokens", 2048)]
    shapes = {(1, cores), (cores, 1)}
    return [
        {"threads": threads, "inter_threads": workers, "batch_type": kind, "max_batch_size": size}
        for workers, threads in sorted(shapes)
        for kind, size in batches
    ]
