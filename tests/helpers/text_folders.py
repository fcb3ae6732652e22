"""Checkpoint folders with tiny tokenizers of every family, made on the spot.

`slow_*` folders hold what transformers 4 wrote for a tokenizer without tokenizer.json: sentencepiece files,
vocab.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json. `resaved` loads such a folder with the
installed transformers and saves it anew.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import sentencepiece

CORPUS = [
    "Hello, world! The quick brown fox jumps over the lazy dog.",
    "I can't believe it's not yours, they're mine and we've won.",
    "She sells sea shells by the sea shore; the shells she sells are surely seashells.",
    "Deutschland und Österreich: große Straßen, süße Äpfel, »Grüße aus Köln«.",
    "L'été dernier, nous étions à la plage où il faisait très chaud, n'est-ce pas ?",
    "El niño comió una manzana; ¿quién sabe dónde está la niña?",
    "Тридцать три корабля лавировали, лавировали, да не вылавировали.",
    "我们明天去北京,好吗?今天天气很好。",
    "今日は良い天気ですね。東京へ行きます。",
    "مرحبا بالعالم، كيف الحال اليوم؟",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "안녕하세요, 반갑습니다.",
    "1234567890 3.14159 12,50 € 100 % a_b x=y (z) [w] {v} <u> #1 @home & co.",
]
CORPUS = CORPUS + [" ".join(reversed(line.split())) for line in CORPUS] + [line.upper() for line in CORPUS]

MARIAN_LANGUAGES = (">>fra<<", ">>deu<<", ">>cmn_Hans<<")
NLLB_SOME = ("eng_Latn", "fra_Latn", "zho_Hans")
SPECIALS_MAP = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@cache
def spm(model_type: str = "unigram", vocab_size: int = 320, **options: object) -> bytes:
    """A sentencepiece model of the corpus. `options` go to the trainer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return model.getvalue()


