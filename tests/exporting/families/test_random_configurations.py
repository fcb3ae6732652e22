"""Every family with its configuration drawn at random: portable graphs and `cpu-fp32` engines against generate().

Encoders alone are compared by their outputs. The configurations of tiny_models.py have each switch once; here they meet
one another, with special tokens in any place and generation defaults in generation_config.json. To try others:

    python tests/exporting/families/test_random_configurations.py 100 130 [FAMILY...]
"""

from __future__ import annotations

import logging
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import random_configurations
import torch
import transformers

import s2s_export
from s2s_export.errors import CheckpointError, InvalidOption, UnsupportedModel
from s2s_export.exporting import families
from s2s_export.exporting.parity import named, tensors

N_SEEDS = 8  # a family
SCORE_TOLERANCE = 1e-4
TIE = 2e-6  # scores that are nearer differ by rounding
FILLER = -1e8  # a hypothesis that stands for an impossible one; their order is undefined
SEARCHES: tuple[dict[str, Any], ...] = (
    {},
    {"num_beams": 1, "max_new_tokens": 12},
    {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 10, "early_stopping": False, "length_penalty": 1.0},
)


class Difference(AssertionError):
    """What is not what generate() gives."""


class FailsThere(Exception):
    """transformers itself can't make, save, load or run the model."""


def _sources(chance: Random, n_tokens: int, pad: int | None, longest: int) -> list[list[int]]:
    alphabet = [token for token in range(n_tokens) if token != pad]
    return [[chance.choice(alphabet) for _ in range(chance.randint(1, longest))] for _ in range(4)]


def _called(generate: Any, options: dict[str, Any], *, may_recompute: bool = False) -> Any:
    """With its cache, without which some models compute something else (docs/families.md).

    transformers 5.23 has none for a T5 with more layers in the decoder than in the encoder, and fails. may_recompute:
    whether it is called without one then.
    """
    given = {"return_dict_in_generate": True, "output_scores": True, "do_sample": False, **options}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return generate(**given, use_cache=True)
        except IndexError:
            if not may_recompute:
                raise
            return generate(**given, use_cache=False)


def _generated(model: Any, sources: list[list[int]], options: dict[str, Any]) -> Iterator[list[tuple[list[int], Any]]]:
    """The sequences and scores of each source, decoded alone."""
    for source in sources:
        ids = torch.tensor([source])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **options}
        out = _called(model.generate, given, may_recompute=model.config.model_type != "switch_transformers")
        scores = out.get("sequences_scores")
        scores = [None] * len(out.sequences) if scores is None else scores.tolist()
        yield list(zip(out.sequences.tolist(), scores, strict=True))


def _shown(source: Any) -> str:
    return str(source if isinstance(source, list) else f"array {source.shape}")


def _compare(session: Any, sources: list[list[int]], options: dict[str, Any], wanted: Any) -> None:
    for source, expected, found in zip(sources, wanted, session.generate(sources, **options), strict=True):
        for (tokens, score), ours in zip(expected, found, strict=True):
            if score is not None and not score > FILLER:
                continue
            n = len(ours.token_ids)
            if score is not None and abs(ours.score - score) < TIE * max(1.0, abs(score)):
                continue  # two hypotheses of one score may come in any order
            if list(ours.token_ids) != tokens[:n] or len(set(tokens[n:])) > 1:
                raise Difference(
                    f"{options} {_shown(source)}: {list(ours.token_ids)} ({ours.score}), expected {tokens} ({score})"
                )
            if score is not None and abs(ours.score - score) > SCORE_TOLERANCE * max(1.0, abs(score)):
                raise Difference(f"{options} {_shown(source)}: score {ours.score}, expected {score}")


def _heard_or_seen(model: Any, session: Any, source: Any, options: dict[str, Any]) -> list[tuple[list[int], Any]]:
    """As `_generated`, of one source that is no text."""
    family = families.find(model.config.model_type)
    generate = getattr(family, "generate", lambda model, **given: model.generate(**given))
    inputs = named(tensors(session.kind.prepare([source])))
    out = _called(partial(generate, model), {**inputs, **options})
    scores = out.get("sequences_scores")
    scores = [None] * len(out.sequences) if scores is None else scores.tolist()
    return list(zip(out.sequences.tolist(), scores, strict=True))


