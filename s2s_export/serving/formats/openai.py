"""OpenAI's API: chat completions for text-to-text, the last user message being the source; transcriptions and
translations of speech; models.

A model's name is the bundle's, or NAME:LANG for a model of several target languages.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from ...runtime.decoding import GenerationOptions, Hypothesis
from ...runtime.sources import Source
from ...runtime.speech import formats
from ...runtime.speech import languages as speech_languages
from .. import languages, transcribing, translating
from ..calls import Call, Endpoint, Format, flag_in, integer_in, json_response, text_in
from ..failures import Failure, Refused
from ..models import Model
from . import _events

UNSUPPORTED = ("tools", "functions", "stop", "logit_bias", "logprobs", "frequency_penalty", "presence_penalty", "audio")
SHAPES = ("json", "text", "srt", "vtt", "verbose_json")  # of transcripts
NUMBERS = {"temperature": "temperature", "top_p": "top_p"}


async def chat(call: Call) -> Response:
    fields = call.object()
    model, target = _model(call, text_in(fields, "model"))
    for name in UNSUPPORTED:
        if fields.get(name):
            raise Refused(400, f"'{name}' is not supported by this server; leave it out", "unsupported_parameter")
    text = _last_user_message(fields.get("messages"))
    call.state.limits.check_texts([text])
    codes = model.languages.codes(None, target)
    options = model.session.options(target_lang=codes["target_lang"], **_options(fields))
    call.state.limits.check_options(options)
    source = await translating.off_loop(len(text), lambda: model.session.encode(text, **codes))
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": str(fields["model"])}
    if flag_in(fields, "stream"):
        if options.num_return_sequences > 1:
            raise Refused(400, "'stream' gives one choice; leave out 'n'", "unsupported_parameter")
        usage = isinstance(fields.get("stream_options"), dict) and bool(fields["stream_options"].get("include_usage"))
        events = _stream(call, model, source, options, head, usage)
        return await _events.respond(events, lambda failure: _error_body(failure))
    [hypotheses] = await translating.decode(call, model, [source], options)
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": hypothesis.text or "", "refusal": None},
            "finish_reason": _reason(hypothesis, options),
            "logprobs": None,
        }
        for i, hypothesis in enumerate(hypotheses)
    ]
    used = _usage(source, hypotheses)
    return json_response({**head, "object": "chat.completion", "choices": choices, "usage": used})


async def _stream(
    call: Call, model: Model, source: Source, options: GenerationOptions, head: dict[str, Any], with_usage: bool
) -> AsyncIterator[Any]:
    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**head, "object": "chat.completion.chunk", "choices": [choice]}

    role = {"role": "assistant"}
    async for part in translating.stream(call, model, source, options):
        if isinstance(part, str):
            yield chunk({**role, "content": part})
            role = {}
        else:
            yield chunk({**role}, _reason(part[0], options))
            if with_usage:
                yield {**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(source, part)}
    yield "[DONE]"


def _model(call: Call, name: str | None) -> tuple[Model, str | None]:
    if not name:
        raise Refused(400, "you must provide a model parameter", "missing_model")
    models = call.state.models
    base, separator, target = name.rpartition(":")
    model = models.named(base if separator and base in models.by_name else name)
    translating.require_text(model)
    return model, target if separator and base in models.by_name else None


def _last_user_message(messages: Any) -> str:
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise Refused(400, "'messages' is no list of messages; expected objects with 'role' and 'content'")
    of_user = [message for message in messages if message.get("role") == "user"]
    if not of_user:
        raise Refused(400, "'messages' has no message of the role 'user'; its last one is the source")
    content = of_user[-1].get("content")
    if isinstance(content, list):  # parts
        parts = [part for part in content if isinstance(part, dict)]
        if len(parts) != len(content) or any(part.get("type") != "text" for part in parts):
            raise Refused(400, "the last user message has parts that are not text; expected text only")
        content = "".join(str(part.get("text", "")) for part in parts)
    if not isinstance(content, str):
        raise Refused(400, "the last user message has no text in 'content'; expected a string")
    return content


def _options(fields: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name in ("max_tokens", "max_completion_tokens"):
        if fields.get(name) is not None:
            options["max_new_tokens"] = integer_in(fields, name, 0)
    if fields.get("seed") is not None:
        options["seed"] = integer_in(fields, "seed", 0)
    for name in NUMBERS:
        value = fields.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
        ):
            raise Refused(400, f"'{name}' is no number; expected one")
    if fields.get("temperature"):  # left out or 0: the model's own search
        options |= {"do_sample": True, "num_beams": 1, "temperature": float(fields["temperature"])}
        if fields.get("top_p") is not None:
            options["top_p"] = float(fields["top_p"])
    n = integer_in(fields, "n", 1)
    if n != 1:
        options["num_return_sequences"] = n
        if "do_sample" not in options:
            options["num_beams"] = max(n, 4)
    return options


def _reason(hypothesis: Hypothesis, options: GenerationOptions) -> str:
    ended = bool(hypothesis.token_ids) and hypothesis.token_ids[-1] in options.eos_token_id
    is_forced = len(hypothesis.token_ids) >= options.max_length and bool(options.forced_eos_token_id)
    return "stop" if ended and not is_forced else "length"


def _usage(source: Source, hypotheses: list[Hypothesis]) -> dict[str, int]:
    read, written = len(source), sum(len(hypothesis.token_scores) for hypothesis in hypotheses)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def list_models(call: Call) -> Response:
    entries = []
    for model in call.state.models:
        names = [model.name]
        if len(model.languages.targets) > 1:
            names += [f"{model.name}:{target}" for target in model.languages.targets]
        entries += [_entry(name) for name in names]
    return json_response({"object": "list", "data": entries})


async def one_model(call: Call) -> Response:
    name = str(call.path["model"])
    _model(call, name)
    return json_response(_entry(name))


def _entry(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "s2s"}


async def transcriptions(call: Call) -> Response:
    return await _speech(call, "transcribe")


async def translations(call: Call) -> Response:
    return await _speech(call, "translate")


async def _speech(call: Call, task: str) -> Response:
    if not any(model.session.speech is not None for model in call.state.models):
        transcribing.model_named(call.state.models, None)  # refuses, before the body is looked into
    form = await call.form()
    fields = {name: values[0] for name, values in form.items() if name != "file" and isinstance(values[0], str)}
    sound = form.get("file", [b""])[0]
    if not isinstance(sound, bytes) or not sound:
        raise Refused(400, "the form has no file 'file'; expected the sound", "missing_file")
    model = transcribing.model_named(call.state.models, text_in(fields, "model"))
    shape = text_in(fields, "response_format", "json")
    if shape not in SHAPES:
        raise Refused(400, f"'response_format' is {str(shape)[:60]!r}; expected one of {', '.join(SHAPES)}")
    options = _speech_options(form, fields, model, task)
    if flag_in(fields, "stream"):
        if shape not in ("json", "text"):
            raise Refused(400, f"'stream' gives text, and 'response_format' is {shape!r}; leave one of them out")
        return await _events.respond(_heard(call, model, sound, options), lambda failure: _error_body(failure))
    found = await transcribing.transcribe(model, sound, options)
    if shape == "json":
        return json_response({"text": found.text})
    if shape == "verbose_json":
        return json_response(_verbose(found, task, words=options["timestamps"] == "word"))
    return PlainTextResponse(formats.WRITERS[shape](found, formats.Lines()))


def _speech_options(
    form: Mapping[str, Sequence[str | bytes]], fields: Mapping[str, Any], model: Model, task: str
) -> dict[str, Any]:
    options: dict[str, Any] = {"task": task, "timestamps": "segment"}
    granularities = form.get("timestamp_granularities[]") or form.get("timestamp_granularities") or ()
    for each in granularities:
        if each not in ("word", "segment"):
            raise Refused(400, f"'timestamp_granularities' has {str(each)[:60]!r}; expected 'word' or 'segment'")
    if "word" in granularities:
        options["timestamps"] = "word"
    speech = model.session.speech
    assert speech is not None
    if fields.get("language") and (speech.is_multilingual or languages.base(str(fields["language"])) != "en"):
        options["language"] = fields["language"]
    if fields.get("prompt"):
        options["initial_prompt"] = fields["prompt"]
    if fields.get("temperature"):
        try:
            temperature = float(fields["temperature"])
        except ValueError:
            raise Refused(400, f"'temperature' is {str(fields['temperature'])[:60]!r}; expected a number") from None
        if not 0 <= temperature <= 1:
            raise Refused(400, f"'temperature' is {temperature:g}; expected 0 to 1")
        if temperature:  # 0: the model's own way, which raises it where text is bad
            options["temperature"] = temperature
    return options


async def _heard(call: Call, model: Model, sound: bytes, options: dict[str, Any]) -> AsyncIterator[Any]:
    async for part in transcribing.stream(model, sound, options):
        if isinstance(part, formats.Transcript):
            yield {"type": "transcript.text.done", "text": part.text}
        else:
            yield {"type": "transcript.text.delta", "delta": part.text}


def _verbose(found: formats.Transcript, task: str, *, words: bool) -> dict[str, Any]:
    record = formats.record(found)
    name = speech_languages.NAMES.get(found.language or "", found.language)
    segments = record["segments"]
    heard = [{key: word[key] for key in ("word", "start", "end")} for s in segments for word in s.pop("words", ())]
    answer = {"task": task, "language": name, "duration": found.duration, "text": found.text, "segments": segments}
    return {**answer, "words": heard} if words else answer


def _error_body(failure: Failure) -> dict[str, Any]:
    kind = "server_error" if failure.status >= 500 else "invalid_request_error"
    return {"error": {"message": failure.message, "type": kind, "param": None, "code": failure.code}}


def error(failure: Failure) -> Response:
    return JSONResponse(_error_body(failure), failure.status, failure.headers)


FORMAT = Format(
    name="OpenAI",
    endpoints=(
        Endpoint("POST", "/v1/chat/completions", chat, decodes=True),
        Endpoint("GET", "/v1/models", list_models),
        Endpoint("GET", "/v1/models/{model}", one_model),
        Endpoint("POST", "/v1/audio/transcriptions", transcriptions, takes_audio=True),
        Endpoint("POST", "/v1/audio/translations", translations, takes_audio=True),
    ),
    prefixes=("/v1/",),
    error=error,
)
