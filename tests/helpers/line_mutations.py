"""Lines of `s2s generate`'s input, damaged in every way we could think of, from a seed."""

from __future__ import annotations

import json
import random
from typing import Any

OPTIONS = (
    "num_beams", "num_return_sequences", "length_penalty", "early_stopping", "max_new_tokens", "max_length",
    "min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "repetition_penalty",
    "bad_words_ids",
    "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "decoder_input_ids",
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "seed",
    "sequence_bias", "exponential_decay_length_penalty", "renormalize_logits", "eos_token_id", "pad_token_id",
    "decoder_start_token_id", "encoder_repetition_penalty", "top_h", "use_cache", "guidance_scale", "streamer",
)  # fmt: skip
NAMES = (
    "id",
    "text",
    "input_ids",
    "audio",
    "source_lang",
    "target_lang",
    "self",
    "",
    "\ud800",
    "overrides",
    "cls",
    "a b",
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, -1, 3, 7, 10**6, 10**9, 10**21, -(10**30), 2**31, 2**63, 0.0, -0.0, 0.5, 1.0, 1.5,
    1e-300, 1e300, -1e300, "", "0", "7", "x", "never", "true", "\ud800", "\x00", "\u202e", "é" * 50, "x" * 3000,
    ">>xxx<< two",
    [], [[]], [0], [1, 2], [[1, 2], [3]], [-1], [10**9], [None], ["a"], [1.5], [True], {}, {"a": 1}, {"1": [2]},
    [[[1], 2.0]], [[5], 1.0], [1, 1.1], [0, 0], list(range(500)),
)  # fmt: skip
RAW = (
    "NaN", "-Infinity", "Infinity", "1e400", "-1e400", "9" * 5000, "[" * 2000, '{"a":' * 1500, "[" * 400 + "]" * 400,
    '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', "01", "1.", "+1", "'x'", '"\t"', "nul", "tru",
)  # fmt: skip


def line(rng: random.Random) -> bytes:
    """One line: a good case with some fields changed, and now and then its bytes."""
    fields: dict[str, Any] = {"id": rng.choice(["a", 5, None, [1], {"k": 2}]), "max_new_tokens": 3, "num_beams": 1}
    if rng.random() < 0.5:
        fields["input_ids"] = [rng.randrange(3, 30) for _ in range(rng.randrange(1, 6))]
    else:
        fields["text"] = rng.choice([">>deu<< two", "x", "twenty-one", ">>fra<< 3"])
    marks = {}
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        name = rng.choice(OPTIONS + NAMES)
        if rng.random() < 0.2:
            mark = f"@{len(marks)}@"
            marks[mark] = rng.choice(RAW)
            fields[name] = mark
        else:
            fields[name] = rng.choice(VALUES)
    text = json.dumps(fields, ensure_ascii=rng.random() < 0.7)
    for mark, raw in marks.items():
        text = text.replace(f'"{mark}"', raw)
    found = bytearray(text.encode("utf-8", errors="surrogatepass"))
    if rng.random() < 0.15:
        _damage(found, rng)
    return bytes(found).replace(b"\n", b" ")


def _damage(line: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(line)) if line else 0
        kind = rng.randrange(4)
        if kind == 0 and line:
            line[place] = rng.randrange(256)
        elif kind == 1:
            del line[place:]
        elif kind == 2:
            del line[place : place + rng.randrange(1, 9)]
        else:
            line[place:place] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 6)))
