"""One bad line never costs another its output: what a line may hold, and what may go wrong while it is decoded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import s2s_export
from s2s_export.errors import BackendError, InvalidOption
from s2s_export.runtime import cases, free_memory, memory, results

MODEL = Path(__file__).parents[2] / "examples" / "models" / "number-words"
GOOD = b'{"id": "good", "text": ">>deu<< twenty-one"}'


class Panic(BaseException):
    """What a library in Rust raises: no Exception."""


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    path = tmp_path_factory.mktemp("numbers") / "bundle"
    s2s_export.export(MODEL, path)
    return s2s_export.load(path, threads=1)


def decode(session, lines, **options):
    found = [cases.read_case(session, line, number) for number, line in enumerate(lines, 1)]
    written = [cases.to_json(result).encode("utf-8") for result in cases.decode_cases(session, found, **options)]
    return [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in written]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"self": 1, "text": "x"}', "unknown generation option 'self'"),
        (b'{"text": "x", "target_lang": 0}', "'target_lang' is int; expected the code"),
        (b"[" * 2000, "nested too deeply"),
        (
            b'{"input_ids": [5], "source_lang": "eng"}',
            "'source_lang' says what becomes of a text, but the line has 'inp",
        ),
        (b'{"input_ids": [5], "template": "a {text}"}', "'template' says what becomes of a text, .*; leave it out"),
        (b'{"text": "x", "temperature": 1e400, "do_sample": true}', "temperature is inf, expected a finite number"),
        (b'{"text": "x", "num_beams": 1%s}' % (b"0" * 21), "num_beams is 1000000000000000000000, .* lower num_beams"),
        (b'{"text": "x", "num_beams": 1000000000}', "of memory, but .* GiB are free; lower num_beams"),
        (b'{"id": NaN, "text": "x"}', "NaN is not a number in JSON"),
        (b'{"id": 1e400, "text": "x"}', "'id' can't be written as JSON"),
        (b'{"id": ' + b"[" * 400 + b"]" * 400 + b', "text": "x"}', "nested more than 20 deep"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
        (b'{"text": "x", "num_beams": "%s"}' % (b"9" * 9000), r"num_beams is '999.* \.\.\. "),
        (b'{"text": "x", "%s": 1}' % (b"n" * 9000), "unknown generation option"),
    ],
)
def test_a_bad_line_is_told_and_its_neighbours_come_out(session, line, message):
    before, bad, after = decode(session, [GOOD, line, GOOD])
    assert before == after and before["outputs"][0]["text"] == "einundzwanzig"
    assert bad["id"] == "2"
    assert re.search(message, bad["error"])
    assert len(bad["error"]) <= 600 and "\n" not in bad["error"]


def test_an_id_comes_back_as_it_was(session):
    names = ["\ud800", "é", 7, 7.5, None, True, ["a", {"b": 1}], ""]
    found = decode(session, [json.dumps({"id": name, "text": "x", "max_new_tokens": 1}).encode() for name in names])
    assert [entry["id"] for entry in found] == names and all("outputs" in entry for entry in found)


@pytest.mark.parametrize(
    "error", [Panic("rust"), MemoryError(), RecursionError(), OverflowError("C long"), KeyError(3)]
)
def test_an_output_that_can_not_be_spelled_is_an_error_of_its_line(session, monkeypatch, error):
    spell = session._tokenizer.decode

    def decode_text(ids, **options):
        if spell(ids, **options) == "deux":
            raise error
        return spell(ids, **options)

    monkeypatch.setattr(session._tokenizer, "decode", decode_text)
    lines = [b'{"text": ">>fra<< two"}' if number == 5 else GOOD for number in range(9)]
    found = decode(session, lines)
    assert ["error" in entry for entry in found] == [number == 5 for number in range(9)]
    assert type(error).__name__ in found[5]["error"] or "memory" in found[5]["error"] or "nested" in found[5]["error"]


def test_who_wants_to_stop_is_obeyed_and_what_is_done_was_told(session, monkeypatch):
    run = session.searcher.decode

    def search(batch, *rest, **options):
        if len(batch[0]) < 4:
            raise KeyboardInterrupt
        return run(batch, *rest, **options)

    monkeypatch.setattr(session.searcher, "decode", search)
    found = [cases.read_case(session, line, 1) for line in (GOOD, b'{"text": "x"}')]
    assert len(found[0].source) >= 4 > len(found[1].source)
    told = cases.decode_cases(session, found, batch_size=1)
    assert next(told)["id"] == "good"
    with pytest.raises(KeyboardInterrupt):
        next(told)


def test_few_batches_are_tried_again_for_one_guilty_source(session, monkeypatch):
    run, calls = session.searcher.decode, []

    def search(batch, *rest, **options):
        calls.append(len(batch))
        if [7, 7, 0] in batch:
            raise BackendError("this one")
        return run(batch, *rest, **options)

    monkeypatch.setattr(session.searcher, "decode", search)
    sources = [[5, 6, 0]] * 100 + [[7, 7, 0]] + [[5, 6, 0]] * 155
    found = dict(cases.decode_each(session, sources, session.options(max_new_tokens=2, num_beams=1), batch_size=16))
    assert found[100] == "this one" and sum(isinstance(outcome, str) for outcome in found.values()) == 1
    assert len(found) == 256 and len(calls) < 16 + 3 * 9


def test_windows_change_no_result_of_sampling(session, monkeypatch):
    line = (
        b'{"text": ">>deu<< twenty-one", "do_sample": true, "num_beams": 1, "seed": 3, "temperature": 5.0, "top_k": 0}'
    )
    whole = decode(session, [line] * 12)
    assert len({json.dumps(entry["outputs"]) for entry in whole}) > 1
    monkeypatch.setattr(cases, "WINDOW", 1)
    assert decode(session, [line] * 12, batch_size=5) == whole
    rest = decode(session, [line] * 12, batch_size=5, n_skipped=7)
    assert rest == whole[7:]


def test_a_window_comes_out_before_the_next_is_read(session, monkeypatch):
    monkeypatch.setattr(cases, "WINDOW", 2)

    def lines():
        yield cases.read_case(session, GOOD, 1)
        yield cases.read_case(session, GOOD, 2)
        raise AssertionError("the third line was read too early")

    told = cases.decode_cases(session, lines(), batch_size=1)
    assert [next(told)["id"], next(told)["id"]] == ["good", "good"]


def test_a_score_that_is_no_number_is_null():
    line = cases.to_json({"id": "é", "outputs": [{"score": float("-inf"), "token_ids": [1]}]})
    assert line == '{"id": "é", "outputs": [{"score": null, "token_ids": [1]}]}'


def test_memory_that_is_there_is_not_refused(session, monkeypatch):
    monkeypatch.setattr(free_memory, "available", lambda: 1 << 40)
    memory.check(session.bundle, 16, session.options(num_beams=1000))
    monkeypatch.setattr(free_memory, "available", lambda: None)
    memory.check(session.bundle, 16, session.options(num_beams=10**9))


def write(path, *found, tail=b""):
    path.write_bytes(b"".join(json.dumps(entry).encode() + b"\n" for entry in found) + tail)


@pytest.mark.parametrize("tail", [b"", b'{"id": "c", "outp', b"\0\0\0\0\n", b'{"id": "c", "error": "\xc3'])
def test_resuming_cuts_a_torn_last_line(tmp_path, tail):
    path = tmp_path / "out.jsonl"
    a, b, c = ({"id": name, "error": "é"} for name in "abc")
    write(path, a, b, tail=tail)
    with results.Results(str(path), ["a", "b", "c"]) as file:
        assert file.done == [a, b]
        file.write(c)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [a, b, c]


@pytest.mark.parametrize(
    ("found", "ids", "message"),
    [
        ([{"id": "x", "error": ""}], ["a"], "line 1 has the id 'x', expected the input's, 'a'"),
        ([{"id": "a", "error": ""}, {"id": "b", "error": ""}], ["a"], "line 2 is there, expected no more lines"),
        ([{"id": "a"}], ["a"], "line 1 is no result"),
        ([{"id": True, "error": ""}], [1], "has the id True"),
    ],
)
def test_a_file_of_other_work_is_not_gone_on_with(tmp_path, found, ids, message):
    path = tmp_path / "out.jsonl"
    write(path, *found)
    before = path.read_bytes()
    with pytest.raises(InvalidOption, match=message):
        results.Results(str(path), ids)
    assert path.read_bytes() == before


def test_results_go_where_a_link_points(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with results.Results(str(tmp_path / "link")) as file:
        file.write({"id": "a", "error": ""})
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b'{"id": "a", "error": ""}\n'
