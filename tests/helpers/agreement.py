"""Random generation options, and whether `decode` and transformers' generate() return the same for them."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from decoding_models import ARCHITECTURES, TorchState, padded, tiny_model
from generate_versions import followed

from s2s_export.runtime.decoding import Hypothesis, Imprecise, StepQuery, StepResult, decode, resolve

# Rules about the source see the padding of a batch in transformers; their sources have one length here.
SOURCE_RULES = ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty")
# Candidates nearer than this may come in any order: float32 sums of log-probabilities differ by about that.
TIE = 1e-5
# Below this a hypothesis stands for an impossible one, pushed down by 1e9; their order is undefined in transformers.
FILLER = -1e8
SCORE_TOLERANCE = 1e-4


@dataclass
class Case:
    architecture: str
    vocabulary_size: int
    model_seed: int
    sources: list[list[int]]
    options: dict[str, Any]


@dataclass
class Tally:
    n_cases: int = 0
    n_hypotheses: int = 0
    n_ties: int = 0
    n_fillers: int = 0
    different: list[str] = field(default_factory=list)


def random_case(seed: int, architecture: str | None = None) -> Case:
    chance = random.Random(seed)
    architecture = architecture or ARCHITECTURES[seed % len(ARCHITECTURES)]
    vocabulary_size = chance.choice([23, 31, 61, 97])
    model_seed = chance.randrange(3)
    special = tiny_model(architecture, vocabulary_size, model_seed).generation_config
    options: dict[str, Any] = {"num_beams": chance.choice([1, 1, 2, 3, 4, 5, 8])}
    tokens = range(3, vocabulary_size)

    def some(most: int) -> list[int]:
        return chance.sample(tokens, chance.randint(1, most))

    limit = chance.randint(2, 14)
    options[chance.choice(["max_length", "max_new_tokens"])] = limit
    if options["num_beams"] > 1:
        options["num_return_sequences"] = chance.randint(1, options["num_beams"])
        options["length_penalty"] = chance.choice([1.0, 0.0, 0.6, 2.0, -1.0])
        options["early_stopping"] = chance.choice([False, True, "never"])
    may = {
        "min_length": lambda: chance.randint(1, 8),
        "min_new_tokens": lambda: chance.randint(1, 6),
        "no_repeat_ngram_size": lambda: chance.randint(1, 3),
        "encoder_no_repeat_ngram_size": lambda: chance.randint(1, 3),
        "repetition_penalty": lambda: chance.choice([0.7, 1.2, 2.0]),
        "encoder_repetition_penalty": lambda: chance.choice([0.8, 1.5]),
        "bad_words_ids": lambda: [some(1) if chance.random() < 0.5 else some(3) for _ in range(chance.randint(1, 4))],
        "sequence_bias": lambda: {tuple(some(2)): chance.uniform(-3, 3) for _ in range(chance.randint(1, 4))},
        "suppress_tokens": lambda: some(8),
        "begin_suppress_tokens": lambda: some(4),
        "forced_bos_token_id": lambda: chance.choice(tokens),
        "forced_eos_token_id": lambda: special.eos_token_id,
        "exponential_decay_length_penalty": lambda: (chance.randint(0, 4), chance.choice([1.2, 1.6, 0.8])),
        "renormalize_logits": lambda: True,
        "remove_invalid_values": lambda: True,
        "eos_token_id": lambda: [special.eos_token_id, *some(3)],
        "decoder_input_ids": lambda: some(4),
    }
    for name in chance.sample(sorted(may), chance.choice([0, 1, 1, 2, 3, 4, 6])):
        options[name] = may[name]()
    if {"forced_bos_token_id", "suppress_tokens"} <= options.keys():
        del options["suppress_tokens"]
    if {"remove_invalid_values", "exponential_decay_length_penalty"} <= options.keys():
        # A banned end token then grows to 1e38, where all sums are equal and the order is torch's.
        del options["remove_invalid_values"]
    if "decoder_input_ids" in options and "max_length" in options:
        options["max_length"] += 5
    lengths = (
        [chance.randint(2, 7)] * 3 if any(n in options for n in SOURCE_RULES) else [chance.randint(1, 7) for _ in "abc"]
    )
    n_sources = chance.randint(1, 3)
    sources = [[chance.choice(tokens) for _ in range(n)] + [special.eos_token_id] for n in lengths[:n_sources]]
    return Case(architecture, vocabulary_size, model_seed, sources, followed(options))


def generate(case: Case) -> Any:
    """generate()'s own output for a case."""
    model = tiny_model(case.architecture, case.vocabulary_size, case.model_seed)
    ids, mask = padded(case.sources, model.config.pad_token_id)
    given = dict(case.options)
    if "decoder_input_ids" in given:
        given["decoder_input_ids"] = torch.tensor([given["decoder_input_ids"]] * len(case.sources))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns of lengths that can't be met and of unset limits.
        return model.generate(
            input_ids=ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, output_logits=True,
            **given,
        )  # fmt: skip