def t5_spm() -> bytes:
    return spm(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


def pieces(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def _write(folder: Path, model_type: str, tokenizer_class: str | None, config: dict[str, object] | None = None) -> None:
    folder.mkdir(parents=True)
    dump(folder / "config.json", {"model_type": model_type, "is_encoder_decoder": True})
    if tokenizer_class is not None:
        dump(folder / "tokenizer_config.json", {"tokenizer_class": tokenizer_class, **(config or {})})


def dump(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def slow_marian(folder: Path, *, languages: tuple[str, ...] = (), separate: bool = False) -> None:
    config: dict[str, object] = {"source_lang": "eng", "target_lang": "fra", "model_max_length": 512}
    if separate:
        config["separate_vocabs"] = True
    _write(folder, "marian", "MarianTokenizer", config)
    source, target = spm(), spm(vocab_size=280)
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    special = ["</s>", "<unk>"]
    # As OPUS-MT numbers: the two models' pieces mixed, language codes among them, <pad> last.
    listed = sorted(set(pieces(source) + ([] if separate else pieces(target))) - {"<s>", *special})
    del listed[17::29]  # pieces that vocab.json lacks
    dump(folder / "vocab.json", numbered([*special, *listed, *languages, "<pad>"]))
    if separate:
        listed = sorted(set(pieces(target)) - {"<s>", *special}, reverse=True)
        dump(folder / "target_vocab.json", numbered([*special, *listed, "<pad>"]))
    dump(folder / "special_tokens_map.json", SPECIALS_MAP)


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def slow_t5(folder: Path) -> None:
    extra = [f"<extra_id_{i}>" for i in range(100)]
    _write(folder, "t5", "T5Tokenizer", {"extra_ids": 100, "additional_special_tokens": extra, "model_max_length": 512})
    (folder / "spiece.model").write_bytes(t5_spm())
    dump(folder / "special_tokens_map.json", {**SPECIALS_MAP, "additional_special_tokens": extra})


def slow_mt5(folder: Path) -> None:
    _write(folder, "mt5", "T5Tokenizer", {"extra_ids": 0, "additional_special_tokens": None})
    (folder / "spiece.model").write_bytes(
        spm(vocab_size=600, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, byte_fallback=True)
    )
    dump(folder / "special_tokens_map.json", SPECIALS_MAP)


def slow_byt5(folder: Path) -> None:
    _write(folder, "t5", "ByT5Tokenizer", {"extra_ids": 125})
    dump(folder / "special_tokens_map.json", SPECIALS_MAP)


def slow_bart(folder: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    _write(folder, "bart", "BartTokenizer", {"model_max_length": 1024})
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        CORPUS, vocab_size=420, show_progress=False, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    trained.save_model(str(folder))


def slow_mbart(folder: Path) -> None:
    _write(folder, "mbart", "MBartTokenizer", {"src_lang": "en_XX", "tgt_lang": "ro_RO"})
    (folder / "sentencepiece.bpe.model").write_bytes(spm())


def slow_mbart50(folder: Path) -> None:
    _write(folder, "mbart", "MBart50Tokenizer", {"src_lang": "fr_XX", "tgt_lang": "en_XX"})
    (folder / "sentencepiece.bpe.model").write_bytes(spm())


def slow_m2m100(folder: Path, *, special_languages: bool = True) -> None:
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

    languages = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    extra = {"additional_special_tokens": languages} if special_languages else {}
    _write(folder, "m2m_100", "M2M100Tokenizer", {"src_lang": "en", "tgt_lang": "fr", **extra})
    model = spm("bpe")
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    listed = sorted(set(pieces(model)) - set(special))
    del listed[17::29]
    dump(folder / "vocab.json", numbered([*special, *listed]))
    dump(folder / "special_tokens_map.json", {**SPECIALS_MAP, "bos_token": "<s>", "sep_token": "</s>", **extra})


def slow_nllb(folder: Path, *, legacy: bool = False, listed: bool = True) -> None:
    """`listed`: with the language tokens and their ids, which transformers 4 wrote since 4.34."""
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    model = spm("bpe")
    config: dict[str, object] = {"src_lang": "eng_Latn", "tgt_lang": "fra_Latn", "legacy_behaviour": legacy}
    if listed:
        named = ["<s>", "<pad>", "</s>", "<unk>"]
        behind = ["<mask>", *FAIRSEQ_LANGUAGE_CODES]
        ids = {**numbered(named), **{token: len(pieces(model)) + 1 + i for i, token in enumerate(behind)}}
        config["additional_special_tokens"] = list(FAIRSEQ_LANGUAGE_CODES)
        config["added_tokens_decoder"] = {str(value): added(token) for token, value in ids.items()}
    _write(folder, "m2m_100", "NllbTokenizer", config)
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    if listed:
        dump(folder / "added_tokens.json", {token: ids[token] for token in behind})
        dump(folder / "special_tokens_map.json", {**SPECIALS_MAP, "additional_special_tokens": behind[1:]})


def added(token: str) -> dict[str, object]:
    mask = token == "<mask>"
    return {
        "content": token,
        "lstrip": mask,
        "normalized": mask,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }


def slow_pegasus(folder: Path) -> None:
    _write(folder, "pegasus", "PegasusTokenizer", {"model_max_length": 1024, "offset": 103})
    (folder / "spiece.model").write_bytes(t5_spm())
    dump(folder / "special_tokens_map.json", {**SPECIALS_MAP, "mask_token": "<mask_2>"})


SLOW: dict[str, Callable[[Path], None]] = {
    "marian": slow_marian,
    "marian-multilingual": lambda folder: slow_marian(folder, languages=MARIAN_LANGUAGES),
    "marian-separate": lambda folder: slow_marian(folder, separate=True),
    "t5": slow_t5,
    "mt5": slow_mt5,
    "byt5": slow_byt5,
    "bart": slow_bart,
    "mbart": slow_mbart,
    "mbart50": slow_mbart50,
    "m2m100": slow_m2m100,
    "m2m100-plain-languages": lambda folder: slow_m2m100(folder, special_languages=False),
    "nllb": slow_nllb,
    "nllb-legacy": lambda folder: slow_nllb(folder, legacy=True),
    "pegasus": slow_pegasus,
}


def resaved(slow: Path, folder: Path) -> None:
    """What the installed transformers writes for the tokenizer in `slow`."""
    original(slow).save_pretrained(str(folder))
    shutil.copyfile(slow / "config.json", folder / "config.json")


def original(folder: Path) -> object:
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
