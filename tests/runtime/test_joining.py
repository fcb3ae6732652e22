"""Joined equals alone: whoever shares a batch, whenever a source comes in, it gets the outputs that it gets alone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny_models
from arrivals import arrive, compare
from tiny_names import RECURRENT

import s2s_export
from s2s_export.building.build import build
from s2s_export.errors import BackendError, InputError
from s2s_export.runtime.decoding.joining import Until, part_of, together
from s2s_export.runtime.decoding.state import StepQuery, StepResult
from s2s_export.runtime.joining import OpenDecoding, why_whole_batches
from s2s_export.runtime.native_search.open_step import DirectStep

FAST = ("marian", "t5")  # one with position codes, one with biases of distances
ELSEWHERE = ("t5gemma",)  # whose attention is of no kind that our kernels compute
SWEPT = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name in tiny_models.CONFIGS
    if not name.startswith(ELSEWHERE)
]
# By the rows of a source: options that may be in one batch.
MIXED = {
    1: [{}, {"max_new_tokens": 4}, {"repetition_penalty": 1.5, "min_new_tokens": 3}, {"no_repeat_ngram_size": 2}],
    3: [
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 3, "length_penalty": 2.0, "no_repeat_ngram_size": 2, "max_new_tokens": 9},
        {"num_beams": 3, "early_stopping": True, "min_new_tokens": 5},
        {"num_beams": 3, "early_stopping": "never", "suppress_tokens": [5, 9], "renormalize_logits": True},
    ],
}


@pytest.fixture(scope="module")
def opened(bundled, tmp_path_factory):
    """opened(name, target) -> a session on one thread; recurrent models on their portable graphs."""
    root = tmp_path_factory.mktemp("joined")
    sessions = {}

    def open_session(name, target="cpu-fp32"):
        if (name, target) not in sessions:
            path = bundled(name)
            if name not in RECURRENT:
                path = root / f"{name}.bundle"
                if not path.exists():
                    shutil.copytree(bundled(name), path)
                build(path, target)
            sessions[name, target] = s2s_export.load(
                path, "onnxruntime", None if name in RECURRENT else target, threads=1
            )
        return sessions[name, target]

    return open_session


def jobs_of(session, n, n_rows, seed, **more):
    rng = np.random.default_rng(seed)
    chosen = [session.options(**{"max_new_tokens": 12, **how, **more}) for how in MIXED[n_rows]]
    top = min(36, session.bundle.vocabulary_size)
    sources = [session.check_source(rng.integers(4, top, int(rng.integers(1, 18))).tolist()) for _ in range(n)]
    return [(source, chosen[rng.integers(len(chosen))]) for source in sources]


@pytest.mark.parametrize("n_rows", MIXED)
@pytest.mark.parametrize("name", SWEPT)
def test_joined_equals_alone(opened, name, n_rows):
    session = opened(name)
    assert why_whole_batches(session) is None
    jobs = jobs_of(session, 100 if name in FAST else 60, n_rows, 1)
    found = arrive(session, jobs, seed=2, leaving=0.1, streaming=0.2)
    compare(session, jobs, found)
    assert 0 < len(found.left) < 20 and found.n_stepped > 3 * found.n_steps


@pytest.mark.parametrize("n_rows", MIXED)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "attention" else pytest.mark.slow) for name in RECURRENT]
)
def test_recurrent_models_join_on_their_portable_graphs(opened, name, n_rows):
    session = opened(name)
    jobs = jobs_of(session, 60, n_rows, 3)
    found = arrive(session, jobs, seed=4, leaving=0.1, streaming=0.2)
    compare(session, jobs, found)
    assert found.n_stepped > 3 * found.n_steps


def test_int8_has_a_scale_for_each_row(opened):
    session = opened("marian", "cpu-int8")
    for n_rows in MIXED:
        jobs = jobs_of(session, 40, n_rows, 5)
        compare(session, jobs, arrive(session, jobs, seed=6))


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8"])
def test_padding_changes_no_bit_of_what_is_encoded(opened, target):
    """In int8 the last bit of a state may be a step of a byte, and so another token."""
    backend, rng = opened("marian", target).backend, np.random.default_rng(8)
    for lengths in ([1, 17], [5, 16], [9, 32, 33], [7, 20, 40, 3], [2, 3, 5, 8, 13, 21, 34]):
        batch = [rng.integers(4, 36, n).tolist() for n in lengths]
        together = backend.encode(batch)
        for i, source in enumerate(batch):
            alone = backend.encode([source])
            for name in ("encoder_states", "cross_key.0", "cross_value.1"):
                cut = tuple(slice(size) for size in alone[name].shape[1:])
                np.testing.assert_array_equal(together[name][i][cut], alone[name][0], err_msg=f"{name} {lengths}")


@pytest.mark.slow
@pytest.mark.parametrize("n_rows", MIXED)
@pytest.mark.parametrize(("name", "target"), [("marian", "cpu-fp32"), ("t5", "cpu-fp32"), ("marian", "cpu-int8")])
def test_thousands_of_arrivals(opened, name, target, n_rows):
    session = opened(name, target)
    for seed in range(4):
        jobs = jobs_of(session, 1000, n_rows, seed)
        found = arrive(session, jobs, seed=seed, most=16, leaving=0.1, streaming=0.1)
        compare(session, jobs, found)


def test_samples_groups_terms_prompts_and_whole_distributions_join(opened):
    session = opened("marian")
    ways = [
        {"num_beams": 1, "do_sample": True, "seed": 3, "num_return_sequences": 4, "top_k": 20},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.4},
        {"num_beams": 4, "force_words_ids": [[7, 8]]},
        {"num_beams": 4, "decoder_input_ids": [5, 9, 11]},
        {"num_beams": 4, "do_sample": True, "seed": 9},
        {"num_beams": 4},
    ]
    chosen = [session.options(max_new_tokens=10, **how) for how in ways]
    rng = np.random.default_rng(7)
    sources = [session.check_source(rng.integers(4, 50, int(rng.integers(2, 15))).tolist()) for _ in range(48)]
    jobs = [(source, chosen[rng.integers(len(chosen))]) for source in sources]
    compare(session, jobs, arrive(session, jobs, seed=8))


@pytest.mark.parametrize("name", ["marian", "attention"])
def test_alignments_are_those_of_each_source(opened, name):
    """Although the padding grows while a source is decoded."""
    session = opened(name)
    options = session.options(num_beams=2, max_new_tokens=8)
    sources = [session.check_source([7] * n) for n in (3, 12, 5, 25, 2, 17, 9, 20)]
    jobs = [(source, options) for source in sources]
    found = arrive(session, jobs, seed=1, alignments=True)
    for (source, _), result in zip(jobs, found.results, strict=True):
        [alone] = session.decode_batch([source], options, alignments=True)
        assert result[0].alignment.shape == alone[0].alignment.shape
        np.testing.assert_allclose(result[0].alignment, alone[0].alignment, atol=1e-5)


def test_room_grows_with_targets_and_sources(opened, monkeypatch):
    """Caches of few positions and sources of all lengths: everything is moved while sources are decoded."""
    from s2s_export.runtime.backends import _open_attention

    monkeypatch.setattr(_open_attention, "RESERVED", 2)
    session = opened("t5")
    rng = np.random.default_rng(0)
    options = session.options(num_beams=3, max_new_tokens=20, min_new_tokens=15)
    jobs = [(session.check_source(rng.integers(4, 50, n).tolist()), options) for n in (2, 4, 33, 1, 3, 70, 5, 2, 20)]
    compare(session, jobs, arrive(session, jobs, seed=3, most=4))


def test_sums_that_are_imprecise_are_decoded_again_in_the_batch(opened):
    """All but a few tokens are banned, so that nearly no probability is left: see decoding/chain.py."""
    session = opened("marian")
    banned = [token for token in range(1, 60) if token not in (52, 53)]
    options = session.options(num_beams=3, suppress_tokens=banned, renormalize_logits=True, max_new_tokens=6)
    session.searcher._imprecise.clear()
    jobs = [(session.check_source([n, 8]), options) for n in range(4, 16)]
    found = arrive(session, jobs, seed=5, streaming=1.0)
    assert options in session.searcher._imprecise
    compare(session, jobs, found)


def test_one_cohort_that_fails_leaves_the_others_alone(opened):
    session = opened("marian")
    good = session.options(num_beams=2, max_new_tokens=9, min_new_tokens=9)
    bad = session.options(num_beams=2, max_new_tokens=9, prefix_allowed_tokens_fn=lambda batch, ids: 1 / (len(ids) < 4))
    jobs = [(session.check_source([n, 8]), bad if n == 6 else good) for n in range(4, 12)]
    found = arrive(session, jobs, seed=5)
    assert isinstance(found.results[2], Exception)
    jobs.pop(2), found.results.pop(2), found.told.pop(2)
    compare(session, jobs, found)


def test_who_cannot_join_says_why(opened, bundled):
    portable = s2s_export.load(bundled("marian"), target="portable", threads=1)
    assert "one position for all sources" in why_whole_batches(portable)
    assert "--target cpu-fp32" in why_whole_batches(portable)
    assert "no attention of our own" in why_whole_batches(opened("t5gemma"))
    assert "torch decodes whole batches" in why_whole_batches(s2s_export.load(bundled("marian"), "torch"))


def test_engines_of_earlier_operators_run_and_say_that_they_could_join(opened, tmp_path):
    """The graph as it was built before sources had positions: `position [1]`, no places."""
    from s2s_export import plugin_sources
    from s2s_export.building.cpu.own import placing

    session = opened("marian")
    path = shutil.copytree(session.bundle.path, tmp_path / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placing, "apply", lambda graph: placing.Applied("before"))
        build(path, "cpu-fp32", force=True)
    file = path / "engines" / "cpu-fp32" / "engine.json"
    earlier = plugin_sources.module("cpu.build").EARLIER[-1]
    file.write_text(json.dumps({**json.loads(file.read_text()), "operators": {"sources": earlier}}))
    before = s2s_export.load(path, target="cpu-fp32", threads=1)
    sources = [[5, 9, 11, 0], [7, 0]]
    for mine, other in zip(before.generate(sources, num_beams=3), session.generate(sources, num_beams=3), strict=True):
        assert [h.token_ids for h in mine] == [h.token_ids for h in other]
    assert "--target cpu-fp32 --force" in why_whole_batches(before)


def test_a_batch_has_as_many_places_as_it_says(opened):
    session = opened("marian")
    decoding = OpenDecoding(session, 1, 2)
    options = session.options(max_new_tokens=3)
    with pytest.raises(ValueError, match="3 sources join a batch with 2 free places"):
        decoding.join([session.check_source([5])] * 3, options, on_result=print)
    assert decoding.n_sources == 0


def test_queries_are_asked_together_and_told_apart():
    rng = np.random.default_rng(0)
    one, two = StepQuery(2, np.array([[[3, 4]]])), StepQuery(4, dense=True)
    both = together([one, two], [1, 2], 1)
    assert (both.n_candidates, both.dense, both.attention) == (4, True, False)
    assert both.probe_ids.tolist() == [[[3, 4]], [[0, 0]], [[0, 0]]]
    result = StepResult(
        rng.integers(0, 9, (3, 1, 4)), rng.random((3, 1, 4)), rng.random((3, 1)), rng.random((3, 1, 2)),
        rng.random((3, 1, 9)),
    )  # fmt: skip
    first, second = part_of(result, slice(0, 1), one), part_of(result, slice(1, 3), two)
    assert np.array_equal(first.candidate_ids, result.candidate_ids[:1, :, :2]) and first.log_probs is None
    assert np.array_equal(first.probe_log_probs, result.probe_log_probs[:1])
    assert second.probe_log_probs is None and np.array_equal(second.log_probs, result.log_probs[1:])


def test_newcomers_wait_for_company_where_steps_are_short(opened):
    """By a clock of ours: the search of a cohort may add a quarter to what its sources cost in a step, where it is made
    in Python, as with alignments."""
    session = opened("marian")
    decoding = OpenDecoding(session, 1, 8)
    joining = decoding._joining
    assert decoding.fewest_newcomers == 1
    sources, options = [session.check_source([5, 6])] * 4, session.options(min_new_tokens=9)
    decoding.join(sources, options, on_result=lambda i, found: None, alignments=True)
    assert decoding.fewest_newcomers == 1  # nothing is known yet
    for of_source, fewest in ((5e-3, 1), (1.1e-3, 4), (1.1e-4, 37)):
        # A step begins, its searches ask, the decoder steps, the searches read: 4 sources, a search of 1 ms.
        times = iter([0.0, 0.5e-3, 0.5e-3 + 4 * of_source, 1e-3 + 4 * of_source])
        joining._clock, joining._of_step = lambda times=times: next(times), 0.0
        decoding.advance()
        assert decoding.fewest_newcomers == fewest


def test_steps_in_one_call_end_where_somebody_is_wanted(opened):
    session = opened("marian")
    decoding, version = OpenDecoding(session, 1, 4), np.array([7])
    options = session.options(min_new_tokens=30, max_new_tokens=31)
    decoding.join([session.check_source([5, 6])], options, on_result=print)

    def made(until):
        before = decoding.n_steps
        decoding.advance(until)
        return decoding.n_steps - before

    assert made(Until(5)) == 5
    assert made(Until(5, version=version, expected=7)) == 5
    assert made(Until(5, version=version, expected=6)) == 1  # one step is made whoever comes
    assert made(Until(5, seconds=0.0)) == 1
    decoding.join([session.check_source([5, 6])], session.options(max_new_tokens=3), on_result=lambda i, found: None)
    assert made(Until(9)) == 3 and decoding.n_sources == 1  # the newcomer's result is told as soon as it is there


def test_errors_of_joining_leave_no_place_taken(opened):
    session = opened("marian")
    decoding = OpenDecoding(session, 2, 2)
    terms = session.options(num_beams=2, max_new_tokens=3, force_words_ids=[[5, 6, 7, 8, 9]])
    source = session.check_source([5, 6])
    for _ in range(3):
        with pytest.raises(InputError, match="room for 3"):
            decoding.join([source, source], terms, on_result=print)
    assert decoding.n_sources == 0
    found = []
    decoding.join([source] * 2, session.options(num_beams=2), on_result=lambda i, result: found.append(i))
    while decoding.n_sources:
        decoding.advance()
    assert sorted(found) == [0, 1]


@pytest.mark.parametrize("n_rows", MIXED)
def test_steps_without_onnx_runtime_give_the_same_bits(opened, n_rows, monkeypatch):
    session = opened("marian")
    jobs = jobs_of(session, 40, n_rows, 11)
    assert session.searcher.native.open_steps(session.backend) is not None, session.searcher.native.why_python
    made = []
    run = DirectStep.many

    def many(*arguments):
        found = run(*arguments)
        made.append(found.n_steps)
        return found

    monkeypatch.setattr(DirectStep, "many", many)
    own = arrive(session, jobs, seed=12)
    assert sum(made) == own.n_steps > 40 and max(made) > 1
    monkeypatch.setattr(session.searcher.native, "open_steps", lambda backend: None)
    theirs = arrive(session, jobs, seed=12)
    for mine, other in zip(own.results, theirs.results, strict=True):
        assert [(h.token_ids, h.score, h.token_scores) for h in mine] == [
            (h.token_ids, h.score, h.token_scores) for h in other
        ]


def test_a_step_that_fails_without_onnx_runtime_says_so(opened, monkeypatch):
    session = opened("marian")
    decoding = OpenDecoding(session, 1, 4)
    decoding.join([[5, 6]], session.options(num_beams=1), on_result=print)

    def run(*arguments):
        raise RuntimeError("Failed to allocate memory")

    monkeypatch.setattr(DirectStep, "many", run)
    with pytest.raises(BackendError, match="memory"):
        decoding.advance()
