"""Model repositories for Triton: what is written, what model.py answers, and the real server with its clients.

The fast tests give model.py a module that stands for Triton's own, which exists only inside the server; the slow one
runs the server of the nvidia-pytriton wheel, fetched by pip, over HTTP and gRPC.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import types
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from command_line import s2s

from s2s_export.serving.triton import Batching, Plan, write_repository
from s2s_export.serving.triton.model import BatchingModel, StreamingModel

LINES = [">>deu<< two", ">>fra<< twenty-one"]


@pytest.fixture(scope="module")
def repository(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(words, folder, Plan("en-mul", Batching(max_batch_size=4, max_queue=9, timeout=1.5)), force=False)
    return folder


class Tensor:
    def __init__(self, name, values):
        self.name, self.values = name, values

    def as_numpy(self):
        return self.values


class Response:
    def __init__(self, output_tensors=(), error=None):
        self.tensors = {tensor.name: tensor.values for tensor in output_tensors}
        self.error = error


class Request:
    """texts: a list, for [rows, 1]. sender: what a decoupled model sends to."""

    def __init__(self, texts, parameters=None, options=None, cancelled_after=1 << 30):
        self.tensors = {"text": np.array([[text.encode()] for text in texts], dtype=object)}
        if options is not None:
            self.tensors["options"] = np.array([[json.dumps(each).encode()] for each in options], dtype=object)
        self._parameters = parameters
        self.sent = []
        self.flags = None
        self._cancelled_after = cancelled_after

    def parameters(self):
        return "" if self._parameters is None else json.dumps(self._parameters)

    def get_response_sender(self):
        return self

    def send(self, response=None, flags=0):
        assert self.flags is None, "a response after the last one"
        if response is not None:
            self.sent.append(response)
        if flags:
            self.flags = flags

    def is_cancelled(self):
        return len(self.sent) >= self._cancelled_after


@pytest.fixture
def triton(monkeypatch):
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse = Tensor, Response
    module.TritonError = type("TritonError", (), {"INVALID_ARG": 3, "__init__": _keep})
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    def find(request, name):
        return Tensor(name, request.tensors[name]) if name in request.tensors else None

    module.get_input_tensor_by_name = find
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return module


def _keep(self, message, code):
    self.message, self.code = message, code


def opened(kind, folder):
    model = kind()
    config = {"parameters": {"bundle": {"string_value": "bundle"}, "threads": {"string_value": "1"}}}
    arguments = {"model_config": json.dumps(config), "model_repository": str(folder), "model_name": folder.name}
    model.initialize(arguments)
    return model


def test_the_repository(repository, words):
    assert sorted(path.name for path in repository.iterdir()) == ["en-mul", "en-mul_stream"]
    config = (repository / "en-mul" / "config.pbtxt").read_text()
    for part in (
        'name: "en-mul"',
        "max_batch_size: 4",
        "max_queue_size: 9",
        "default_timeout_microseconds: 1500000",
        "kind: KIND_CPU",
    ):
        assert part in config
    stream = (repository / "en-mul_stream" / "config.pbtxt").read_text()
    assert "decoupled: true" in stream and "max_batch_size: 0" in stream and "dynamic_batching" not in stream
    own = repository / "en-mul" / "bundle"
    assert (own / "manifest.json").read_bytes() == (words / "manifest.json").read_bytes()


def test_requests_are_answered_together_and_each_as_alone(repository, session, triton):
    model = opened(BatchingModel, repository / "en-mul")
    requests = [
        Request(LINES),
        Request(["three"], parameters={"target_lang": "fr", "priority": 1}),
        Request(["two", "three"], options=[{"target_lang": "de"}, {"target_lang": "fra", "num_beams": 4}]),
        Request(LINES[:1], parameters={"num_beams": 4, "num_return_sequences": 3}),
    ]
    answers = [response.tensors for response in model.execute(requests)]
    texts = [[[text.decode() for text in row] for row in answer["text"].tolist()] for answer in answers]
    assert texts[:3] == [[["zwei"], ["vingt et un"]], [["trois"]], [["zwei"], ["trois"]]]
    [alone] = session.generate([session.encode(LINES[0])], num_beams=4, num_return_sequences=3)
    assert texts[3] == [[hypothesis.text for hypothesis in alone]]
    assert answers[3]["score"].tolist() == [[np.float32(hypothesis.score) for hypothesis in alone]]
    result = json.loads(answers[3]["result"][0, 0])
    assert [output["token_ids"] for output in result["outputs"]] == [list(each.token_ids) for each in alone]


def test_what_is_drawn_does_not_depend_on_who_shares_the_batch(repository, triton):
    model = opened(BatchingModel, repository / "en-mul")
    drawn = {"do_sample": True, "seed": 3, "temperature": 3.0, "max_new_tokens": 8}
    [alone] = model.execute([Request(LINES[:1], parameters=drawn)])
    shared = model.execute([Request([LINES[1]] * 3, parameters=drawn), Request(LINES[:1], parameters=drawn)])
    assert alone.tensors["text"].tolist() == shared[1].tensors["text"].tolist()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(LINES, parameters={"num_beam": 3}), "row 0: unknown generation option 'num_beam'; did you mean"),
        (Request(LINES[:1], options=[{"num_beams": 0}]), "num_beams is 0"),
        (Request(LINES[:1], options=[[1]]), "'options' is list"),
        (Request(LINES, options=[{}, {}, {}]), "'options' has 3 rows, but 'text' has 2"),
        (Request(["two"], parameters={"target_lang": "it"}), "it is not supported as a target language"),
        (Request(["two " * 500]), "tokens"),
    ],
)
def test_a_bad_request_is_told_and_leaves_others_alone(repository, triton, request_, message):
    model = opened(BatchingModel, repository / "en-mul")
    good, bad = model.execute([Request(LINES[:1]), request_])
    assert good.error is None and good.tensors["text"].tolist() == [[b"zwei"]]
    assert message in bad.error.message and bad.error.code == 3


def test_a_stream(repository, session, triton):
    model = opened(StreamingModel, repository / "en-mul_stream")
    line = ">>deu<< three hundred and twenty-one thousand"
    request, bad = Request([line]), Request([line], parameters={"nothing": 1})
    model.execute([request, bad])
    pieces = [response.tensors["text"].tolist()[0].decode() for response in request.sent]
    assert "".join(pieces) == session.translate([line])[0] and len(pieces) > 2 and request.flags == 1
    assert json.loads(request.sent[-1].tensors["result"][0])["outputs"][0]["text"] == "".join(pieces)
    assert "nothing" in bad.sent[0].error.message and bad.flags == 1
    left = Request([line], cancelled_after=1)
    model.execute([left])
    assert len(left.sent) == 1 and left.flags == 1


def test_the_command(words, tmp_path):
    done = s2s("triton", words, tmp_path / "models", "--name", "numbers", "--batch-size", "8", "--json")
    assert json.loads(done.stdout)["models"] == ["numbers", "numbers_stream"]
    done = s2s("triton", words, tmp_path / "models", "--name", "numbers", "--no-stream", status=2)
    assert "exists already" in done.stderr and "--force" in done.stderr
    done = s2s("triton", words, tmp_path / "models", "--name", "a b", status=2)
    assert "can't be the name of a model" in done.stderr
    done = s2s("triton", words, tmp_path / "other", "--name", "x", "--target", "cpu-fp33", status=2)
    assert "unknown target 'cpu-fp33'" in done.stderr and not (tmp_path / "other").exists()
    s2s("triton", words, tmp_path / "models", "--name", "numbers", "--force", "--link", "--no-stream")
    config = (tmp_path / "models" / "numbers" / "config.pbtxt").read_text()
    assert str(words.resolve()) in config and not (tmp_path / "models" / "numbers" / "bundle").exists()


# The real server

CLIENT = """
import json, queue, sys
import numpy as np
import tritonclient.grpc, tritonclient.http
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

