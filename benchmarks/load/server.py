"""One server on loopback in a process of its own: ours, or CTranslate2 behind the same HTTP code and the same batcher.

python -m load.server CONTESTANT FOLDER MODEL WORKERS MAX_WAIT PER_PROCESS THREADS BATCH_SIZE      prints its port
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONTESTANTS = {
    "joined": "ours, sources join at decoder steps",
    "whole": "ours, whole batches",
    "alone": "ours, one at a time",
    "ctranslate2": "CTranslate2, whole batches",
}
BATCH_SIZE = 16
TIMEOUT = 60.0  # seconds that a request may take


@dataclass
class Running:
    """A server that answers. log: where its stderr goes."""

    port: int
    process: subprocess.Popen[str]
    log: Path

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096

    def cpu_seconds(self) -> float:
        """CPU time that it has taken so far, of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def children(self) -> list[int]:
        """Its engine processes."""
        of_threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(child) for path in of_threads for child in path.read_text().split()]

    def n_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextlib.contextmanager
def running(
    contestant: str,
    folder: Path,
    model: str,
    workers: int,
    max_wait: float = 0.0,
    per_process: int = 0,
    threads: int = 1,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Running]:
    """max_wait: of the batcher, in seconds; 0 for any time. per_process: workers of an engine process; 0: threads.
    threads: of our engines, in each decoder step."""
    log = folder / f"server-{contestant}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "load.server", contestant, str(folder), model, str(workers), str(max_wait),
             str(per_process), str(threads), str(batch_size)],
            cwd=ROOT / "benchmarks", stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server '{contestant}' did not start:\n{log.read_text()[-2000:]}")
        yield Running(int(line), process, log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(
    contestant: str,
    folder: str,
    name: str,
    workers: str,
    max_wait: str,
    per_process: str,
    threads: str,
    batch_size: str,
) -> None:
    sys.path.insert(0, str(ROOT))
    from load.models import TARGET, Served
    from s2s_export.runtime.session import load
    from s2s_export.serving.batcher import Batcher
    from s2s_export.serving.calls import State
    from s2s_export.serving.limits import Limits
    from s2s_export.serving.metrics import Metrics
    from s2s_export.serving.models import Model, Models
    from s2s_export.serving.processes import Processes
    from s2s_export.serving.server import Address, listen, log_to_stderr, make_server

    served = Served(name, Path(folder) / name)
    log_to_stderr(as_json=False, quiet=True)
    metrics = Metrics()
    if contestant == "ctranslate2":
        session = over_ctranslate2(served, int(workers))
    else:
        session = load(served.bundle, "onnxruntime", TARGET, threads=int(threads))
        session.warm_up([8, 32])
    sizes: dict[str, Any] = {
        "batch_size": 1 if contestant == "alone" else int(batch_size),
        "join": contestant == "joined",
        "max_tokens": 1 << 20,
        "max_wait": float(max_wait) or None,
        "on_batch": lambda report: metrics.on_batch(name, report),
    }
    if int(per_process):
        loading = {"backend": "onnxruntime", "target": TARGET, "threads": int(threads)}
        batcher: Any = Processes(
            session, workers=int(workers), most=int(per_process), max_entries=4096, loading=loading, **sizes
        )
    else:
        batcher = Batcher(session, workers=int(workers), **sizes)
    models = Models([Model(name, session, batcher)])
    metrics.watch(models)
    limits = Limits(drain_delay=0.0, drain_timeout=2.0, timeout=TIMEOUT)
    address = Address(port=0)
    listening = listen(address)
    port = listening.getsockname()[1]
    server = make_server(State(models, limits, metrics), address, on_ready=lambda: print(port, flush=True))
    server.run(sockets=[listening])


def over_ctranslate2(served: Any, workers: int) -> Any:
    """A session that hands batches to CTranslate2. What it knows of the model is read from our bundle."""
    from s2s_export.measuring.bench.contestants import ctranslate2
    from s2s_export.runtime.decoding import GenerationOptions, Hypothesis
    from s2s_export.runtime.session import Session, load

    job = served.job()
    job.options["inter_threads"] = workers
    system = ctranslate2.open(job, str(served.converted))
    translator: Any = system._translator

    class OverCTranslate2(Session):
        def decode_batch(
            self,
            batch: Sequence[Any],
            options: GenerationOptions,
            *,
            alignments: bool | str = False,
            source_numbers: Sequence[int] | None = None,
            wanted: Callable[[int], bool] | None = None,
            on_prefix: Callable[[int, list[int]], None] | None = None,
        ) -> list[list[Hypothesis]]:
            found = translator.translate_batch(
                system._text(batch),
                beam_size=options.num_beams,
                max_decoding_length=options.max_new_tokens,
                return_scores=True,
            )
            ids = [system._to_ids(result) for result in found]
            return [
                [Hypothesis([*options.prompt, *tokens, 0], result.scores[0], [0.0] * (len(tokens) + 1))]
                for tokens, result in zip(ids, found, strict=True)
            ]

    session = load(served.bundle, "onnxruntime", "portable", threads=1)
    return OverCTranslate2(session.bundle, session.backend)


if __name__ == "__main__":
    main(*sys.argv[1:])
