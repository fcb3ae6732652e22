"""scripts/gpu_check: without a GPU one sentence; with one (here: the CPU in its place) results, whatever fails."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import inspect
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import FakeDevice

from s2s_export import plugin_sources, recipes
from s2s_export.errors import BackendUnavailable, BuildError
from s2s_export.measuring import gpu_check
from s2s_export.measuring.bench import run as bench_run
from s2s_export.measuring.bench.contestants import OURS
from s2s_export.measuring.gpu_check import (
    attention,
    child,
    command,
    decodes,
    native,
    parts,
    plan,
    products,
    report,
    rules_check,
    run,
    sanitizers,
    targets,
    times,
)
from s2s_export.measuring.gpu_check import search_check as check
from s2s_export.runtime.backends import onnxruntime_cuda as cuda
from s2s_export.runtime.backends import tensorrt_rtx
from s2s_export.runtime.cuda import device as device_cuda
from s2s_export.runtime.cuda import driver as memory
from s2s_export.runtime.cuda.emulation import HostDevice
from s2s_export.runtime.session import Session

SCRIPT = Path(gpu_check.__file__).parents[3] / "scripts" / "gpu_check"


@pytest.mark.skipif(memory.unavailable() is None, reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    out = subprocess.run([SCRIPT, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert out.stdout == ""
    assert out.stderr.strip().endswith("nothing was checked")
    assert len(out.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


class HostAttention(HostDevice):
    """The emulation with the kernels of another folder."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        loaded = ctypes.CDLL(str(plugin_sources.module("build").host_library(folder)))
        self._kernel: Any = getattr(loaded, f"s2s_{folder}_by_name")

    def _run(self, launch: Any, given: ctypes.Structure) -> None:
        grid = (ctypes.c_uint32 * 3)(*launch.grid)
        assert self._kernel(launch.kernel.encode(), ctypes.byref(given), grid, launch.threads) == 0


def in_this_process(part: plan.Part, file: Path) -> dict[str, Any]:
    return child.call(part.function, part.arguments, file)


def torch_on_the_cpu(opened: Any, search: str) -> Session:
    from s2s_export.runtime.backends._torch_step import TorchDeviceBackend

    return Session(opened, TorchDeviceBackend(opened, HostDevice(), "cpu"), search=search)


def onnxruntime_on_the_cpu(opened: Any, search: str) -> Session:
    backend = cuda.OnnxRuntimeCudaBackend(opened, opened.path, opened.manifest["graphs"], device="cpu")
    return Session(opened, backend, search=search)


def declare(monkeypatch, backend, **changes):
    """Changes what a backend's file declares."""
    monkeypatch.setattr(backend, "BACKEND", dataclasses.replace(backend.BACKEND, **changes))


