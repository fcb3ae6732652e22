"""The Ray integration: what an actor and a replica do, without Ray; and the real thing on a local cluster."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from s2s_export.errors import InputError, InvalidOption
from s2s_export.ray import Translate
from s2s_export.ray.deployment import Replica

TEXTS = [">>deu<< two", "", ">>fra<< twenty-one", ">>deu<< " + "x " * 3000, ">>deu<< eleven"]


def test_a_batch_keeps_its_columns_and_its_order(words):
    actor = Translate(words, "line", num_beams=2)
    found = actor({"line": np.array(TEXTS, dtype=object), "n": np.arange(5)})
    assert found["n"].tolist() == [0, 1, 2, 3, 4]
    assert found["translation"].tolist() == ["zwei", "", "vingt et un", None, "elf"]
    assert [error is None for error in found["error"]] == [True, True, True, False, True]
    assert "6002 tokens" in found["error"][3]
    assert np.isnan(found["score"]).tolist() == [False, False, False, True, False]


def test_languages_may_be_columns(words):
    batch = {"text": np.array(["two", "two"], dtype=object), "target_lang": np.array(["deu", "fra"])}
    assert Translate(words)(batch)["translation"].tolist() == ["zwei", "deux"]


def test_what_can_not_work_fails_when_the_actor_starts(words):
    with pytest.raises(InvalidOption, match="num_beams is 0"):
        Translate(words, num_beams=0)
    with pytest.raises(InputError, match="no column 'text'; found line"):
        Translate(words)({"line": np.array(["one"])})


class Request:
    def __init__(self, body):
        self.body = body

    async def json(self):
        return json.loads(self.body)


def test_a_replica_answers_lines_together(words):
    replica = Replica(str(words), 8, 1, 30.0, {})
    lines = [{"id": i, "text": text, "num_beams": 2} for i, text in enumerate(TEXTS)]

    async def ask():
        return await asyncio.gather(*(replica(Request(json.dumps(line))) for line in lines), replica(Request("[")))

    answers = [(answer.status_code, json.loads(answer.body)) for answer in asyncio.run(ask())]
    assert [status for status, _ in answers] == [200, 200, 200, 400, 200, 400]
    assert [answers[i][1]["outputs"][0]["text"] for i in (0, 2, 4)] == ["zwei", "vingt et un", "elf"]
    assert "6002 tokens" in answers[3][1]["error"] and "not JSON" in answers[5][1]["error"]


CLUSTER = '''
import os, sys, time, urllib.request, json
import ray
from s2s_export.ray import Translate, application

bundle, folder = sys.argv[1:3]
ray.init(num_cpus=3, include_dashboard=False, logging_level="error")
ray.data.DataContext.get_current().execution_options.preserve_order = True
words = ["one", "two", "three", "eleven", "twenty-one"]
lines = [f">>deu<< {words[i % 5]} thousand {words[i // 5 % 5]}" for i in range(300)]
with open(f"{folder}/lines.txt", "w") as file:
    file.write("\\n".join(lines) + "\\n")


class Dies(Translate):
    """An actor that is killed once, in the middle of its work."""

    def __call__(self, batch):
        died = f"{folder}/died"
        if "eleven" in str(batch["text"][-1]) and not os.path.exists(died):
            open(died, "w").close()
            os._exit(1)
        return super().__call__(batch)


def run(actor, **settings):
    read = ray.data.read_text(f"{folder}/lines.txt", num_cpus=0.1).repartition(10)
    done = read.map_batches(actor, fn_constructor_args=[bundle], batch_size=16, num_cpus=1, **settings)
    rows = done.take_all()
    assert [row["text"] for row in rows] == lines, "order or completeness"
    assert all(row["error"] is None for row in rows)
    return [row["translation"] for row in rows]


calm = run(Translate, compute=ray.data.ActorPoolStrategy(size=2))
assert len(set(calm)) == 25, set(calm)
killed = run(Dies, compute=ray.data.ActorPoolStrategy(size=2))
assert os.path.exists(f"{folder}/died") and killed == calm
assert run(Translate, compute=ray.data.ActorPoolStrategy(min_size=1, max_size=2)) == calm
print("data: all good", flush=True)

from ray import serve

serve.run(application(bundle, deployment={"ray_actor_options": {"num_cpus": 1}}), route_prefix="/translate")
ask = urllib.request.Request("http://127.0.0.1:8000/translate", json.dumps({"text": ">>fra<< two"}).encode())
with urllib.request.urlopen(ask, timeout=60) as answer:
    assert json.load(answer)["outputs"][0]["text"] == "deux"
handle = serve.get_app_handle("default")
many = [handle.generate.remote({"text": ">>deu<< two", "num_beams": 2}) for _ in range(32)]
assert {response.result(timeout_s=60)["outputs"][0]["text"] for response in many} == {"zwei"}
serve.shutdown()
print("serve: all good", flush=True)
'''


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_local_cluster(words, tmp_path):
    """Needs the network, for pip: Ray is not among what the tests install."""
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", environment],
        [python, "-m", "pip", "install", "-q", "ray[serve,data]==2.60.0", "numpy", "onnxruntime", "click",
         "sentencepiece", "tokenizers", "starlette"],
    ):  # fmt: skip
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
    [site] = (environment / "lib").glob("python3*/site-packages")
    (site / "s2s.pth").write_text(f"{Path(__file__).parents[2]}\n")
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    done = subprocess.run(
        [str(python), str(script), str(words), str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert "data: all good" in done.stdout and "serve: all good" in done.stdout, done.stdout + done.stderr[-5000:]
