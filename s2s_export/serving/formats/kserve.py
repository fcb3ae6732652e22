"""KServe's open inference protocol v2 over HTTP, JSON and binary, which Triton's clients speak.

A model takes the tensor "text" of BYTES, [N] or [N,1], and gives "text" of BYTES and "score" of FP32, both [N]. The
request's "parameters" may hold `source_lang`, `target_lang` and generation options by their Hugging Face names. With
the header Inference-Header-Content-Length, that many bytes of the body are JSON, and tensors with `binary_data_size`
follow: a string as its length (4 bytes, little endian) and its bytes, a number as it is in memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from ...version import __version__
from .. import translating
from ..calls import Call, Endpoint, Format, json_response, plain_error
from ..failures import Refused
from ..models import Model

HEADER = "Inference-Header-Content-Length"
INPUT = "text"
OUTPUTS = {"text": "BYTES", "score": "FP32"}
OWN = frozenset(  # parameters of the protocol and of its clients, which are no generation options
    ("binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "classification")
)


async def server(call: Call) -> Response:
    return json_response({"name": "s2s", "version": __version__, "extensions": ["binary_tensor_data"]})


async def model_ready(call: Call) -> Response:
    _model(call)
    return Response(status_code=200 if call.state.status == "ready" else 503)


async def metadata(call: Call) -> Response:
    model = _model(call)
    outputs = [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in OUTPUTS.items()]
    inputs = [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]
    return json_response(
        {"name": model.name, "versions": ["1"], "platform": "s2s", "inputs": inputs, "outputs": outputs}
    )


async def infer(call: Call) -> Response:
    model = _model(call)
    request, binary = _request(call)
    texts = _texts(request, binary)
    call.state.limits.check_texts(texts)
    parameters = _mapping(request.get("parameters"), "parameters")
    codes = model.languages.codes(*(_text(parameters, name) for name in ("source_lang", "target_lang")))
    given = {name: value for name, value in parameters.items() if name not in (*OWN, *codes)}
    call.state.limits.check_given(given)
    session = model.session
    options = session.options(target_lang=codes["target_lang"], **given)
    call.state.limits.check_options(options)
    if options.num_return_sequences > 1:
        raise Refused(400, "num_return_sequences is above 1, but an output tensor has one text for each input")
    n = sum(map(len, texts))
    sources = await translating.off_loop(n, lambda: [session.encode(text, **codes) for text in texts])
    found = await translating.decode(call, model, sources, options)
    values: dict[str, list[Any]] = {"text": [of[0].text or "" for of in found], "score": [of[0].score for of in found]}
    return _response(model, request, parameters, values)


def _model(call: Call) -> Model:
    model = call.state.models.named(str(call.path["model"]))
    if call.path.get("version", "1") != "1":
        raise Refused(404, f"the model '{model.name}' has version 1 only")
    translating.require_text(model)
    return model


def _request(call: Call) -> tuple[dict[str, Any], bytes]:
    """The JSON part and the binary part of the body."""
    length = call.request.headers.get(HEADER)
    if length is None:
        return call.object(), b""
    if not length.isdecimal() or int(length) > len(call.body):
        raise Refused(400, f"{HEADER} is {length[:20]!r}; expected at most the {len(call.body)} bytes of the body")
    head = Call(call.request, call.body[: int(length)], call.state, call.arrived, call.timeout)
    return head.object(), call.body[int(length) :]


def _texts(request: Mapping[str, Any], binary: bytes) -> list[str]:
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refused(400, f"'inputs' is no list of one tensor; expected one named '{INPUT}'")
    tensor = inputs[0]
    if tensor.get("name") != INPUT or tensor.get("datatype") != "BYTES":
        found = f"'{str(tensor.get('name'))[:40]}' of {str(tensor.get('datatype'))[:20]}"
        raise Refused(400, f"the input is {found}; expected '{INPUT}' of BYTES")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 20 for n in shape):
        raise Refused(400, f"the shape of '{INPUT}' is no list of sizes; expected [N] or [N,1]")
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
        raise Refused(400, f"the shape of '{INPUT}' is {shape[:4]}; expected [N] or [N,1]")
    size = _mapping(tensor.get("parameters"), "parameters").get("binary_data_size")
    texts = _flat(tensor.get("data")) if size is None else _strings(binary, size)
    if len(texts) != shape[0]:
        raise Refused(400, f"'{INPUT}' holds {len(texts)} texts, but its shape is {shape}; expected as many")
    return texts


def _flat(data: Any) -> list[str]:
    values = (
        [part for item in data for part in (item if isinstance(item, list) else [item])]
        if isinstance(data, list)
        else None
    )
    if values is None or not all(isinstance(value, str) for value in values):
        raise Refused(400, f"'data' of '{INPUT}' is no list of strings; expected one string for each text")
    return values


def _strings(binary: bytes, size: Any) -> list[str]:
    if type(size) is not int or size != len(binary):
        raise Refused(400, f"binary_data_size is {str(size)[:20]}, but {len(binary)} bytes follow; expected as many")
    found, at = [], 0
    while at < len(binary):
        length: int = struct.unpack_from("<I", binary, at)[0] if at + 4 <= len(binary) else len(binary)
        if at + 4 + length > len(binary):
            raise Refused(
                400, f"the text at byte {at} of the binary data is cut off; expected its length and its bytes"
            )
        raw = binary[at + 4 : at + 4 + length]
        try:
            found.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            raise Refused(400, f"the text at byte {at} of the binary data is not UTF-8; convert it") from None
        at += 4 + length
    return found


def _response(
    model: Model, request: Mapping[str, Any], parameters: Mapping[str, Any], values: Mapping[str, Sequence[Any]]
) -> Response:
    wanted = request.get("outputs")
    if wanted is None:
        wanted = [{"name": name} for name in OUTPUTS]
    if not isinstance(wanted, list) or not all(
        isinstance(each, dict) and each.get("name") in OUTPUTS for each in wanted
    ):
        raise Refused(400, f"'outputs' names tensors that there are not; expected some of {', '.join(OUTPUTS)}")
    outputs, binary = [], b""
    for each in wanted:
        name = each["name"]
        asked = _mapping(each.get("parameters"), "parameters").get("binary_data")
        is_binary = bool(parameters.get("binary_data_output")) if asked is None else bool(asked)
        entry: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": [len(values[name])]}
        if is_binary:
            raw = _raw(OUTPUTS[name], values[name])
            entry["parameters"] = {"binary_data_size": len(raw)}
            binary += raw
        else:
            entry["data"] = list(values[name])
        outputs.append(entry)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": "1", "outputs": outputs}
    if isinstance(request.get("id"), str):
        answer["id"] = request["id"]
    if not binary:
        return json_response(answer)
    head = json.dumps(answer).encode("utf-8")
    return Response(head + binary, media_type="application/octet-stream", headers={HEADER: str(len(head))})


def _raw(kind: str, values: Sequence[Any]) -> bytes:
    if kind == "FP32":
        return struct.pack(f"<{len(values)}f", *values)
    encoded = [value.encode("utf-8", errors="replace") for value in values]
    return b"".join(struct.pack("<I", len(raw)) + raw for raw in encoded)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refused(400, f"'{name}' is no object; expected names with values")
    return value


def _text(parameters: Mapping[str, Any], name: str) -> str | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, str):
        raise Refused(400, f"'{name}' is no string; expected the code of a language")
    return value


FORMAT = Format(
    name="KServe v2",
    endpoints=(
        Endpoint("GET", "/v2", server, is_open=True),
        Endpoint("GET", "/v2/models/{model}", metadata),
        Endpoint("GET", "/v2/models/{model}/ready", model_ready, is_open=True),
        Endpoint("GET", "/v2/models/{model}/versions/{version}", metadata),
        Endpoint("POST", "/v2/models/{model}/infer", infer, decodes=True),
        Endpoint("POST", "/v2/models/{model}/versions/{version}/infer", infer, decodes=True),
    ),
    prefixes=("/v2",),
    error=plain_error,
)
