"""`s2s bench` through the command line, on tiny models: the table, the record, the page, and who can't take part."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import run_here, s2s

from s2s_export import bundle
from s2s_export.errors import InvalidOption
from s2s_export.measuring.bench import noise, record, work
from s2s_export.measuring.bench.contestants import Choice, modules, ours, peers
from s2s_export.measuring.bench.page import render_page
from s2s_export.measuring.bench.table import render

WORK = ["--source-lengths", "6", "--new-tokens", "5", "--repeats", "2"]


@pytest.fixture(scope="module")
def folders(exported) -> tuple[Path, Path]:
    """A checkpoint and its bundle."""
    return exported("t5")


@pytest.fixture(scope="module")
def measured(folders, tmp_path_factory) -> dict:
    """One run over ourselves and transformers, and what it printed and wrote."""
    checkpoint, path = folders
    out = tmp_path_factory.mktemp("out")
    done = s2s(
        "bench", path, "--checkpoint", checkpoint, "--batch-sizes", "1,2", "--num-beams", "2", *WORK,
        "--peers", "transformers,ctranslate2", "--json", out / "r.json", "--html", out / "r.html", "-q",
    )  # fmt: skip
    return {
        "stdout": done.stdout,
        "record": json.loads((out / "r.json").read_text()),
        "page": (out / "r.html").read_text(),
    }


def test_record_holds_every_measurement(measured) -> None:
    found = measured["record"]
    assert (found["format"], found["format_version"]) == (record.FORMAT, record.FORMAT_VERSION)
    assert found["machine"]["cores"] >= 1
    assert found["packages"]["onnxruntime"]
    results = [r for r in found["results"] if r["label"] == "s2s portable"]
    assert [(r["batch_size"], r["num_beams"], r["new_tokens"]) for r in results] == [(1, 2, 5), (2, 2, 5)]
    for result in found["results"]:
        assert result["n_calls"] == 2
        for name in ("first_token", "step", "sentence"):
            assert result[name]["min"] <= result[name]["p50"] <= result[name]["p99"] <= result[name]["max"]
        assert result["tokens_per_second"] == pytest.approx(result["batch_size"] * 5 / result["sentence"]["p50"])
        assert result["peak_memory"] > 10 * 2**20
    assert all(r["encoder"]["p50"] > 0 and r["steps"]["p50"] > 0 for r in results)


def test_nothing_to_measure_is_said_at_once(folders) -> None:
    out, err = run_here("bench", folders[1], "--targets", "cpu-int8", "--peers", "ctranslate2", *WORK, status=1)
    assert "round" not in err
    assert "s2s cpu-int8: not built" in out
    assert err.splitlines()[-1].startswith("s2s: nothing was measured: no system")


def test_tokens_are_those_of_transformers(measured) -> None:
    found = measured["record"]
    assert found["settings"]["reference"] == "transformers generate"
    ours_ = [r for r in found["results"] if r["label"] == "s2s portable"]
    assert [(r["equal_sentences"], r["equal_tokens"]) for r in ours_] == [(1.0, 1.0), (1.0, 1.0)]


def test_floor_is_measured(measured) -> None:
    bandwidth = measured["record"]["bandwidth"]
    assert bandwidth["parameters"] > 1000
    for floor in bandwidth["floors"]:
        assert floor["step_seconds"] == pytest.approx(floor["bytes"] / floor["bytes_per_second"])
    assert all(result["floor_share"] > 0 for result in measured["record"]["results"] if result["step"]["p50"] > 0)


def test_table_has_every_contestant(measured) -> None:
    text = measured["stdout"]
    assert "batch 2, 2 beams, source 6, 5 new tokens, 1 thread" in text
    for entry in measured["record"]["contestants"]:
        assert entry["label"] in text
        if entry["reason"]:
            assert f"{entry['label']}: {entry['reason']}" in text
    assert text.rstrip("\n") == render(measured["record"])


def test_who_is_not_installed_says_so(measured) -> None:
    absent = {e["label"]: e["reason"] for e in measured["record"]["contestants"] if e["reason"]}
    assert "s2s tensorrt" in absent
    for label, package in (("CTranslate2 float32", "ctranslate2"), ("optimum-onnx", "optimum")):
        if label in absent:
            assert package in absent[label] and "pip install" in absent[label]
    assert all(len(reason.splitlines()) == 1 for reason in absent.values())


def test_page_opens_without_a_network(measured) -> None:
    page = measured["page"]
    assert page == render_page(measured["record"])
    assert "<svg" in page and "Latency against batch" in page and "Throughput against latency" in page
    assert 'class="floor"' in page
    assert not re.search(r"(src|href)\s*=|https?://|@import|url\(", page)


def test_file_is_translated(folders, tmp_path) -> None:
    sources = tmp_path / "sources.jsonl"
    sources.write_text("".join(json.dumps({"input_ids": [*range(3, 4 + i % 7), 1]}) + "\n" for i in range(9)))
    done = s2s("bench", folders[1], "--file", sources, "--max-new-tokens", 6, "--num-beams", 2, "--repeats", 2,
                   "--peers", "", "--json", "-", "-q")  # fmt: skip
    found = json.loads(done.stdout)["file"]
    assert (found["n_sentences"], found["shortest"], found["longest"]) == (9, 2, 8)
    (result,) = found["results"]
    assert result["seconds"]["p50"] > 0 and result["n_tokens"] > 0
    assert {"threads", "workers", "batch_size"} <= set(result["setting"])


def test_wrong_requests_are_usage_errors(folders) -> None:
    for arguments, words in (
        (["--peers", "ctranslate3"], "did you mean 'ctranslate2'?"),
        (["--backends", "onnxruntim"], "did you mean"),
        (["--batch-sizes", "1,x"], "comma-separated"),
        (["--batch-sizes", "0"], "--batch-sizes is 0"),
        (["--new-tokens", "1"], "--new-tokens is 1"),
        (["--peer-python", "optimum"], "PEER=PYTHON"),
        (["--checkpoint", "/nowhere"], "--checkpoint is /nowhere"),
        (["--file", "/nowhere"], "/nowhere: no such file"),
        (["--json", "/no/where/x.json"], "its folder does not exist"),
    ):
        assert words in run_here("bench", folders[1], *arguments, "-q", status=2)[1], arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "missing BUNDLE; or --shape NAME"),
        (["--shape", "tinny"], "unknown shape 'tinny'; did you mean 'tiny'?"),
        (["BUNDLE", "--shape", "tiny"], "found BUNDLE and --shape"),
        (["--shape", "tiny", "--checkpoint", "x"], "leave --checkpoint out"),
    ],
)
def test_a_shape_stands_for_a_bundle(folders, arguments, words) -> None:
    given = [str(folders[1]) if argument == "BUNDLE" else argument for argument in arguments]
    assert words in run_here("bench", *given, "-q", status=2)[1]


@pytest.mark.slow
def test_a_model_is_made_for_the_run() -> None:
    given = ["--shape", "tiny", "--targets", "cpu-int8", "--peers", "", *WORK]
    found = json.loads(run_here("bench", *given, "-q", "--json", "-")[0])
    assert {result["label"] for result in found["results"]} == {"s2s cpu-int8"}


def test_missing_target_is_a_reason(folders) -> None:
    found = ours.entries(bundle.read(folders[1]), Choice(("onnxruntime",), ("portable", "cpu-int8")))
    assert [entry.label for entry in found if entry.reason is None] == ["s2s portable"]
    assert [entry.reason for entry in found if entry.reason is not None] == [
        f"not built: s2s build {folders[1]} --target cpu-int8"
    ]


def test_contestants_are_found_by_listing() -> None:
    assert set(peers()) == {"ctranslate2", "marian", "openvino", "optimum", "torch-compile", "transformers"}
    for module in modules().values():
        assert callable(module.entries) and callable(module.open) and module.settings(2)


def test_work_respects_the_limits(folders) -> None:
    opened = bundle.read(folders[1])
    sources = work.random_sources(opened, 3, 6)
    assert [len(source) for source in sources] == [6, 6, 6]
    assert all(source[-1] == 1 and 1 not in source[:-1] and 0 not in source for source in sources)
    with pytest.raises(InvalidOption, match="--new-tokens is 1"):
        work.grid(opened, [1], [1], [6], 1)


def test_noise_is_flagged() -> None:
    def call(wall: float, cpu: float) -> dict:
        return {"wall": wall, "cpu": cpu}

    assert noise.flags([call(1.0, 0.99), call(1.01, 1.0), call(1.02, 1.01)], None) == []
    assert noise.flags([call(1.0, 1.0), call(1.4, 1.4), call(2.0, 2.0)], None) == ["spread 36%"]
    assert noise.flags([call(1.0, 0.7)] * 3, {"others": 0.4, "stolen": 0.0}) == ["waited 30%", "others 40%"]


def test_agreement_counts_sentences_and_tokens() -> None:
    assert record.agreement([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == (0.5, 0.75)
    assert record.agreement([[1]], [[1, 2]]) == (0.0, 0.5)
