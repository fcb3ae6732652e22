"""Every command through its real entry point: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import run_here

S2S = Path(sys.executable).with_name("s2s")
MODEL = Path(__file__).parents[2] / "examples" / "models" / "number-words"
TEST_SET = Path(__file__).parents[2] / "examples" / "data" / "number-words.test.tsv"


def s2s(*arguments, stdin=None, check=None):
    done = subprocess.run([S2S, *map(str, arguments)], input=stdin, capture_output=True, timeout=300)
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in done.stderr, done.stderr
    if check is not None:
        assert done.returncode == check, done.stderr
    return done


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """The shipped translator, exported."""
    path = tmp_path_factory.mktemp("numbers") / "bundle"
    done = s2s("export", MODEL, path, check=0)
    assert done.stdout.strip() == str(path)
    assert done.stderr.count("ok") >= 6, "the error of every output is printed"
    return path


def test_translate_arguments_lines_scores_and_json(numbers):
    texts = [">>deu<< twenty-one", ">>fra<< twenty-one"]
    assert run_here("translate", numbers, *texts)[0] == "einundzwanzig\nvingt et un\n"
    from_stdin = s2s("translate", numbers, stdin="\n".join(texts).encode(), check=0)
    assert from_stdin.stdout == "einundzwanzig\nvingt et un\n"
    scored = run_here("translate", numbers, texts[0], "--scores", "--num-return-sequences", 2)[0].splitlines()
    assert len(scored) == 2 and scored[0].split("\t")[1] == "einundzwanzig"
    assert float(scored[0].split("\t")[0]) >= float(scored[1].split("\t")[0])
    record = json.loads(run_here("translate", numbers, texts[0], "--json", "--num-beams", 1)[0])
    assert record["outputs"][0]["text"] == "einundzwanzig"
    assert run_here("translate", numbers, "twenty-one", "--target-lang", "fra")[0] == "vingt et un\n"
    assert s2s("translate", numbers, texts[1], "--stream", check=0).stdout == "vingt et un\n"


@pytest.mark.matrix
def test_the_shipped_model_translates_its_test_set(numbers):
    pairs = [line.split("\t") for line in TEST_SET.read_text(encoding="utf-8").splitlines()[:200]]
    out = s2s("translate", numbers, stdin="\n".join(source for source, _ in pairs).encode(), check=0).stdout
    right = sum(a == b for a, (_, b) in zip(out.splitlines(), pairs, strict=True))
    assert right >= 0.95 * len(pairs)


def test_from_a_file_into_a_file(numbers, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbf>>deu<< twenty-one\r\n\r\n>>fra<< two\r\n")
    done = s2s("translate", numbers, "--input", tmp_path / "in.txt", "--output", tmp_path / "new" / "out.txt", check=0)
    assert done.stdout == "" and (tmp_path / "new" / "out.txt").read_text() == "einundzwanzig\n\ndeux\n"
    hint = s2s("translate", numbers, tmp_path / "in.txt", "--max-new-tokens", 2, check=0).stderr
    assert f"for the lines of that file: --input {tmp_path / 'in.txt'}" in hint
    assert "found TEXT and --input" in s2s("translate", numbers, "x", "--input", tmp_path / "in.txt", check=2).stderr


def test_lines_that_fail_do_not_take_the_others_with_them(numbers):
    long = " ".join(["twenty"] * 400)
    stdin = b">>deu<< twenty-one\n\n\xff\xfe\n" + f">>deu<< {long}\n".encode() + b">>fra<< two\n"
    done = s2s("translate", numbers, stdin=stdin, check=1)
    assert done.stdout == "einundzwanzig\n\n\n\ndeux\n"
    assert "line 2" not in done.stderr
    assert "line 3:" in done.stderr and "UTF-8" in done.stderr
    assert "line 4:" in done.stderr and "tokens, but the model allows" in done.stderr


def test_windows_text_is_read_as_any_other(numbers):
    """A byte-order mark would stand before the language token, a carriage return behind the last word."""
    stdin = b"\xef\xbb\xbf>>deu<< twenty-one\r\n>>fra<< two\r\n"
    assert s2s("translate", numbers, stdin=stdin, check=0).stdout == "einundzwanzig\ndeux\n"


def test_blank_lines_come_out_blank(numbers):
    stdin = b"\xef\xbb\xbf\r\n>>deu<< two\n \t\n\n>>fra<< two"
    done = s2s("translate", numbers, "--quiet", stdin=stdin, check=0)
    assert (done.stdout, done.stderr) == ("\nzwei\n\n\ndeux\n", "")
    assert s2s("translate", numbers, "--stream", stdin=stdin, check=0).stdout == "\nzwei\n\n\ndeux\n"
    lines = s2s("translate", numbers, "--num-return-sequences", 2, stdin=b"\n>>deu<< two\n", check=0).stdout.split("\n")
    assert lines[:3] == ["", "", "zwei"] and len(lines) == 5
    out = s2s("translate", numbers, "--json", stdin=stdin, check=0).stdout.splitlines()
    assert [len(json.loads(line)["outputs"]) for line in out] == [0, 1, 0, 0, 1]
    assert s2s("translate", numbers, "", check=0).stdout == "\n"


def test_a_byte_order_mark_before_json_lines(numbers, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"text": ">>deu<< two"}\r\n{"text": ">>fra<< two"}\r\n')
    s2s("generate", numbers, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", check=0)
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [entry["outputs"][0]["text"] for entry in out] == ["zwei", "deux"]


def test_a_long_source_is_cut_only_when_asked(numbers):
    long = ">>deu<< " + " ".join(["twenty"] * 400)
    assert s2s("translate", numbers, long, check=1).stdout == "\n"
    assert s2s("translate", numbers, long, "--truncate", "--max-new-tokens", 5, check=0).stdout.strip()


def test_generate_reports_line_by_line(numbers, tmp_path):
    cases = [
        {"id": "a", "text": ">>deu<< twenty-one"},
        {"id": 2, "input_ids": [5, 6, 0], "num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4},
        {"id": "c", "text": "x", "num_beems": 3},
        {"id": "d", "input_ids": [10**6]},
        {"id": "e"},
        {"id": "f", "audio": "x.wav"},
        {"id": "g", "text": "x", "num_beams": 2, "num_return_sequences": 5},
    ]
    lines = [json.dumps(case) for case in cases] + ["", "{", "[]"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    done = s2s("generate", numbers, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", check=1)
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["id"] for entry in out] == ["a", 2, "c", "d", "e", "f", "g", "8", "9", "10"]
    assert out[0]["outputs"][0]["text"] == "einundzwanzig" and out[0]["backend"] == "onnxruntime"
    assert len(out[1]["outputs"]) == 3 and all(len(o["token_ids"]) <= 5 for o in out[1]["outputs"])
    assert "did you mean 'num_beams'" in out[2]["error"]
    assert "1000000" in out[3]["error"]
    assert "expected exactly one of" in out[4]["error"]
    assert "audio" in out[5]["error"]
    assert "num_return_sequences" in out[6]["error"]
    assert "is empty" in out[7]["error"] and "not JSON" in out[8]["error"] and "list" in out[9]["error"]
    assert "8 of 10 lines failed" in done.stderr


def test_verify_inspect_doctor(numbers):
    verified, _ = run_here("verify", numbers, "--checkpoint", MODEL)
    assert "tokens (num_beams=4" in verified and "OUTSIDE" not in verified
    report = json.loads(run_here("verify", numbers, "--checkpoint", MODEL, "--json")[0])
    assert report["is_close"] is True
    assert "marian" in run_here("inspect", numbers)[0]
    assert json.loads(run_here("inspect", numbers, "--json")[0])["family"] == "marian"
    doctor = json.loads(s2s("doctor", "--json", check=0).stdout)
    assert doctor["backends"]["onnxruntime"] is None


def test_verify_fails_for_another_checkpoint(numbers, exported):
    run_here("verify", numbers, "--checkpoint", exported("marian")[0], status=1)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nonsense"], 2, "unknown command 'nonsense'"),
        (["translate"], 2, "Missing argument"),
        (["translate", "BUNDLE", "x", "--num-beems", "2"], 2, "--num-beams"),
        (["translate", "BUNDLE", "x", "--num-beams", "two"], 2, "not a valid integer"),
        (["translate", "BUNDLE", "x", "--num-beams", "0"], 2, "num_beams"),
        (["translate", "BUNDLE", "x", "--target-lang", "deutsch"], 2, "did you mean 'deu'"),
        (["translate", "BUNDLE", "x", "--backend", "onnxrumtime"], 2, "did you mean 'onnxruntime'"),
        (["translate", "BUNDLE", "x", "--alignments", "a.xyz"], 2, "expected .json"),
        (["translate", "no-such-bundle", "x"], 1, "no such folder"),
        (["export", "no-such-checkpoint", "out"], 1, "no such folder"),
        (["generate", "BUNDLE", "--input", "no-such-file", "--output", "o"], 2, "No such file"),
        (["build", "BUNDLE", "--target", "cpu-fp23"], 2, "did you mean 'cpu-fp32'"),
    ],
)
def test_mistakes_are_one_sentence(numbers, tmp_path, arguments, status, message):
    arguments = [str(numbers) if a == "BUNDLE" else a for a in arguments]
    done = subprocess.run([S2S, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == status, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_alignments_are_written(numbers, tmp_path):
    s2s("translate", numbers, ">>deu<< twenty-one", "--alignments", tmp_path / "a.json", check=0)
    (record,) = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert len(record["weights"]) == len(record["target_tokens"])
    assert all(len(row) == len(record["source_tokens"]) for row in record["weights"])
    s2s("translate", numbers, ">>deu<< twenty-one", "--alignments", tmp_path / "a.png", check=0)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_during_an_export_leaves_nothing_and_keeps_the_old_bundle(numbers, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(numbers, bundle)
    before = (bundle / "manifest.json").read_bytes()
    process = subprocess.Popen([S2S, "export", MODEL, bundle, "--force"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if any(path.name.startswith(".bundle.") for path in tmp_path.iterdir()):
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.005)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and b"interrupted" in stderr and b"Traceback" not in stderr
    assert (bundle / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_reader_that_stops_reading_is_no_error_message(numbers):
    lines = b">>deu<< one\n" * 50
    process = subprocess.Popen([S2S, "translate", numbers], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)  # fmt: skip
    process.stdout.close()
    _, stderr = process.communicate(lines, timeout=120)
    assert b"Traceback" not in stderr and b"Exception" not in stderr