def check(family: str, seed: int, folder: Path, *, engine: bool = True) -> str:
    """What came of it: "equal", or the sentence that refuses it. Raises FailsThere, and Difference for a fault."""
    chance = Random(f"sources {family} {seed}")
    try:
        drawn = random_configurations.draw(family, seed)
        drawn.model(seed).save_pretrained(folder / "checkpoint")
        cls = getattr(transformers, drawn.auto_class)
        model = cls.from_pretrained(folder / "checkpoint", attn_implementation="eager").eval()
        sources: list[Any] = []
        wanted: Any = None
        if drawn.reads_text:
            n_tokens = model.get_input_embeddings().weight.shape[0]
            sources = _sources(chance, n_tokens, model.config.pad_token_id, 12)
            wanted = [list(_generated(model, sources, options)) for options in SEARCHES]
    except Exception as error:
        raise FailsThere(f"{type(error).__name__}: {error}") from error
    try:
        s2s_export.export(folder / "checkpoint", folder / "bundle")
    except (UnsupportedModel, CheckpointError, InvalidOption) as error:
        return str(error)
    sessions = [s2s_export.load(folder / "bundle", threads=1)]
    if not drawn.reads_text:
        rng = np.random.default_rng(seed)
        sources = [sessions[0].kind.random(rng, length) for length in (9, 3, 14)]
        try:
            wanted = [[_heard_or_seen(model, sessions[0], source, o) for source in sources] for o in SEARCHES]
        except Exception as error:
            raise FailsThere(f"{type(error).__name__}: {error}") from error
    if engine:
        from s2s_export.building.build import build

        build(folder / "bundle", "cpu-fp32")
        sessions.append(s2s_export.load(folder / "bundle", target="cpu-fp32", threads=1))
    for session in sessions:
        for options, expected in zip(SEARCHES, wanted, strict=True):
            try:
                _compare(session, sources, options, expected)
            except s2s_export.errors.S2SError as error:
                raise Difference(f"{options}: {error}") from error
    return "equal"


def check_encoder(family: str, seed: int, folder: Path) -> str:
    """As `check`, of an encoder alone with a head: its states or its logits of sources of unequal length and types."""
    chance = Random(f"encoder {family} {seed}")
    head = chance.choice(["", "ForSequenceClassification", "ForTokenClassification"])
    try:
        torch.manual_seed(seed)
        cls = getattr(transformers, f"AutoModel{head}")
        model = cls.from_config(random_configurations.ENCODERS[family](Random(f"{family} {seed}")))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(folder / "checkpoint")
        model = cls.from_pretrained(folder / "checkpoint", attn_implementation="eager").eval()
        model(torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3, dtype=torch.long))
    except Exception as error:
        raise FailsThere(f"{type(error).__name__}: {error}") from error
    try:
        bundle = s2s_export.export(folder / "checkpoint", folder / "bundle").path
    except (UnsupportedModel, CheckpointError) as error:
        return str(error)
    from s2s_export.building.build import build

    build(bundle, "cpu-fp32")
    for target in (None, "cpu-fp32"):
        session = s2s_export.load_encoder(bundle, target=target, threads=1)
        rng = np.random.default_rng(seed)
        sources = [session.kind.random(rng, length) for length in (11, 1, 30)]
        found = session.backend.encode(sources)
        for i, source in enumerate(sources):
            with torch.no_grad():
                out = model(**named(tensors(session.kind.prepare([source]))))
            wanted = (out.logits if head else out.last_hidden_state)[0].numpy()
            ours = found["logits" if head else "encoder_states"][i]
            ours = ours[: len(wanted)] if wanted.ndim == 2 else ours
            if (error := float(np.abs(ours - wanted).max())) > 5e-5 * max(1.0, float(np.abs(wanted).max())):
                raise Difference(f"{head} {target}: off by {error}, the largest is {np.abs(wanted).max()}")
    return "equal"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", random_configurations.ENCODERS)
def test_random_encoders(family: str, tmp_path: Path) -> None:
    found = []
    for seed in range(N_SEEDS):
        try:
            found.append(check_encoder(family, seed, tmp_path / str(seed)))
        except FailsThere as error:
            found.append(f"fails in transformers: {error}")
    assert found.count("equal") > N_SEEDS // 2, found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", random_configurations.FAMILIES)
def test_random_configurations(family: str, tmp_path: Path) -> None:
    found = []
    for seed in range(N_SEEDS):
        try:
            found.append(check(family, seed, tmp_path / str(seed)))
        except FailsThere as error:
            found.append(f"fails in transformers: {error}")
    assert found.count("equal") > N_SEEDS // 2, found


def _main(first: int, last: int, chosen: list[str]) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    tally: dict[str, int] = {}
    everything = [*random_configurations.FAMILIES, *(f"encoder {name}" for name in random_configurations.ENCODERS)]
    for seed in range(first, last):
        for family in chosen or everything:
            of_encoder = family.startswith("encoder ")
            with tempfile.TemporaryDirectory() as folder:
                try:
                    name = family.removeprefix("encoder ")
                    outcome = (check_encoder if of_encoder else check)(name, seed, Path(folder))
                    kind = outcome if outcome == "equal" else "refused"
                except FailsThere as error:
                    kind, outcome = "fails in transformers", str(error)
                except Exception as error:
                    kind, outcome = "DIFFERENT", "".join(traceback.format_exception_only(error)).strip()
            tally[kind] = tally.get(kind, 0) + 1
            if kind != "equal":
                print(f"{family} {seed}: {kind}: {outcome[:6000]}", flush=True)
    print(tally)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
