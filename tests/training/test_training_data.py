"""Pairs from files, the tokenizer, batches."""

from __future__ import annotations

import pytest

from s2s_export.errors import CheckpointError, TrainingError
from s2s_export.training.corpus import generate_pairs
from s2s_export.training.data import (
    Example,
    check_size,
    collate,
    cut_batches,
    encode_pairs,
    make_batches,
    read_pairs,
)
from s2s_export.training.tokenizer import EOS, Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def pairs():
    return generate_pairs(300, 1)


@pytest.fixture(scope="module")
def tokenizer(pairs):
    return Tokenizer(train_tokenizer([text for pair in pairs for text in pair], 250))


def write(tmp_path, content: bytes):
    (tmp_path / "pairs.tsv").write_bytes(content)
    return tmp_path / "pairs.tsv"


def test_lines_are_pairs(tmp_path):
    path = write(tmp_path, "\ufeffone\teins\r\ntwo \t zwei\nça\t1\u202f000 €".encode())
    assert [tuple(pair) for pair in read_pairs(path)] == [("one", "eins"), ("two", "zwei"), ("ça", "1\u202f000 €")]


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (b"a\tb\na b\n", ["line 2 has 1 column"]),
        (b"a\tb\na\tb\tc\na\tb\n", ["line 2 has 3 columns"]),
        (b"a\tb\n\nc\td\n", ["line 2 is empty"]),
        (b"a\t\n\tb\n", ["line 1 has an empty target", "line 2 has an empty source"]),
        (b"a\t \n", ["line 1 has an empty target"]),
        (b"a\tb\n\xff\xfe\tb\n", ["line 2 is not UTF-8 (byte 1"]),
        (b"x\n" * 9, ["line 1 has", "line 5 has", "and 4 more lines"]),
        (b"", ["is empty"]),
    ],
)
def test_wrong_lines_are_named(tmp_path, content, messages):
    with pytest.raises(TrainingError) as error:
        read_pairs(write(tmp_path, content))
    for message in messages:
        assert message in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(TrainingError, match="No such file"):
        read_pairs(tmp_path / "absent.tsv")


def test_text_comes_back_letter_for_letter(tokenizer, pairs):
    for pair in pairs:
        for text in pair:
            ids = tokenizer.encode(text)
            assert ids[-1] == EOS
            assert tokenizer.decode(ids) == text
            assert tokenizer.decode([1, *ids, 0, 0]) == text


def test_a_language_tag_is_one_piece(tokenizer):
    assert len(tokenizer.encode(">>deu<< 7")) - len(tokenizer.encode("7")) <= 2


def test_the_same_texts_give_the_same_tokenizer(pairs, tokenizer):
    assert train_tokenizer([text for pair in pairs for text in pair], 250) == tokenizer.model


def test_a_vocabulary_without_room_for_the_characters(pairs):
    with pytest.raises(TrainingError, match="no tokenizer of 9 pieces"):
        train_tokenizer([pair.source for pair in pairs], 9)


def test_a_damaged_tokenizer():
    with pytest.raises(CheckpointError, match="can't be read by sentencepiece"):
        Tokenizer(b"nonsense")


def test_batches_hold_each_pair_once_and_are_full(tokenizer, pairs):
    examples, fitting = encode_pairs(pairs, tokenizer, 100, 100)
    assert fitting == pairs
    batches = make_batches(examples, 400, seed=1, epoch=0)
    assert sorted(i for batch in batches for i in batch) == list(range(len(examples)))
    sizes = []
    for rows in batches:
        batch = collate([examples[i] for i in rows], 0, 1)
        sizes.append(batch.input_ids.numel() + batch.labels.numel())
    assert max(sizes) <= 400
    used = sum(len(example.source) + len(example.target) for example in examples)
    assert used / sum(sizes) > 0.8  # pairs of similar length are together, so that little is padding


def test_order_depends_on_seed_and_epoch_alone(tokenizer, pairs):
    examples, _ = encode_pairs(pairs, tokenizer, 100, 100)
    orders = [make_batches(examples, 400, seed, epoch) for seed, epoch in [(1, 0), (1, 0), (1, 1), (2, 0)]]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] and orders[0] != orders[3]


def test_a_pair_above_the_size_is_a_batch_by_itself():
    examples = [Example([3] * 2, [3] * 2), Example([3] * 50, [3] * 50), Example([3] * 2, [3] * 2)]
    assert cut_batches(examples, [0, 1, 2], 20) == [[0], [1], [2]]


def test_long_pairs_are_left_out(tokenizer, pairs):
    examples, fitting = encode_pairs(pairs, tokenizer, 12, 12)
    assert 0 < len(examples) == len(fitting) < len(pairs)
    assert max(len(example.source) for example in examples) == 12
    assert max(len(example.target) for example in examples) == 11  # and the token it starts from


def test_what_a_batch_holds():
    batch = collate([Example([5, 6, 2], [7, 2]), Example([8, 2], [9, 10, 2])], pad=0, bos=1)
    assert batch.input_ids.tolist() == [[5, 6, 2], [8, 2, 0]]
    assert batch.source_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.decoder_input_ids.tolist() == [[1, 7, 0], [1, 9, 10]]
    assert batch.labels.tolist() == [[7, 2, 0], [9, 10, 2]]


def test_a_corpus_smaller_than_a_batch():
    with pytest.raises(TrainingError, match=r"found 2 training pairs of 6 tokens together.*100.*--batch-tokens"):
        check_size([Example([5, 2], [2]), Example([5, 2], [2])], 100)
