"""One contestant of an evaluation in a process of its own: `python -m s2s_export.measuring.evaluate.worker`.

It speaks the protocol of `bench/worker.py`, with one request:

    {"do": "evaluate", "bundle", "target", "checkpoint", "backend", "threads", "batch_size", "options", "languages",
     "sources"}                                   -> {"texts", "failures", "seconds", "n_tokens", "memory", "backend"}
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any

from ...errors import S2SError, explain, is_failure
from ..bench.worker import memory


def evaluate(request: dict[str, Any]) -> dict[str, Any]:
    """texts: the best output of each source, "" where it failed; failures: [number, sentence]."""
    run = _with_pytorch if request["checkpoint"] else _with_engine
    return run(request)


def _with_engine(request: dict[str, Any]) -> dict[str, Any]:
    from ...runtime.cases import decode_each, read_sources
    from ...runtime.session import load

    session = load(
        request["bundle"], request["backend"], request["target"], request["threads"],
        workers=None if request["threads"] is None else 1,
    )  # fmt: skip
    options = session.options(target_lang=request["languages"]["target_lang"], **request["options"])
    started = time.perf_counter()
    sources, failures = read_sources(session, request["sources"], **request["languages"])
    good = [i for i in range(len(sources)) if i not in failures and sources[i]]
    texts, n_tokens = [""] * len(sources), 0
    outcomes = decode_each(session, [sources[i] for i in good], options, batch_size=request["batch_size"])
    for place, outcome in outcomes:
        if isinstance(outcome, str):
            failures[good[place]] = outcome
        else:
            texts[good[place]] = outcome[0].text or ""
            n_tokens += len(outcome[0].token_ids)
    seconds = time.perf_counter() - started
    return {
        "texts": texts, "failures": sorted(failures.items()), "seconds": seconds, "n_tokens": n_tokens,
        "memory": memory(), "backend": session.backend.name,
    }  # fmt: skip


def _with_pytorch(request: dict[str, Any]) -> dict[str, Any]:
    """transformers' generate() in fp32, batches of like lengths."""
    import torch

    from ...exporting.checkpoint import open_checkpoint, quiet_transformers
    from ...exporting.parity import named, tensors
    from ...runtime.cases import read_sources
    from ...runtime.scheduling import plan_batches
    from ...runtime.session import load

    torch.set_num_threads(request["threads"] or torch.get_num_threads())
    checkpoint = open_checkpoint(request["checkpoint"])
    model = checkpoint.load_model()
    generate = getattr(checkpoint.family, "generate", None) or type(model).generate
    session = load(request["bundle"], target="portable", threads=1, verify=False)
    languages = request["languages"]
    options = dict(request["options"])
    if languages["target_lang"] is not None:
        options = {**session.tokenizer.target_overrides(languages["target_lang"]), **options}
    started = time.perf_counter()
    sources, failures = read_sources(session, request["sources"], **languages)
    good = [i for i in range(len(sources)) if i not in failures and sources[i]]
    texts, n_tokens = [""] * len(sources), 0
    ends = set(session.options(**options).eos_token_id)
    for batch in plan_batches([len(sources[i]) for i in good], request["batch_size"]):
        inputs = named(tensors(session.kind.prepare([sources[good[i]] for i in batch])))
        with torch.no_grad(), quiet_transformers():
            rows = generate(model, **inputs, **options).tolist()
        for i, row in zip(batch, rows[:: len(rows) // len(batch)], strict=True):
            ids = row[: next((n + 1 for n, token in enumerate(row) if n and token in ends), len(row))]
            texts[good[i]] = session.tokenizer.decode(ids)
            n_tokens += len(ids)
    seconds = time.perf_counter() - started
    return {
        "texts": texts, "failures": sorted(failures.items()), "seconds": seconds, "n_tokens": n_tokens,
        "memory": memory(), "backend": f"torch {torch.__version__}",
    }  # fmt: skip


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    for line in sys.stdin:
        request = json.loads(line)
        request.pop("do")
        try:
            answer: dict[str, Any] = {"ok": evaluate(request)}
        except S2SError as error:
            answer = {"absent": explain(error)}
        except BaseException as error:
            if not is_failure(error):
                raise
            traceback.print_exc()
            answer = {"failed": explain(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
