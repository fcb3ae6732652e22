"""Each format over a socket: what is answered, and in which shape errors are told. Real clients are in test_clients."""

from __future__ import annotations

import json
import struct

import pytest

from s2s_export.serving.app import all_formats


def test_libretranslate_takes_json_and_forms(served):
    assert served.post("/translate", {"q": "seventeen", "source": "en", "target": "fr"}).json() == {
        "translatedText": "dix-sept"
    }
    assert served.form("/translate", q="seventeen", source="en", target="de").json() == {"translatedText": "siebzehn"}
    several = {"q": ["seventeen", "half past three"], "source": "auto", "target": "de", "alternatives": 2}
    found = served.post("/translate", several).json()
    assert found["translatedText"] == ["siebzehn", "halb vier"]
    assert [each["language"] for each in found["detectedLanguage"]] == ["en", "en"]
    assert all(
        len(others) <= 2 and found["translatedText"][i] not in others for i, others in enumerate(found["alternatives"])
    )
    assert any(found["alternatives"])


def test_libretranslate_lists_detects_and_describes(served):
    names = {entry["code"]: entry for entry in served.get("/languages").json()}
    assert names["en"] == {"code": "en", "name": "English", "targets": names["en"]["targets"]}
    assert sorted(names["en"]["targets"]) == ["de", "fr"]
    assert served.form("/detect", q="half past three").json() == [{"confidence": 100.0, "language": "en"}]
    assert served.get("/frontend/settings").json()["language"]["source"] == {"code": "en", "name": "English"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "en", "target": "fr"}, "Invalid request: missing q parameter"),
        ({"q": "a", "target": "fr"}, "Invalid request: missing source parameter"),
        ({"q": "a", "source": "en"}, "Invalid request: missing target parameter"),
        ({"q": "a", "source": "zz", "target": "fr"}, "zz is not supported"),
        ({"q": "a", "source": "en", "target": "zz"}, "zz is not supported"),
        ({"q": 7, "source": "en", "target": "fr"}, "'q' holds a number; expected strings"),
        ({"q": "a", "source": "en", "target": "fr", "format": "pdf"}, "'format' is 'pdf'; expected text or html"),
    ],
)
def test_libretranslate_says_what_is_wrong(served, fields, message):
    answer = served.post("/translate", fields)
    assert (answer.status, answer.json()) == (400, {"error": message})


def test_white_space_and_sentences_of_a_paragraph_are_kept(served):
    text = "  seventeen\n\n\thalf past three \r\n21st\n"
    found = served.post("/translate", {"q": text, "source": "en", "target": "fr"}).json()["translatedText"]
    assert found == "  dix-sept\n\n\ttrois heures et demie \r\nvingt et unième\n"


def test_html_keeps_its_tags(served):
    text = (
        '<p class="x">seventeen &amp; half</p><ul><li><b>half past three</b></li><li>21st</li></ul>'
        "<script>seventeen</script>"
    )
    found = served.post("/translate", {"q": text, "source": "en", "target": "fr", "format": "html"}).json()[
        "translatedText"
    ]
    assert found.startswith('<p class="x">') and "<script>seventeen</script>" in found
    assert "<li><b>trois heures et demie</b></li><li>vingt et unième</li>" in found


def test_deepl(served):
    answer = served.form("/v2/translate", text=["seventeen", "21st"], target_lang="DE", show_billed_characters="true")
    assert answer.json() == {
        "translations": [
            {"detected_source_language": "EN", "text": "siebzehn", "billed_characters": 9},
            {"detected_source_language": "EN", "text": "einundzwanzigste", "billed_characters": 4},
        ]
    }
    tagged = {"text": ["<x>seventeen</x><keep>seventeen</keep>"], "target_lang": "FR", "source_lang": "EN",
              "tag_handling": "xml", "ignore_tags": ["keep"]}  # fmt: skip
    assert (
        served.post("/v2/translate", tagged).json()["translations"][0]["text"]
        == "<x>dix-sept</x><keep>seventeen</keep>"
    )
    assert served.get("/v2/languages?type=target").json()[0]["supports_formality"] is False
    assert served.get("/v2/usage").json()["character_count"] == 0
    refused = served.post("/v2/translate", {"text": ["a"], "target_lang": "DE", "glossary_id": "g"})
    assert (refused.status, refused.json()) == (
        400,
        {"message": "'glossary_id' is not supported by this server; leave it out"},
    )
    assert served.post("/v2/translate", {"text": ["a"], "target_lang": "ZZ"}).json() == {
        "message": "Value for 'target_lang' not supported: ZZ"
    }


