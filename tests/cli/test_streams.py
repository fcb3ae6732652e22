"""The command with streams as it may find them, and work that was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import time

import pytest
from command_line import S2S, s2s

LINE = ">>deu<< two"


def shell(line, *arguments):
    return subprocess.run(["bash", "-c", line, S2S, *map(str, arguments)], capture_output=True, timeout=200)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"$0" translate "$1" -q "$2" >&-', b"standard output is closed"),
        ('"$0" translate "$1" -q <&-', b"standard input is closed"),
        ('"$0" translate "$1" -q "$2" >/dev/full', b"No space left on device"),
        ('"$0" translate "$1" -q "$2" 2>&- >/dev/full', b""),
    ],
)
def test_a_stream_that_is_closed_or_full_is_one_sentence(number_words, line, message):
    done = shell(line, number_words, LINE)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count(b"\n") == bool(message), done.stderr


def test_a_reader_that_leaves_ends_it_quietly(number_words):
    done = shell('yes "$2" | head -2000 | "$0" translate "$1" -q | head -1', number_words, LINE)
    assert done.stdout == b"zwei\n" and done.stderr == b""


def test_a_folder_name_that_is_not_utf8(number_words, tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.symlink(number_words, folder)
    done = subprocess.run(
        [os.fsencode(S2S), b"translate", folder, LINE.encode(), b"-q"], capture_output=True, timeout=200
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"zwei\n", b"")
    done = subprocess.run([os.fsencode(S2S), b"inspect", folder + b"x"], capture_output=True, timeout=200)
    assert done.returncode == 1 and b"caf\\udce9x: no such folder" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux' limit on addresses")
@pytest.mark.parametrize("kilobytes", [350_000, 300_000, 225_000, 160_000])
def test_little_memory_is_one_sentence_or_enough(number_words, kilobytes):
    """How much is enough depends on the machine's threads; docs/reliability.md has a floor.

    In a narrow band the C library itself ends the process, with a line and a status of its own, and what ONNX Runtime
    wrote before.
    """
    done = shell(f'ulimit -v {kilobytes}; "$0" translate "$1" -q "$2"', number_words, LINE)
    if done.returncode == 0:
        assert (done.stdout, done.stderr) == (b"zwei\n", b"")
    else:
        assert done.stdout == b"" and (b"memory" in done.stderr or b"thread" in done.stderr), done.stderr
        if not (done.returncode == 127 and b"cannot allocate memory for thread-local data" in done.stderr):
            ours = [line for line in done.stderr.splitlines() if b"[W:onnxruntime" not in line]
            assert done.returncode == 1 and len(ours) == 1, done.stderr


def test_a_line_is_answered_before_the_next_is_written(number_words):
    command = [S2S, "translate", number_words, "-q"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for line, answer in ((b">>deu<< two\n", b"zwei\n"), (b">>fra<< two\n", b"deux\n")):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == answer
        process.stdin.close()
        assert process.wait(timeout=100) == 0


def test_work_that_is_killed_goes_on(number_words, tmp_path):
    lines = [{"id": n, "text": f">>deu<< {n}", "num_beams": 8} for n in range(240)]
    source, whole, torn = tmp_path / "in.jsonl", tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    s2s("generate", number_words, "--input", source, "--output", whole, "--batch-size", 4)
    process = subprocess.Popen(
        [S2S, "generate", number_words, "--input", source, "--output", torn, "--batch-size", "4"],
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (torn.exists() and torn.stat().st_size > 2000):
        time.sleep(0.01)
    process.kill()
    process.wait()
    torn.write_bytes(torn.read_bytes()[:-7])
    assert 0 < len(torn.read_bytes()) < len(whole.read_bytes())
    done = s2s("generate", number_words, "--input", source, "--output", torn, "--batch-size", 4, "--resume")
    assert "continuing after" in done.stderr
    a, b = ([json.loads(line) for line in path.read_text().splitlines()] for path in (whole, torn))
    assert [entry["id"] for entry in b] == list(range(240))
    assert [entry["outputs"][0]["token_ids"] for entry in a] == [entry["outputs"][0]["token_ids"] for entry in b]


def test_the_input_is_not_overwritten(number_words, tmp_path):
    (tmp_path / "x").write_text('{"text": "x"}\n')
    done = s2s("generate", number_words, "--input", tmp_path / "x", "--output", tmp_path / "x", status=2)
    assert "--output and --input are the same file" in done.stderr and (tmp_path / "x").read_text() == '{"text": "x"}\n'