http, grpc = sys.argv[1:3]
for path in sys.argv[3:]:  # its text format refuses names and values that there are not
    assert text_format.Parse(open(path).read(), ModelConfig()).backend == "python"


def tensor(module, name, rows, shape=None):
    found = module.InferInput(name, shape or [len(rows), 1], "BYTES")
    values = np.array([row.encode() for row in rows], dtype=object)
    found.set_data_from_numpy(values.reshape(shape or (-1, 1)))
    return found


for module, url in ((tritonclient.http, http), (tritonclient.grpc, grpc)):
    client = module.InferenceServerClient(url)
    answer = client.infer("en-mul", [tensor(module, "text", [">>deu<< two", ">>fra<< twenty-one"])])
    assert answer.as_numpy("text").tolist() == [[b"zwei"], [b"vingt et un"]], answer.as_numpy("text")
    assert json.loads(answer.as_numpy("result")[0, 0])["outputs"][0]["text"] == "zwei"
    several = {"num_beams": 4, "num_return_sequences": 3, "target_lang": "de"}
    answer = client.infer("en-mul", [tensor(module, "text", ["two"])], parameters=several)
    assert answer.as_numpy("text").shape == answer.as_numpy("score").shape == (1, 3)
    options = tensor(module, "options", [json.dumps({"num_beams": 2})])
    assert client.infer("en-mul", [tensor(module, "text", [">>deu<< two"]), options]).as_numpy("text")[0, 0] == b"zwei"
    try:
        client.infer("en-mul", [tensor(module, "text", ["two"])], parameters={"num_beam": 4})
    except Exception as error:
        assert "did you mean 'num_beams'" in str(error), error
    else:
        raise AssertionError("a wrong option was accepted")

