"""A subword tokenizer, trained on the data with sentencepiece: one vocabulary for source and target.

Unigram language model (Kudo 2018, arXiv 1804.10959). Text is not normalized, so that every text can be reproduced
exactly: NFKC, for example, would turn the narrow space in French numbers into an ordinary one. Ids: 0 padding, 1
beginning, 2 end, 3 unknown, then the pieces.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence

import sentencepiece

from ..errors import CheckpointError, TrainingError

PAD, BOS, EOS, UNK = range(4)
TAG = re.compile(r"^>>\w+<<")  # the target language's tag at the beginning of a source; always a single piece
LONGEST_LINE = 65536  # bytes; sentencepiece ignores longer lines


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """A tokenizer.model of at most `vocab_size` pieces; fewer if the texts don't have so many. Raises TrainingError."""
    texts = list(texts)
    tags = sorted({match.group() for text in texts if (match := TAG.match(text))})
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            split_digits=True,
            user_defined_symbols=tags,
            max_sentence_length=LONGEST_LINE,
            num_threads=1,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TrainingError(
            f"no tokenizer of {vocab_size} pieces can be trained on {len(texts)} texts: {str(error).strip()}; "
            "expected room for every character; choose another --vocab-size, or give more data"
        ) from error
    return model.getvalue()


class Tokenizer:
    """Converts text to ids and back with a tokenizer.model. Raises CheckpointError if its bytes are not one."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise CheckpointError(
                f"tokenizer.model can't be read by sentencepiece ({str(error).strip()}); restore it, or train again"
            ) from error

    @property
    def size(self) -> int:
        """V."""
        return self._processor.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, followed by the end token."""
        return [*self._processor.encode(text), EOS]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids up to the first end token; other special tokens add nothing."""
        ids = list(ids)
        if EOS in ids:
            ids = ids[: ids.index(EOS)]
        return self._processor.decode([i for i in ids if i not in (PAD, BOS)])