def chat(content="21st", **more):
    return {"model": "en-mul:de", "messages": [{"role": "user", "content": content}], **more}


def test_openai_chat(served):
    found = served.post("/v1/chat/completions", chat()).json()
    assert found["choices"][0]["message"]["content"] == "einundzwanzigste"
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + found["usage"]["completion_tokens"]
    short = served.post("/v1/chat/completions", chat(max_tokens=1)).json()
    assert short["choices"][0]["finish_reason"] == "length"
    sampled = [served.post("/v1/chat/completions", chat(temperature=1.5, seed=3, n=3)).json() for _ in range(2)]
    texts = [[choice["message"]["content"] for choice in each["choices"]] for each in sampled]
    assert texts[0] == texts[1] and len(texts[0]) == 3


def test_openai_streams(served):
    *chunks, end = served.post(
        "/v1/chat/completions", chat(stream=True, stream_options={"include_usage": True})
    ).events()
    assert end == "[DONE]" and chunks[-1]["usage"]["completion_tokens"] > 0
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "einundzwanzigste"


def test_openai_errors_and_models(served):
    names = [entry["id"] for entry in served.get("/v1/models").json()["data"]]
    assert names[0] == "en-mul" and "en-mul:fr" in names
    assert served.get("/v1/models/en-mul").json()["id"] == "en-mul"
    missing = served.post("/v1/chat/completions", {**chat(), "model": "en-mull"})
    assert missing.status == 404
    assert missing.json()["error"] == {
        "message": "there is no model 'en-mull'; did you mean 'en-mul'?", "type": "invalid_request_error",
        "param": None, "code": "model_not_found",
    }  # fmt: skip
    assert served.post("/v1/audio/transcriptions", {}).status == 501
    assert (
        "'tools' is not supported" in served.post("/v1/chat/completions", chat(tools=[{}])).json()["error"]["message"]
    )


def kserve(data, **more):
    tensor = {"name": "text", "shape": [len(data)], "datatype": "BYTES", "data": data}
    return {"inputs": [tensor], "parameters": {"target_lang": "fr"}, **more}


def test_kserve_json_and_binary(served):
    assert served.get("/v2/health/ready").json()["ready"] is True
    assert served.get("/v2/models/en-mul/ready").status == 200
    assert served.get("/v2/models/en-mul").json()["inputs"][0]["datatype"] == "BYTES"
    found = served.post("/v2/models/en-mul/infer", kserve(["21st", "seventeen"], id="7")).json()
    assert found["id"] == "7" and found["outputs"][0]["data"] == ["vingt et unième", "dix-sept"]
    raw = b"".join(struct.pack("<I", len(text)) + text for text in (b"21st", b"seventeen"))
    size = {"binary_data_size": len(raw)}
    head = json.dumps({
        "inputs": [{"name": "text", "shape": [2, 1], "datatype": "BYTES", "parameters": size}],
        "outputs": [{"name": "text", "parameters": {"binary_data": True}}, {"name": "score"}],
        "parameters": {"target_lang": "fra"},
    }).encode()  # fmt: skip
    length = {"Inference-Header-Content-Length": str(len(head))}
    answer = served.request("POST", "/v2/models/en-mul/infer", head + raw, length)
    n = int({name.lower(): value for name, value in answer.headers.items()}["inference-header-content-length"])
    outputs = json.loads(answer.body[:n])["outputs"]
    first = struct.unpack_from("<I", answer.body, n)[0]
    assert answer.body[n + 4 : n + 4 + first].decode() == "vingt et unième"
    assert outputs[1]["data"][0] == pytest.approx(found["outputs"][1]["data"][0], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"inputs": []}, "expected one named 'text'"),
        ({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [3], "data": ["a"]}]}, "holds 1 texts"),
        ({"inputs": [{"name": "text", "datatype": "FP32", "shape": [1], "data": ["a"]}]}, "of FP32"),
        ({"parameters": {"num_beams": 99}}, "allows at most 16"),
        ({"parameters": {"target_lang": "xx"}}, "not supported"),
        ({"outputs": [{"name": "x"}]}, "names tensors that there are not"),
    ],
)
def test_kserve_says_what_is_wrong(served, change, part):
    answer = served.post("/v2/models/en-mul/infer", {**kserve(["a"]), **change})
    assert answer.status == 400 and part in answer.json()["error"]