@pytest.fixture
def pretended(monkeypatch):
    """The CPU in the place of a GPU that ONNX Runtime serves, and little to measure."""
    monkeypatch.setattr(memory, "unavailable", lambda: None)
    monkeypatch.setattr(memory, "device", FakeDevice)
    declare(
        monkeypatch,
        cuda,
        unavailable=lambda: None,
        open=lambda b, target, threads=None: cuda.OnnxRuntimeCudaBackend(b, *cuda._choose(b, target), device="cpu"),
    )
    monkeypatch.setattr(device_cuda, "CudaDevice", HostDevice)
    monkeypatch.setattr(device_cuda, "shared", HostDevice)
    for name, opens in (("TORCH", torch_on_the_cpu), ("ONNXRUNTIME", onnxruntime_on_the_cpu)):
        contestants = [dataclasses.replace(one, open=opens) for one in getattr(decodes, name)]
        monkeypatch.setattr(decodes, name, contestants)
    monkeypatch.setattr(decodes, "SEARCHES", {"4 beams": {"num_beams": 4, "num_return_sequences": 2}})
    for name, value in (("N_SOURCES", 2), ("N_TOKENS", 6), ("SOURCE_LENGTH", 5), ("FEW_TOKENS", 2), ("MANY_TOKENS", 4)):
        monkeypatch.setattr(decodes, name, value)
    monkeypatch.setattr(attention, "LAUNCHES", 2)
    monkeypatch.setattr(parts, "PEERS", ())
    monkeypatch.setattr(parts, "LOOPS", ("device",))
    monkeypatch.setattr(times, "LAUNCHES", 3)
    monkeypatch.setattr(native, "FEW_CASES", 1)
    monkeypatch.setattr(native, "launch_us", lambda device, stream, queue, n: times.launch_us(device, stream, queue, 1))
    monkeypatch.setattr(times, "N_TOKENS", 3)
    monkeypatch.setattr(times, "VOCABULARIES", {"tiny": 90})
    monkeypatch.setattr(times, "BEAMS", (1, 2))
    monkeypatch.setattr(times, "bandwidth", functools.partial(times.bandwidth, n_bytes=1 << 16))
    monkeypatch.setattr(check, "agree", lambda device, n, modes: {"cases": n, "different": []})
    monkeypatch.setattr(sanitizers, "run", lambda folder, save: save({"memcheck, search": {"status": 0}}))
    monkeypatch.setattr(attention, "on_gpu", HostAttention)
    monkeypatch.setattr(rules_check, "agree", functools.partial(rules_check.agree, vocabulary_sizes=(40,)))
    monkeypatch.setattr(parts, "SEARCHES", {"beam 2": {"num_beams": 2}})
    monkeypatch.setattr(parts, "N_SOURCES", 2)
    monkeypatch.setattr(parts, "N_TOKENS", 6)
    monkeypatch.setattr(products, "FEW_SHAPES", ((40, 32, 48), (70, 64, 16)))
    monkeypatch.setattr(products, "LAUNCHES", 2)


def unmeasured(path: str, *rest: Any, **named: Any) -> dict[str, Any]:
    """What `s2s bench` finds where the processes that it starts have no GPU."""
    entry = {"label": "s2s cuda-fp16 device", "contestant": OURS, "precision": "fp16", "reason": "no GPU"}
    return {"contestants": [entry], "results": [], "bandwidth": {"floors": [], "reason": "no GPU"}}


