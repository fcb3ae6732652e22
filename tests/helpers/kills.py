"""Kills of a process before its n-th file operation. Run as a script: SCENARIO FOLDER METHOD FIRST LAST.

Every attempt is a fork, so that a hundred of them import everything once. After each, what is left is looked at by
someone who knows nothing of the attempt, the work is done again, and nothing else may remain. Prints how many attempts
were killed; exits 1 with what was wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPERATIONS = {
    "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.truncate", "os.link", "os.symlink",
    "s2s_export.rename", "kills.half_a_write", "shutil.rmtree", "shutil.copyfile", "tempfile.mkdtemp",
    "tempfile.mkstemp",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def kill_before(n: int) -> None:
    """From here on this process dies before its n-th file operation, counted from 1."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & WRITING:
                return
        elif event not in OPERATIONS:
            return
        count += 1
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def attempt(work: Callable[[], None], n: int) -> bool:
    """Whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            kill_before(n)
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        sys.exit(f"attempt {n} failed with status {status}")
    return False


class BundleOf:
    """A folder that looks like a bundle, with files enough to be in between."""

    name = "bundle"

    def __init__(self, root: Path) -> None:
        self.path = root / self.name

    def write(self, value: str) -> None:
        from s2s_export import bundle

        with bundle.writing(self.path, force=True) as folder:
            (folder / "tokenizer").mkdir()
            for name in ("encoder.onnx", "cross_kv_init.onnx", "decoder_step.onnx", "tokenizer/x"):
                (folder / name).write_text(value + name)
            graphs = {name: {"file": f"{name}.onnx", "inputs": [], "outputs": []} for name in bundle.GRAPHS}
            manifest = {
                "format": bundle.FORMAT,
                "format_version": 1,
                "family": "none",
                "model_type": "none",
                "precision": "fp32",
                "decoder": "attention",
                "sizes": {"vocabulary_size": 1, "source_vocabulary_size": 1},
                "limits": {"max_source_length": None, "max_target_length": None},
                "source": {"pad_token_id": None},
                "generation": {},
                "value": value,
            }
            bundle.write_manifest(folder, {**manifest, "graphs": graphs, "files": bundle.describe_files(folder)})

    def read(self) -> str:
        from s2s_export import replacing
        from s2s_export.bundle import describe_files

        replacing.put_back(self.path)
        manifest = json.loads((self.path / "manifest.json").read_text())
        if manifest["files"] != describe_files(self.path):
            sys.exit("a file is not what the manifest says")
        return str(manifest["value"])

    def is_there(self) -> bool:
        return (self.path / "manifest.json").is_file()

    def left(self) -> list[str]:
        return [path.name for path in self.path.parent.iterdir() if path != self.path]


class CheckpointOf:
    name = "checkpoint"

    def __init__(self, root: Path) -> None:
        import torch

        from s2s_export.reference import build
        from s2s_export.reference.config import ReferenceConfig

        torch.set_num_threads(1)
        self.path = root / self.name
        self.config = ReferenceConfig("gru", vocab_size=12, d_model=4)
        self.model = build(self.config)

    def write(self, value: str) -> None:
        from s2s_export.reference.checkpoint import Checkpoint, save_checkpoint, weights_of

        training = {"value": value}
        save_checkpoint(self.path, Checkpoint(self.config, weights_of(self.model), training=training))

    def read(self) -> str:
        from s2s_export.reference.checkpoint import load_checkpoint

        return str(load_checkpoint(self.path, resume=True).training["value"])

    def is_there(self) -> bool:
        return (self.path / "config.json").is_file()

    def left(self) -> list[str]:
        return [path.name for path in self.path.parent.iterdir() if path != self.path]


class EngineOf:
    """An engine as `build` stores it, with a builder that writes three small files."""

    name = "cpu-fp32"

    def __init__(self, root: Path) -> None:
        from s2s_export import bundle
        from s2s_export.building import builders

        self.bundle, self.value = root, ""
        self.path = root / "engines" / self.name
        limits = {"max_source_length": None, "max_target_length": None}
        opened = bundle.Bundle(root, {"files": {}, "limits": limits})
        bundle.read = lambda path, **options: opened
        builders.find = lambda flavour: self  # type: ignore[assignment,return-value]

    def check(self, opened: Any, recipe: Any) -> None:
        """Nothing that could be wrong."""

    def version(self, recipe: Any) -> str:
        return "1"

    def build(self, opened: Any, recipe: Any, folder: Path, progress: Any) -> dict[str, Any]:
        for number in range(3):
            (folder / f"{number}.bin").write_text(self.value)
        return {"value": self.value}

    def write(self, value: str) -> None:
        from s2s_export.building.build import build

        self.value = value
        build(self.bundle, self.name, force=True)

    def read(self) -> str:
        from s2s_export import bundle, replacing

        replacing.put_back(self.path)
        engine = json.loads((self.path / "engine.json").read_text())
        if engine["files"] != {k: v for k, v in bundle.describe_files(self.path).items() if k != "engine.json"}:
            sys.exit("a file is not what engine.json says")
        return str(engine["value"])

    def is_there(self) -> bool:
        return (self.path / "engine.json").is_file()

    def left(self) -> list[str]:
        return [path.name for path in self.path.parent.iterdir() if path != self.path]


class Torn:
    """A file whose every write reaches the disk in two halves, with a moment between them."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, raw: bytes) -> None:
        self.file.write(raw[: len(raw) // 2])
        self.file.flush()
        sys.audit("kills.half_a_write")
        self.file.write(raw[len(raw) // 2 :])

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class ResultsOf:
    """The file of results that `s2s generate --resume` continues."""

    name = "results.jsonl"
    lines = tuple({"id": str(number), "outputs": [{"text": "\u00e9" * number}]} for number in range(60))

    def __init__(self, root: Path) -> None:
        self.path = root / self.name

    def write(self, value: str) -> None:
        from s2s_export.runtime.results import Results

        self.value = value
        if value == "old":
            self.path.unlink(missing_ok=True)
        with Results(str(self.path), [line["id"] for line in self.lines]) as results:
            results._file = Torn(results._file)  # type: ignore[assignment]
            for line in self.lines[len(results.done) :] if value != "old" else ():
                results.write(line)

    def read(self) -> str:
        """What is there is whole lines of this work, and at most half a line more."""
        found = self.path.read_bytes()
        whole = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in self.lines)
        if not whole.startswith(found):
            sys.exit("the lines are not those of this work")
        return self.value if found == whole else "old"

    def is_there(self) -> bool:
        return self.path.is_file()

    def left(self) -> list[str]:
        return [path.name for path in self.path.parent.iterdir() if path != self.path]


class FileOf:
    """A report, a picture or the like."""

    name = "report.html"

    def __init__(self, root: Path) -> None:
        self.path = root / self.name

    def write(self, value: str) -> None:
        from s2s_export import replacing

        replacing.write_text(self.path, value * 5000)

    def read(self) -> str:
        text = self.path.read_text(encoding="utf-8")
        value = next((value for value in ("old", "new", "next") if text == value * 5000), None)
        return value or sys.exit("the file is not whole")

    def is_there(self) -> bool:
        return self.path.is_file()

    def left(self) -> list[str]:
        return [path.name for path in self.path.parent.iterdir() if path != self.path]


class ExportOf:
    """`s2s_export.export` itself, of a tiny model over an older bundle of another one."""

    name = "exported"

    def __init__(self, root: Path) -> None:
        import tempfile

        import tiny_models
        import torch

        torch.set_num_threads(1)
        self.path = root / self.name
        self.checkpoints = Path(tempfile.mkdtemp(prefix="s2s-kills-"))
        self.seeds = {"old": 0, "new": 1, "next": 2}
        for value, seed in self.seeds.items():
            tiny_models.save("marian", self.checkpoints / value, seed=seed)
        self.by_hash: dict[str, str] = {}

    def write(self, value: str) -> None:
        import s2s_export

        s2s_export.export(self.checkpoints / value, self.path, force=True)
        self.by_hash[self._hash()] = value

    def _hash(self) -> str:
        return str(json.loads((self.path / "manifest.json").read_text())["provenance"]["checkpoint_sha256"])

    def read(self) -> str:
        from s2s_export import bundle

        bundle.read(self.path, verify=True)
        return self.by_hash.get(self._hash(), "new")

    def is_there(self) -> bool:
        return (self.path / "manifest.json").is_file()

    def left(self) -> list[str]:
        return [path.name for path in self.path.parent.iterdir() if path != self.path]


SCENARIOS = {
    "bundle": BundleOf,
    "engine": EngineOf,
    "checkpoint": CheckpointOf,
    "results": ResultsOf,
    "file": FileOf,
    "export": ExportOf,
}


def main(scenario: str, folder: str, method: str, first: str, last: str) -> None:
    from s2s_export import replacing

    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    thing: Any = SCENARIOS[scenario](root)
    if method == "two-moves":
        replacing._C = None
    n_killed = 0
    for n in range(int(first), int(last) + 1):
        thing.write("old")
        if not attempt(lambda: thing.write("new"), n):
            break
        n_killed += 1
        if method == "exchange" and not thing.is_there():
            sys.exit(f"killed before operation {n}: nothing is in place")
        if (found := thing.read()) not in ("old", "new"):
            sys.exit(f"killed before operation {n}: found {found}")
        thing.write("next")
        left = []
        if thing.read() != "next" or (left := thing.left()):
            sys.exit(f"killed before operation {n}: the next run left {left}")
    print(n_killed)


if __name__ == "__main__":
    main(*sys.argv[1:])
