"""A bundle against the checkpoint that it came from: the error of each graph, and the decoded tokens.

Both programs get the same sources and options; the tokens of `transformers.generate` are the truth. A source whose
tokens differ although its scores agree to a rounding error is a tie, and counted as one.

The truth is looked at too. Where tokens differ, the logits that generate() chose from are compared with what the model
itself gives after the same tokens, computed at once and without a cache. A release of transformers that drives a model
wrongly, as 5.24 drove some that kept their state as 5.23 expected it, shows there, and is named.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import engines
from ..bundle import ENCODER, KINDS, Bundle, read
from ..errors import InvalidOption, ParityError
from ..runtime.session import Session, load
from ..runtime.sources import Source, SourceKind
from ..runtime.speech.prompts import beginning
from . import bundle_kinds
from .checkpoint import Checkpoint, open_checkpoint, quiet_transformers
from .tolerances import LOSSY_AGREEMENT, SCORE_TOLERANCE, TOKEN_AGREEMENT

if TYPE_CHECKING:
    from .parity import Inputs, OutputError, Reference

SEARCHES: tuple[dict[str, Any], ...] = ({"num_beams": 1, "do_sample": False}, {"num_beams": 4, "do_sample": False})
N_SOURCES = 8
# Steps with a cache and a whole sequence without one differ by about 1e-6 of the largest logit.
REPLAY_TOLERANCE = 1e-3
MAX_NEW_TOKENS = 32
SEED = 5


@dataclass(frozen=True)
class SearchAgreement:
    """How one search fared: sources whose tokens are equal, sources that differ by a tie, largest score error.

    engine: the engine that decoded, None for the portable graphs. is_lossy: whether it computes in less than fp32; then
    tokens_before, the share of the reference's tokens before the first that differs, is what it is judged by.
    reference_error: over the sources that differ, how far the logits that generate() chose from are from the model's
    own, relative to the largest.
    """

    options: dict[str, Any]
    n_sources: int
    n_equal: int
    n_ties: int
    max_score_error: float
    needed: float
    reference_error: float = 0.0
    tokens_before: float = 1.0
    engine: str | None = None
    is_lossy: bool = False

    @property
    def is_enough(self) -> bool:
        if self.is_lossy:
            return self.tokens_before >= LOSSY_AGREEMENT
        return self.n_equal + self.n_ties >= self.needed * self.n_sources

    @property
    def is_reference_broken(self) -> bool:
        return not self.reference_error <= REPLAY_TOLERANCE

    def line(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        ties = f", {self.n_ties} ties" if self.n_ties else ""
        verdict = "ok" if self.is_enough else "OUTSIDE TOLERANCE"
        if self.is_lossy:
            verdict = (
                f"{self.tokens_before:.1%} of the tokens before the first that differs (a lower precision is judged by "
                f"these, from {LOSSY_AGREEMENT:.0%} on)  {verdict}"
            )
        if self.is_reference_broken and not self.is_lossy:
            verdict = f"THE REFERENCE LOOKS BROKEN: {self.reference_fault}"
        whose = f" of {self.engine}" if self.engine else ""
        return (
            f"tokens{whose} ({options}): {self.n_equal} of {self.n_sources} sources equal{ties}, "
            f"max score error {self.max_score_error:.1e}  {verdict}"
        )

    @property
    def reference_fault(self) -> str:
        import transformers

        return (
            f"generate() of transformers {transformers.__version__} chose from logits that are off by "
            f"{self.reference_error:.1e} (relative) from what the model gives after the same tokens"
        )


@dataclass(frozen=True)
class Verification:
    outputs: list[OutputError]
    searches: list[SearchAgreement]

    @property
    def is_close(self) -> bool:
        return all(o.is_close for o in self.outputs) and all(s.is_enough for s in self.searches)

    @property
    def fault(self) -> str | None:
        """What is wrong and what to do, or None: the graphs, transformers' generate(), or this package's search."""
        if self.is_close:
            return None
        if not all(o.is_close for o in self.outputs):
            return "the graphs differ from PyTorch by more than the tolerance; export the checkpoint again"
        if lossy := [s for s in self.searches if s.is_lossy and not s.is_enough]:
            return (
                f"{lossy[0].engine} gives other tokens than PyTorch from early on, which rounding alone seldom does; "
                "judge it on your own data with s2s evaluate, and build it again"
            )
        if broken := [s for s in self.searches if s.is_reference_broken]:
            return (
                f"{broken[0].reference_fault}, so its tokens say nothing about the bundle, whose graphs agree with "
                "PyTorch; verify with another release of transformers"
            )
        return (
            "the graphs agree with PyTorch and the tokens differ by more than the tolerance; export the checkpoint "
            "again, and report it if that changes nothing"
        )


def verify(
    bundle_path: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    backend: str = "auto",
    target: str | None = None,
    threads: int | None = None,
    search: str = "auto",
    progress: Callable[[str], None] = lambda stage: None,
) -> Verification:
    """Compare a bundle with its checkpoint. Options are those of `load`. progress: called with each stage's name.

    Raises what opening either raises; disagreement is in the result.
    """
    opened = read(bundle_path, kinds=KINDS)
    source = open_checkpoint(os.fspath(checkpoint))
    from . import parity  # needs torch, which takes seconds: a wrong path is told first

    made_from = opened.manifest.get("provenance", {}).get("checkpoint_sha256")
    if source.model_type != opened.manifest["model_type"]:
        raise InvalidOption(
            f"the checkpoint is of type '{source.model_type}', "
            f"but the bundle was made from '{opened.manifest['model_type']}'"
        )
    if made_from is not None and source.sha256() != made_from:
        raise ParityError(
            f"{bundle_path}: was exported from '{opened.manifest['provenance'].get('checkpoint')}', whose weights or "
            f"config.json are not those of {checkpoint}; verify with that checkpoint, or export this one"
        )
    progress("load the model")
    model = source.load_model()
    if opened.kind == ENCODER:
        return _verify_graph(opened, source, model, target, progress)
    make = getattr(source.family, "Reference", parity.TransformersReference)
    session = load(bundle_path, backend, target, threads, verify=False, search=search)
    reference = make(model)
    engine, is_lossy = _engine_of(session, target)
    searches = []
    for options in SEARCHES:
        progress(f"decode with num_beams={options['num_beams']}")
        found = _compare_search(session, model, reference, source.family, options)
        searches.append(dataclasses.replace(found, engine=engine, is_lossy=is_lossy))
    progress("compare the graphs")
    return Verification(parity.measure(opened, reference), searches)


def _verify_graph(
    opened: Bundle, source: Checkpoint, model: Any, target: str | None, progress: Callable[[str], None]
) -> Verification:
    """Of a bundle that decodes nothing: what its export compared, once more."""
    if target not in (None, engines.PORTABLE):
        raise InvalidOption(
            f"target is '{target}', but of an encoder alone only the portable graph is verified; leave it out, and see "
            "what `s2s build` measured when it made the engine"
        )
    progress("compare the graphs")
    kind = bundle_kinds.named(opened.kind)
    return Verification(kind.compare(opened, kind.expect(opened, source, model)), [])


def _engine_of(session: Session, target: str | None) -> tuple[str | None, bool]:
    """The engine that decodes, None for the portable graphs; and whether it computes in less than fp32."""
    name = target or getattr(session.backend, "target", None)
    if name in (None, engines.PORTABLE):
        return None, False
    record = engines.read(engines.folder_of(session.bundle, name))
    return name, record.get("precision", "fp32") != "fp32"


def _compare_search(
    session: Session, model: Any, reference: Reference, family: Any, options: dict[str, Any]
) -> SearchAgreement:
    from .parity import random_sources, tensors

    rng = np.random.default_rng(SEED)
    sources: list[Source] = []
    while len(sources) < N_SOURCES:
        sources += random_sources(session.bundle, rng)
    sources = sources[:N_SOURCES]
    limit = min(MAX_NEW_TOKENS, (session.bundle.max_target_length or MAX_NEW_TOKENS + 1) - 1)
    options = {**options, "max_new_tokens": limit}
    if session.speech is not None:  # the search itself, behind a prompt: windows and times are not compared here
        language = next(iter(session.speech.lang_to_id.values()), None)
        options["decoder_input_ids"] = beginning(session.speech, language, None, timestamps=False)
    found = session.generate(sources, **options)
    precision = session.bundle.manifest["precision"]
    padding = session.bundle.manifest["source"]["pad_token_id"]
    prompt_length = len(session.options(**options).prompt)
    n_equal = n_ties = n_before = n_tokens = 0
    worst = reference_error = 0.0
    for source, (best, *_) in zip(sources, found, strict=True):
        out = run_generate(model, family, session.kind, source, options)
        tokens, score = out.sequences[0].tolist(), getattr(out, "sequences_scores", None)
        n = max(len(tokens), len(best.token_ids))
        fill = tokens[-1]
        n_before += next((i for i, pair in enumerate(zip(tokens, best.token_ids, strict=False)) if pair[0] != pair[1]),
                         min(len(tokens), len(best.token_ids)))  # fmt: skip
        n_tokens += len(tokens)
        is_equal = [*tokens, *[fill] * (n - len(tokens))] == [*best.token_ids, *[fill] * (n - len(best.token_ids))]
        n_equal += is_equal
        error = math.inf if score is None else abs(float(score[0]) - best.score)  # generate scores beams only
        is_tie = not is_equal and error < SCORE_TOLERANCE["fp32"]
        n_ties += is_tie
        worst = max(worst, error if is_equal and score is not None else 0.0)
        if not is_equal and not is_tie:
            inputs = tensors(session.kind.prepare([source]))
            reference_error = max(reference_error, replay_error(reference, inputs, out, prompt_length, padding))
    needed = TOKEN_AGREEMENT[precision]
    share = min(1.0, n_before / max(1, n_tokens))
    return SearchAgreement(options, len(sources), n_equal, n_ties, worst, needed, reference_error, share)


def run_generate(model: Any, family: Any, kind: SourceKind, source: Source, options: dict[str, Any]) -> Any:
    """What `generate` returns for one source, with its logits."""
    import torch

    from .parity import named, tensors

    generate = getattr(family, "generate", None) or type(model).generate
    inputs = named(tensors(kind.prepare([source])))
    if "decoder_input_ids" in options:
        options = {**options, "decoder_input_ids": torch.tensor([options["decoder_input_ids"]])}
    with torch.no_grad(), quiet_transformers():
        return generate(
            model, **inputs, return_dict_in_generate=True, output_scores=True, output_logits=True, **options
        )


def replay_error(reference: Reference, inputs: Inputs, out: Any, prompt_length: int, padding: int | None) -> float:
    """How far the logits that led to out's first sequence are from those of the model, relative to the largest.

    Up to a padding token in it: M2M100 numbers the positions of a whole sequence around it, those of steps not.
    """
    beams = getattr(out, "beam_indices", None)
    rows = [0] * len(out.logits) if beams is None else [row for row in beams[0].tolist() if row >= 0]
    worst = 0.0
    for step, row in enumerate(rows):
        history = out.sequences[:1, : prompt_length + step]
        if padding in history[0, prompt_length:].tolist():
            break
        expected, _ = reference.step(inputs, history)
        difference = (out.logits[step][row].float() - expected[0].float()).abs().max()
        worst = max(worst, float(difference / expected.abs().max().clamp(min=1e-30)))
    return worst