class ShakenState(TorchState):
    """Its log-probabilities are off by up to TIE, so that candidates nearer than that change places."""

    def __init__(self, model: Any, sources: list[list[int]], n_beams: int, seed: int) -> None:
        super().__init__(model, sources, n_beams)
        self._random = np.random.default_rng(seed)

    def step(self, tokens: np.ndarray, parents: np.ndarray, query: StepQuery) -> StepResult:
        result = super().step(tokens, parents, StepQuery(1, dense=True))
        assert result.log_probs is not None
        shaken = result.log_probs + self._random.uniform(-TIE, TIE, result.log_probs.shape).astype(np.float32)
        ids = np.argsort(-shaken, axis=-1)[..., : query.n_candidates]
        probe = None if query.probe_ids is None else np.take_along_axis(shaken, query.probe_ids, -1)
        values = np.take_along_axis(shaken, ids, -1)
        return StepResult(ids, values, result.log_normalizer, probe, shaken if query.dense else None)


def decoded(case: Case, shake: int | None = None, **given: Any) -> list[Hypothesis]:
    model = tiny_model(case.architecture, case.vocabulary_size, case.model_seed)
    options = resolve(
        model.generation_config.to_dict(), case.options, vocabulary_size=case.vocabulary_size, max_target_length=64
    )

    def search(sparse_sums: bool) -> list[Hypothesis]:
        if shake is None:
            state = TorchState(model, case.sources, options.n_rows)
        else:
            state = ShakenState(model, case.sources, options.n_rows, shake)
        found = decode(state, case.sources, options, sparse_sums=sparse_sums, **given)
        return [hypothesis for outputs in found for hypothesis in outputs]

    try:
        return search(sparse_sums=shake is None and "on_prefix" not in given)  # as a session does it (searching.py)
    except Imprecise:
        return search(sparse_sums=False)


def difference(case: Case, reference: Any, mine: list[Hypothesis], tally: Tally | None = None) -> str | None:
    """What of `mine` is not what generate() returned, None where all is."""
    if len(mine) != len(reference.sequences):
        return f"{len(mine)} outputs and not {len(reference.sequences)}"
    scores = getattr(reference, "sequences_scores", None)
    for i, hypothesis in enumerate(mine):
        wanted, n = reference.sequences[i].tolist(), len(hypothesis.token_ids)
        is_filler = scores is not None and float(scores[i]) < FILLER
        if tally is not None:
            tally.n_hypotheses += 1
            tally.n_fillers += is_filler
        if is_filler and hypothesis.score < FILLER:
            continue
        # What follows an output is one repeated token: the pad token, or an end token where generate() fills with that.
        if hypothesis.token_ids != wanted[:n] or len(set(wanted[n:])) > 1:
            return f"output {i} is {hypothesis.token_ids}, not {wanted}"
        if scores is not None and abs(hypothesis.score - float(scores[i])) > SCORE_TOLERANCE * max(1, abs(scores[i])):
            return f"the score of output {i} is {hypothesis.score}, not {float(scores[i])}"
    return None


def compare(seed: int, tally: Tally) -> None:
    """Adds a random case to the tally; a difference that rounding explains counts as a tie."""
    case = random_case(seed)
    try:
        reference = generate(case)
    except RuntimeError as error:  # Impossible for torch too, such as more candidates than tokens.
        raise AssertionError(f"case {seed}: generate() failed: {error}") from error
    tally.n_cases += 1
    found = difference(case, reference, decoded(case), tally)
    if found is None:
        return
    if any(difference(case, reference, decoded(case, shake)) is None for shake in range(24)):
        tally.n_ties += 1
    else:
        tally.different.append(f"case {seed}: {found}; {case}")