client = tritonclient.grpc.InferenceServerClient(grpc)
found = queue.Queue()
for _ in range(32):
    client.async_infer(
        "en-mul", [tensor(tritonclient.grpc, "text", [">>deu<< two"])], lambda result, error: found.put((result, error))
    )
for _ in range(32):
    result, error = found.get(timeout=60)
    assert error is None and result.as_numpy("text")[0, 0] == b"zwei"
statistics = client.get_inference_statistics("en-mul").model_stats[0]
assert statistics.execution_count < statistics.inference_count, "nothing was batched"

parts = queue.Queue()
client.start_stream(lambda result, error: parts.put((result, error)))
line = ">>deu<< three hundred and twenty-one thousand"
client.async_stream_infer(
    "en-mul_stream", [tensor(tritonclient.grpc, "text", [line], [1])], enable_empty_final_response=True
)
text, last = "", ""
while True:
    result, error = parts.get(timeout=60)
    assert error is None, error
    if result.get_response().parameters["triton_final_response"].bool_param:
        break
    text += result.as_numpy("text")[0].decode()
    last = result.as_numpy("result")[0].decode()
client.stop_stream()
assert text == "dreihunderteinundzwanzigtausend" == json.loads(last)["outputs"][0]["text"], (text, last)
print("all good")
"""


@pytest.mark.slow
def test_the_real_server(words, tmp_path):
    """Needs the network, for pip. The server's Python backend of this version needs numpy 1."""
    wheel, client = tmp_path / "wheel", tmp_path / "client"
    environment = tmp_path / "environment"
    _run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", wheel, "nvidia-pytriton==0.7.0")
    _run(sys.executable, "-m", "venv", environment)
    root = Path(__file__).parents[2]
    packages = ("numpy==1.26.4", "onnxruntime", "click", "sentencepiece", "tokenizers")
    _run(environment / "bin" / "python", "-m", "pip", "install", "-q", *packages)
    [site] = (environment / "lib").glob("python3*/site-packages")
    (site / "s2s.pth").write_text(f"{root}\n")
    _run(sys.executable, "-m", "venv", client)
    _run(client / "bin" / "python", "-m", "pip", "install", "-q", "tritonclient[http,grpc]==2.73.0")
    parts, server = wheel / "pytriton" / "tritonserver", tmp_path / "server"
    for name in ("bin", "backends", "caches"):
        shutil.copytree(parts / name, server / name)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy(parts / "python_backend_stubs" / version / stub.name, stub)
    for program in (stub, server / "bin" / "tritonserver"):
        program.chmod(0o755)
    write_repository(
        words, tmp_path / "repository", Plan("en-mul", Batching(), environment=str(environment)), force=False
    )
    ports = [_free_port() for _ in range(3)]
    libraries = os.pathsep.join([str(wheel / "nvidia_pytriton.libs"), str(Path(sys.base_prefix) / "lib")])
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                server / "bin" / "tritonserver", f"--model-repository={tmp_path / 'repository'}",
                f"--backend-directory={server / 'backends'}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1",
                f"--http-port={ports[0]}", f"--grpc-port={ports[1]}", f"--metrics-port={ports[2]}",
            ],
            env={**os.environ, "LD_LIBRARY_PATH": libraries}, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        _wait_until_ready(ports[0], process, log)
        configs = [str(path) for path in (tmp_path / "repository").glob("*/config.pbtxt")]
        urls = [f"127.0.0.1:{port}" for port in ports[:2]]
        done = subprocess.run(
            [client / "bin" / "python", "-c", CLIENT, *urls, *configs], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0 and "all good" in done.stdout, done.stderr
    finally:
        process.terminate()
        process.wait(timeout=60)


def _run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_until_ready(port, process, log):
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())