def test_hugging_face(served):
    one = {"inputs": "half past three", "parameters": {"tgt_lang": "de", "num_beams": 2}}
    assert served.post("/models/en-mul", one).json() == [{"translation_text": "halb vier"}]
    both = {"inputs": [">>fra<< 21st", ">>deu<< 21st"]}
    texts = [entry["generated_text"] for entry in served.post("/models/en-mul", both).json()]
    assert texts == ["vingt et unième", "einundzwanzigste"]
    assert served.post("/models/nothing", one).status == 404


def test_own_format_gives_what_the_library_gives(served, session):
    line = {"id": [1, "x"], "text": "the third of March 1998", "target_lang": "fra", "num_beams": 3,
            "num_return_sequences": 3, "alignments": True}  # fmt: skip
    found = served.post("/v1/s2s/generate", line).json()
    source = session.encode(line["text"], target_lang="fra")
    truth = session.generate([source], num_beams=3, num_return_sequences=3, alignments=True)[0]
    assert found["id"] == [1, "x"] and found["backend"] == session.backend.name
    assert [each["token_ids"] for each in found["outputs"]] == [hypothesis.token_ids for hypothesis in truth]
    weights = found["outputs"][0]["alignment"]["weights"]
    assert [len(weights), len(weights[0])] == [*truth[0].alignment.shape]
    ids = served.post("/v1/s2s/generate", {"input_ids": source, "num_beams": 3}).json()
    assert ids["outputs"][0]["token_ids"] == truth[0].token_ids


def test_own_format_streams(served):
    *pieces, whole = served.post(
        "/v1/s2s/generate", {"text": "half past three", "target_lang": "fr", "stream": True}
    ).events()
    assert "".join(piece["text"] for piece in pieces) == whole["outputs"][0]["text"] == "trois heures et demie"
    assert len(pieces) > 1
    wrong = served.post("/v1/s2s/generate", {"text": "a", "stream": True, "num_bems": 2})
    assert (wrong.status, "did you mean 'num_beams'" in wrong.json()["error"]) == (400, True)


def test_model_card_and_figures(served):
    [card] = served.get("/v1/s2s/model").json()["models"]
    assert card["name"] == "en-mul" and card["has_alignments"]
    assert {entry["code"] for entry in card["target_languages"]} == {"de", "fr"}


def test_the_page_loads_nothing_from_elsewhere(served):
    page = served.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for part in (b'src="', b'href="'):
        for link in page.body.split(part)[1:]:
            path = link.split(b'"')[0].decode()
            assert served.get(path).status == 200, path
    assert b"style=" not in page.body and b"<script>" not in page.body
    assert served.get("/favicon.ico").status == 200


def test_every_route_is_in_openapi(served):
    paths = served.get("/openapi.json").json()["paths"]
    for each in all_formats():
        for endpoint in each.endpoints:
            assert endpoint.method.lower() in paths[endpoint.path]


def test_what_is_not_there_is_told_in_the_shape_of_the_format(served):
    assert set(served.get("/nothing").json()) == {"error"}
    assert served.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert set(served.get("/v2/translate").json()) == {"message"}
    assert served.get("/translate").status == 405


def test_no_file_of_the_server_is_read(served):
    answer = served.post("/v1/s2s/generate", {"audio": "/etc/passwd"})
    assert answer.status == 400 and "'text' and 'input_ids' only" in answer.json()["error"]
    terms = {"terms": "/etc/passwd"}
    for path, fields in (
        ("/v1/s2s/generate", {"text": "21st", **terms}),
        ("/v2/models/en-mul/infer", {**kserve(["21st"]), "parameters": terms}),
        ("/models/en-mul", {"inputs": "21st", "parameters": {"generate_parameters": terms}}),
    ):
        answer = served.post(path, fields)
        assert answer.status == 400 and "expected pairs of texts" in answer.json()["error"]
