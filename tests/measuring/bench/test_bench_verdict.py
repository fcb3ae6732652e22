"""The sentences with which the page of `s2s bench` opens, and what makes a peer decode the same model."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import make

from s2s_export.measuring.bench import verdict
from s2s_export.measuring.bench.charts import Series, _apart, _Axis, lines
from s2s_export.measuring.bench.contestants.ctranslate2 import keep_start

ENTRIES = (
    ("s2s cpu-fp32", "s2s", "fp32"), ("s2s cpu-int8", "s2s", "int8"), ("s2s cpu-int8 shortlist", "s2s", "int8"),
    ("CTranslate2 float32", "ctranslate2", "fp32"), ("CTranslate2 int8", "ctranslate2", "int8"),
)  # fmt: skip


def record_of(*works: dict[str, float], **equal: float) -> dict[str, Any]:
    """A record of works of 1, 2, ... sources: seconds of a sentence by label."""
    results = [
        {
            "label": label, "threads": 1, "batch_size": number, "num_beams": 1, "source_length": 30, "new_tokens": 64,
            "sentence": {"p50": seconds}, "peak_memory": 100 * 2**20 if label.startswith("s2s") else 200 * 2**20,
            "equal_sentences": equal.get(label.split()[0], 1.0),
        }
        for number, times in enumerate(works, 1) for label, seconds in times.items()
    ]  # fmt: skip
    contestants = [{"label": label, "contestant": who, "precision": precision} for label, who, precision in ENTRIES]
    return {
        "results": results, "contestants": contestants, "file": None, "model": {},
        "settings": {"reference": "transformers generate"},
    }  # fmt: skip


def test_wins_and_losses_at_the_same_precision() -> None:
    first = {"s2s cpu-fp32": 2.0, "CTranslate2 float32": 1.0, "s2s cpu-int8": 1.0, "CTranslate2 int8": 2.0}
    second = {"s2s cpu-fp32": 1.0, "CTranslate2 float32": 3.0, "s2s cpu-int8": 1.0, "CTranslate2 int8": 1.02}
    fp32, int8, memory = verdict.sentences(record_of(first, second))
    assert fp32 == (
        "In fp32, s2s is faster than CTranslate2 float32, the fastest other system, in 1 of 2 pieces of work, at 3.00 "
        "times its speed and slower than it in 1, at 0.50 times its speed (batch 1, 1 beam, source 30: 0.50)."
    )
    assert int8.startswith("In int8, s2s is faster than CTranslate2 int8, the fastest other system, in 1 of 2")
    assert int8.endswith("and as fast as it in 1.")
    assert memory.endswith("peaks at 100 MiB, less than CTranslate2 float32 with 200 MiB.")


def test_a_shortlist_is_no_win_and_without_others_nothing_is_said() -> None:
    works = {"s2s cpu-int8": 3.0, "s2s cpu-int8 shortlist": 1.0, "CTranslate2 int8": 2.0}
    assert "slower than CTranslate2 int8" in verdict.sentences(record_of(works))[0]
    assert verdict.sentences(record_of({"s2s cpu-int8": 3.0})) == []


def test_other_tokens_in_fp32_are_explained() -> None:
    works = {"s2s cpu-fp32": 1.0, "CTranslate2 float32": 1.0, "CTranslate2 int8": 1.0}
    said = verdict.sentences(record_of(works, CTranslate2=0.75))[-1]
    assert said.startswith("Tokens: CTranslate2 float32 computes in fp32 and yet wrote other tokens than transformers")
    assert "25% of the sentences" in said and "renormalize_logits" in said


def test_what_a_fixed_length_costs_is_said() -> None:
    record = record_of({"s2s cpu-fp32": 1.0, "CTranslate2 float32": 1.0})
    assert "--file measures that" not in " ".join(verdict.sentences(record))
    record["model"]["renormalizes"] = True
    assert verdict.sentences(record)[-1].endswith("--file measures that.")


def test_a_file_is_faster_or_slower() -> None:
    record = record_of()
    ran = [("s2s cpu-fp32", 2.0), ("CTranslate2 float32", 1.0), ("s2s cpu-int8", 1.0), ("CTranslate2 int8", 2.0)]
    record["file"] = {"results": [{"label": n, "seconds": {"p50": t}, "equal_sentences": 1.0} for n, t in ran]}
    assert verdict.sentences(record) == [
        "In fp32, s2s cpu-fp32 translated the file slower: at 0.50 times the speed of CTranslate2 float32.",
        "In int8, s2s cpu-int8 translated the file faster: at 2.00 times the speed of CTranslate2 int8.",
    ]


def test_a_marian_model_starts_from_zeros_without_a_difference() -> None:
    import torch

    model = make("marian").eval()
    start = model.config.decoder_start_token_id
    with torch.no_grad():
        model.get_decoder().embed_tokens.weight[start] = torch.linspace(-1, 1, model.config.d_model)
        given = {"input_ids": torch.tensor([[5, 9, 3]]), "decoder_input_ids": torch.tensor([[start, 7, 4]])}
        expected = model(**given).logits
        model = keep_start(model)
        rows = model.get_decoder().get_input_embeddings()(given["decoder_input_ids"])
        rows[0, 0] = 0.0  # as the conversion has it
        found = model(input_ids=given["input_ids"], decoder_inputs_embeds=rows).logits
    assert torch.allclose(expected, found, atol=1e-5)


def test_labels_of_ticks_are_never_written_over_each_other() -> None:
    axis = _Axis([1.0, 1.02, 1.04, 8.0], 0, 300)
    shown = _apart([1.0, 1.02, 1.04, 8.0], axis, 40)
    assert shown == [1.0, 8.0]


def test_a_chart_is_drawn_for_wide_screens_and_for_narrow_ones() -> None:
    drawn = lines([Series("a", 0, [(1, 2.0), (8, 3.0)])], "x", "y", floors=[("f", 1.0), ("g", 1.0)])
    assert drawn.count('<svg class="on-wide"') == drawn.count('<svg class="on-narrow"') == 1
    heights = [float(part.split('y="')[1].split('"')[0]) for part in drawn.split('class="floorname"')[1:3]]
    assert abs(heights[0] - heights[1]) == pytest.approx(15)