def test_all_of_it(pretended, bundled, tmp_path, capsys, monkeypatch):
    """Everything but what other processes measure."""
    monkeypatch.setattr(bench_run, "bench", unmeasured)
    out = tmp_path / "out"
    given = [str(out), str(bundled("marian")), "--targets", "cuda-fp16", "--quick"]
    assert gpu_check.main(given, in_this_process) == 1
    result = json.loads((out / "gpu_check.json").read_text())
    assert result["command"].startswith("scripts/gpu_check ") and result["started"] and result["packages"]["numpy"]
    states = {part["name"]: part["state"] for part in result["parts"]}
    name = bundled("marian").name
    by_others = (f"{name}: steps", f"{name}: speed")
    assert states.pop("products") == "skipped"  # for want of cuBLASLt; our own are measured
    assert all(states[part] == ("failed" if part in by_others else "ok") for part in states), result["parts"]
    assert set(states) == {
        *("search", "rules", "families", "kernels", "attention", "sanitizers"),
        *(
            f"{name}: {part}"
            for part in ("torch steps", "onnxruntime steps", "native", "build cuda-fp16", "tokens cuda-fp16")
        ),
        *by_others,
    }
    by_name = {part["name"]: part for part in result["parts"]}
    assert "s2s cuda-fp16 device" in by_name[f"{name}: speed"]["reason"]
    for part, n_exact, n_all in (("torch steps", 4, 7), ("onnxruntime steps", 3, 3)):
        found = by_name[f"{name}: {part}"]["result"]
        assert len(found["agreement"]) == n_exact
        assert all(entry["equal"] == entry["outputs"] == 4 for entry in found["agreement"].values())
        assert len(found["times"]) == n_all and all(entry["call_ms"] > 0 for entry in found["times"])
    compared = by_name[f"{name}: tokens cuda-fp16"]["result"]
    assert set(compared) == {"device", "host"}
    for entry in compared.values():
        assert entry["searches"]["beam 2"]["sources"] == 2
        assert entry["searches"]["beam 2"]["later_calls_ms"] > 0
    table = (out / "gpu_check.md").read_text()
    assert "| device | beam 2 | 2 of 2 |" in table
    assert "\n| 90 | 1 | 2 | yes |" in table
    assert "- memcheck, search: clean" in table
    assert "\n- no tensorrt: TensorRT is not installed" in table and "no onnxruntime-cuda" not in table
    assert "24 rules against their definition; unequal rows:\nnone" in table
    assert "40 of 40 random cases are within their tolerance" in table and "| cross_attention | 1 | 4 |" in table
    assert table in capsys.readouterr().out
    of_kernels = re.findall(r"(\d+) of (\d+) random cases are within their tolerance", table)
    assert len(of_kernels) == 2 and all(n == total for n, total in of_kernels), of_kernels
    assert re.search(r"\n\| 1 \| 4 \| 1\d \| ", table), "batch, beams and the launches of a step"
    assert re.search(r"\| marian, cuda-native-fp16 \| 15 \| 15 \| 1\d \|", table)
    assert re.search(r"\n\| 70 x 64 x 16 \| residual \| fp16 \| [\d.]+ \| \d+ \| 0\.\d\d \| - \| - \| - \|", table)
    assert "- torch fp32, device-while, 4 beams: 4 of 4 outputs equal" in table
    assert not (bundled("marian") / "engines" / "cuda-fp16").exists()  # built in a copy
    with tarfile.open(out / "gpu_check.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"gpu_check.md", "gpu_check.json", "parts/search.json"} <= names
    assert {file.name for file in out.iterdir()} == {"gpu_check.md", "gpu_check.json", "gpu_check.tar.gz"}


def test_a_failure_is_a_result(pretended, bundled, tmp_path, monkeypatch):
    def breaks(*args):
        raise RuntimeError("the driver fell over")

    declare(monkeypatch, cuda, open=breaks)
    out = tmp_path / "out"
    given = [str(out), str(bundled("gru")), "--targets", "cuda-fp16", "--quick", "--only", "tokens,sanitizers"]
    assert gpu_check.main(given, in_this_process) == 1
    found = {part["name"]: part for part in json.loads((out / "gpu_check.json").read_text())["parts"]}
    failed = found[f"{bundled('gru').name}: tokens cuda-fp16"]
    assert failed["state"] == "failed"
    assert failed["reason"].startswith("device: RuntimeError: the driver fell over; host: RuntimeError")
    assert found["sanitizers"]["state"] == "ok"
    assert "| failed |" in (out / "gpu_check.md").read_text()


def test_a_missing_library_is_a_skip(pretended, bundled, tmp_path, monkeypatch):
    declare(monkeypatch, cuda, unavailable=lambda: "this onnxruntime has no CUDA")
    arguments = {"bundle": str(bundled("marian")), "target": "cuda-fp16", "quick": True}
    found = child.call("tokens", arguments, tmp_path / "a.json")
    assert (found["state"], found["reason"]) == ("skipped", "this onnxruntime has no CUDA")
    assert json.loads((tmp_path / "a.json").read_text()) == found


def test_a_model_that_the_device_can_not_search_is_no_failure(pretended, bundled, tmp_path):
    import shutil

    path = shutil.copytree(bundled("gru"), tmp_path / "gru")
    saved: dict[str, Any] = {}
    parts.build(saved.update, str(path), "cuda-fp16", "8.9")
    assert parts.tokens(saved.update, str(path), "cuda-fp16", True) is None
    assert "takes transformers" in saved["device"]["reason"]
    assert saved["host"]["searches"]["beam 2"]["equal_sources"] == 2


def test_wrong_attention_is_a_failure(pretended, monkeypatch):
    class Wrong(HostAttention):
        def _run(self, launch: Any, given: ctypes.Structure) -> None:
            given.scale *= 1.01
            super()._run(launch, given)

    monkeypatch.setattr(attention, "on_gpu", Wrong)
    saved: dict[str, Any] = {}
    wrong = parts.attention(saved.update, True)
    assert wrong is not None and wrong.endswith("of 40 cases are outside their tolerance")
    assert {entry["kernel"] for entry in saved["agreement"]["wrong"]} == set(attention.FOLDERS)


def test_different_searches_are_a_failure(pretended, monkeypatch):
    monkeypatch.setattr(check, "agree", lambda device, n, modes: {"cases": n, "different": [{"seed": 3}, {"seed": 3}]})
    assert parts.search(lambda found: None, True) == "1 of 10 searches differ from their emulation"


class TestRunning:
    """Parts that end in every way, in processes of their own."""

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """child's place is taken by a program that does what its arguments say."""
        (tmp_path / "unruly_child.py").write_text(
            "import json, os, pathlib, sys, time\n"
            "file, what = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
            "file.write_text(json.dumps({'state': 'unfinished', 'result': {'so far': 1}}))\n"
            "if what == 'crash': print('the last words', flush=True); os.abort()\n"
            "if what == 'hang': time.sleep(60)\n"
            "file.write_text(json.dumps({'state': 'ok', 'result': {'all': 2}}))\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
        monkeypatch.setattr(run, "CHILD", "unruly_child")
        return tmp_path

    def results(self, folder: Path, *given: plan.Part, minutes: float = 1.0) -> list[dict[str, Any]]:
        result = {**command.head(FakeDevice(), "a test"), "parts": []}
        run.run(given, result, folder, minutes, run.in_child)
        assert json.loads((folder / "gpu_check.json").read_text()) == result
        return result["parts"]

    def test_a_crash_and_a_hang_lose_nothing_else(self, folder: Path) -> None:
        crashed, hung, fine = self.results(
            folder, plan.Part("a: x", "crash"), plan.Part("b", "hang", minutes=0.02), plan.Part("c", "finish")
        )
        assert (crashed["state"], crashed["result"]) == ("failed", {"so far": 1})
        assert crashed["reason"] == "its process ended with status -6 (the last words)"
        assert (hung["state"], hung["result"]) == ("failed", {"so far": 1})
        assert hung["reason"] == "took more than 0.02 minutes (and said nothing)"
        assert hung["seconds"] < 30
        assert (fine["state"], fine["result"]) == ("ok", {"all": 2})

    def test_what_is_needed_and_has_failed(self, folder: Path) -> None:
        _, skipped, fine = self.results(
            folder, plan.Part("a", "crash"), plan.Part("b", "finish", needs="a"), plan.Part("c", "finish")
        )
        assert (skipped["state"], skipped["reason"]) == ("skipped", "needs 'a', which has no result")
        assert fine["state"] == "ok"

    def test_no_part_begins_too_late(self, folder: Path) -> None:
        (late,) = self.results(folder, plan.Part("a", "finish"), minutes=-1.0)
        assert late["state"] == "skipped" and "give it more with --minutes" in late["reason"]

    def test_all_of_it_ends_in_time(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A part that runs then keeps what it has measured, and is no failure; the archive has the parts' own files."""
        monkeypatch.setattr(run, "LEAST_MINUTES", 0.005)
        cut, late = self.results(folder, plan.Part("a", "hang", minutes=9.0), plan.Part("b", "finish"), minutes=0.02)
        assert (cut["state"], cut["result"]) == ("unfinished", {"so far": 1})
        assert cut["reason"] == "0.02 minutes were over; give it more with --minutes" and cut["seconds"] < 20
        assert late["state"] == "skipped"
        with tarfile.open(folder / "gpu_check.tar.gz") as archive:
            assert {"parts/a.json", "parts/a.log"} <= set(archive.getnames())
        assert not (folder / "parts").exists()

    def test_the_child_itself(self, tmp_path: Path) -> None:
        """A real child: what it lacks is a skip, what goes wrong a failure."""
        missing = run.in_child(plan.Part("a", "kernels", {"quick": True}), tmp_path / "a.json")
        if memory.unavailable() is not None:
            assert missing["state"] == "skipped" and "no CUDA driver" in missing["reason"]
        arguments = {"bundle": str(tmp_path / "b"), "target": "cuda-fp16", "capability": "8.9"}
        wrong = run.in_child(plan.Part("b", "build", arguments), tmp_path / "b.json")
        assert wrong["state"] == "failed" and wrong["reason"].startswith("BundleError: ")


def test_sanitizers_run_one_by_one(tmp_path, monkeypatch):
    program = tmp_path / "compute-sanitizer"
    program.write_text(
        '#!/bin/sh\nfor last; do :; done\n[ "$2" = racecheck ] && { echo "a race"; exit 9; }\n'
        'echo "{\\"state\\": \\"$([ "$2" = initcheck ] && echo failed || echo ok)\\"}" >"$8"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    saved: dict[str, Any] = {}
    wrong = sanitizers.run(tmp_path, saved.update)
    assert [f"{tool}, {part}" for tool in sanitizers.TOOLS for part in sanitizers.PARTS] == list(saved)
    assert saved["racecheck, search"] == {"status": 9, "state": "failed", "output": "a race\n"}
    assert saved["memcheck, attention"]["state"] == "ok"
    assert wrong is not None
    assert wrong.split(" found")[0].split(", ") == [
        f"{tool} of {part}" for tool in ("racecheck", "initcheck") for part in sanitizers.PARTS
    ]


def test_without_sanitizers_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="no compute-sanitizer on the path; expected"):
        sanitizers.run(tmp_path, lambda found: None)


def test_without_a_compiler_there_is_no_emulation(pretended, tmp_path, monkeypatch):
    def missing(*names: str) -> str:
        raise BuildError("no C++ compiler")

    monkeypatch.setattr(plugin_sources.module("build"), "find_compiler", missing)
    found = child.call("search", {"quick": True}, tmp_path / "a.json")
    assert (found["state"], found["reason"]) == ("skipped", "there is no emulation to compare with: no C++ compiler")
    assert found["result"]["bytes_per_second"] > 0


def test_the_most_important_comes_first(tmp_path):
    made = plan.parts(plan.random_models(tmp_path), ["rtx-fp16", "rtx-bf16"], "8.9", tmp_path, quick=False)
    names = [part.name for part in made]
    assert names[:7] == [
        *("search", "rules"),
        *(f"opus-mt: {p}" for p in ("export", "build rtx-fp16", "native", "tokens rtx-fp16")),
        "families",
    ]
    one, another = names.index("opus-mt: speed"), names.index("opus-mt: build rtx-bf16")
    assert (
        names.index("families")
        < one
        < names.index("products")
        < names.index("opus-mt: compiled")
        < names.index("kernels")
        < names.index("opus-mt: torch steps")
        < names.index("t5-small: export")
        < another
    )
    of_speed = [part.arguments for part in made if part.name.startswith("opus-mt: speed")]
    assert [(one["targets"], one.get("beams")) for one in of_speed] == [
        (["rtx-fp16"], [4]), (["rtx-fp16"], [1, 8]), (["rtx-fp16", "rtx-bf16"], None),
    ]  # fmt: skip
    (compiled,) = (part for part in made if part.name.endswith(": compiled"))
    assert compiled.arguments["peers"] == ["torch-compile"] and compiled.needs == "opus-mt: export"
    some = [part.name for part in plan.only(made, ["torch", "kernels"])]
    assert some == [
        *("opus-mt: export", "kernels", "opus-mt: torch steps"),
        *("t5-small: export", "t5-small: torch steps"),
    ]
    assert names[-1] == "sanitizers"
    users = plan.parts([plan.Model("mine", tmp_path / "mine")], [], "9.0", tmp_path, quick=True)
    assert "mine: native" in [part.name for part in users] and "mine: compiled" not in [part.name for part in users]
    for part in made:
        inspect.signature(getattr(parts, part.function)).bind(print, **json.loads(json.dumps(part.arguments)))
        assert part.needs is None or part.needs in names[: names.index(part.name)]


def test_targets_of_a_gpu(monkeypatch):
    declare(monkeypatch, cuda, unavailable=lambda: "not here")
    declare(monkeypatch, tensorrt_rtx, unavailable=lambda: None)
    assert targets.suiting("8.9") == ["rtx-fp16", "rtx-fp16-plugins", "rtx-bf16", "rtx-int8"]
    assert targets.suiting("9.0") == ["rtx-fp16"]  # not one of its GPUs, tried all the same
    declare(monkeypatch, tensorrt_rtx, unavailable=lambda: "not here")
    assert targets.suiting("9.0") == []


def test_a_narrowed_recipe_takes_all_that_is_measured(tmp_path):
    wide = recipes.load(str(targets.narrowed(recipes.load("rtx-int8"), "9.0", tmp_path)))
    assert wide.compute_capabilities == ("9.0",)
    assert (wide.ranges["B"].max, wide.ranges["K"].max) == (64, 8)
    given = recipes.load("rtx-int8")
    assert (wide.options, wide.ranges["S"], wide.buckets) == (given.options, given.ranges["S"], given.buckets)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, Any]:
    """A small model of the kind that copies, exported and raced on the CPU: the record that a GPU's race would give."""
    folder = tmp_path_factory.mktemp("measured")
    saved: dict[str, Any] = {}
    parts.export(saved.update, "opus-mt", str(folder / "opus-mt"), str(folder / "opus-mt.bundle"), True)
    assert saved["export_seconds"] > 0
    arguments = [str(folder / "opus-mt.bundle"), str(folder / "opus-mt"), ["portable"], True, "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PEERS", ("transformers",))
        wrong = parts.speed(saved.update, *arguments)
    assert wrong is None, wrong
    return saved


@pytest.mark.slow
def test_speed_is_told_with_floor_and_agreement(measured):
    (ours,) = [one for one in measured["results"] if one["label"] == "s2s portable"]
    theirs = [one for one in measured["results"] if one["label"] == "transformers generate"]
    assert (ours["batch_size"], ours["num_beams"]) == parts.MOST_IMPORTANT
    assert ours["equal_tokens"] == 1.0 and len(theirs) == 1
    text = "\n".join(report._speed(measured))
    assert text.startswith("Floor of a step: ")
    row = next(line for line in text.splitlines() if "| s2s portable |" in line)
    assert row.startswith("| 1 | 4 | s2s portable | ") and row.endswith("| 100% |")


def test_nothing_of_ours_measured_is_a_failure(monkeypatch):
    monkeypatch.setattr(bench_run, "bench", unmeasured)
    wrong = parts.steps(lambda found: None, "bundle", ["x"], True)
    assert wrong == "s2s cuda-fp16 device: no GPU"


def test_steps_are_measured_in_every_way(monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr(bench_run, "bench", lambda path, options, *a, **k: seen.append(options) or {"contestants": []})
    parts.steps(lambda found: None, "bundle", ["rtx-fp16"], False)
    parts.speed(lambda found: None, "bundle", "checkpoint", ["rtx-fp16"], False)
    steps, speed = seen
    assert steps.choice.searches == ("device-while", "device-replay", "device-queue", "host")
    assert (steps.batch_sizes, steps.num_beams, steps.peers, steps.choice.device) == ((1,), (4,), (), "cuda")
    assert (speed.batch_sizes, speed.num_beams) == ((1, 8, 64), (1, 4, 8))
    assert speed.new_tokens < speed.source_lengths[0]  # all of them copied
    assert speed.first == (1, 4) and speed.peers == ("transformers", "ctranslate2")


def test_main_module_is_there():
    out = subprocess.run(
        [sys.executable, "-m", "s2s_export.measuring.gpu_check", "--help"], capture_output=True, text=True
    )
    assert out.returncode == 0 and "--minutes" in out.stdout
