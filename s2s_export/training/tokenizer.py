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
CHARACTERS_PER_PIECE = 500  # 2000 pieces for a million characters, about 100,000 words of each side as in 1905.11901
FEWEST_PIECES = 64  # beside those of single characters
LONGEST_LINE = 65536  # bytes; sentencepiece ignores longer lines


def fitting_size(texts: Iterable[str], largest: int) -> int:
    """A number of pieces that these texts can teach: one for every CHARACTERS_PER_PIECE characters, up to `largest`.

    Of few texts a large vocabulary keeps pieces that hardly occur, whose embeddings are learned from a few examples
    each; a smaller one translates better (Sennrich and Zhang 2019, 1905.11901). Every character has its piece.
    """
    texts = list(texts)
    tags = {match.group() for text in texts if (match := TAG.match(text))}
    n_single = len(set("".join(texts))) + len(tags) + UNK + 2  # special tokens and the mark of a space
    return min(largest, max(sum(map(len, texts)) // CHARACTERS_PER_PIECE, n_single + FEWEST_PIECES))


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
