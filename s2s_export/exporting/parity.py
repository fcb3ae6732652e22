"""The error of each graph, compared with PyTorch, which computes whole sequences where the graphs go step by step.

The decoder step gets random tokens and beams that change places at random, so that the comparison covers the caches,
the ancestor table and the positions: after every step, each beam's logits must equal those of its whole history.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..bundle import PREFILL, Bundle
from ..errors import CheckpointError, ParityError
from ..runtime.backends.onnxruntime import OnnxRuntimeBackend
from ..runtime.decoding.state import StepQuery, feed
from ..runtime.sources import MASK, Source, kind_of
from .tolerances import GRAPH_TOLERANCE

N_BEAMS = 3
SOURCE_LENGTHS = (9, 4, 6)
N_STEPS = 7
PROMPT_LENGTH = 6
SEED = 20141
# Logits and log-probabilities below it are those of tokens that are never chosen, such as a start token that is no
# word: they are compared, but say nothing of how large the others are.
NEVER = -1e3


Inputs = Mapping[str, torch.Tensor]


class Reference(Protocol):
    """A PyTorch model seen as the three graphs. Letters as in docs/architecture.md.

    inputs: the encoder's inputs by name, [B,...] each, with `source_mask` [B,S].
    """

    def encode(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Outputs of the encoder graph by name."""
        ...

    def cross(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Outputs of the cross-KV-init graph by name."""
        ...

    def step(self, inputs: Inputs, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [R,V] after each row's history [R,T], and cross-attention weights [R,L,H,S] of its last token."""
        ...


@dataclass(frozen=True)
class OutputError:
    """Largest absolute difference of one output over all that was compared, and the reference's largest value."""

    graph: str
    output: str
    max_error: float
    max_value: float
    tolerance: float

    @property
    def relative(self) -> float:
        return self.max_error / max(self.max_value, 1e-30)

    @property
    def is_close(self) -> bool:
        return bool(self.relative <= self.tolerance)

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "relative": self.relative, "is_close": self.is_close}

    def line(self) -> str:
        verdict = "ok" if self.is_close else "OUTSIDE TOLERANCE"
        return (
            f"{self.graph:<14} {self.output:<20} max error {self.max_error:.2e}  "
            f"relative {self.relative:.2e} (tolerance {self.tolerance:.0e})  {verdict}"
        )


class TransformersReference:
    """A transformers model with eager attention."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        return {"encoder_states": self.model.get_encoder()(**named(inputs))[0]}

    @torch.no_grad()
    def cross(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        start = torch.zeros((inputs[MASK].shape[0], 1), dtype=torch.int64)
        out = self.model(**named(inputs), decoder_input_ids=start, use_cache=True)
        return cross_outputs(out)

    @torch.no_grad()
    def step(self, inputs: Inputs, history: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        repeats = history.shape[0] // inputs[MASK].shape[0]
        out = self.model(
            **{name: value.repeat_interleave(repeats, 0) for name, value in named(inputs).items()},
            decoder_input_ids=history,
            use_cache=False,
            output_attentions=True,
            **self.beside(history),
        )
        weights = torch.stack([layer[:, :, -1] for layer in out.cross_attentions], dim=1)
        return out.logits[:, -1], weights

    def beside(self, history: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model is given with a whole history [R,T], so that it computes what it computes step by step."""
        return {}


def named(inputs: Inputs) -> dict[str, torch.Tensor]:
    """The same by transformers' names."""
    return {"attention_mask" if name == MASK else name: value for name, value in inputs.items()}


def cross_outputs(out: Any) -> dict[str, torch.Tensor]:
    """Outputs of the cross-KV-init graph by name, from what a transformers model returned with its cache."""
    found = {}
    for i, (key, value) in enumerate(_cross_cache(out)):
        found[f"cross_key.{i}"], found[f"cross_value.{i}"] = key, value
    return found


def _cross_cache(out: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    past = out["cache"] if "cache" in out else out["past_key_values"]  # its names from transformers 5.24 on, and before
    if isinstance(past, tuple):  # transformers before 4.54: self key and value, then cross key and value of each layer
        return [(layer[2], layer[3]) for layer in past]
    cache = past.cross_attention_cache
    if hasattr(cache, "layers"):
        # There may be more than the decoder has: transformers takes the number from the encoder's of a BART.
        return [(layer.keys, layer.values) for layer in cache.layers if layer.keys is not None]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))  # transformers before 4.54, where it has one


@dataclass
class Expected:
    """What PyTorch computed for some sources and random histories: all that a comparison needs to know of the model.

    outputs: of the encoder and cross-KV-init graphs, by graph and name. steps: for each position the tokens and parents
    [B,K] that were fed, the log-probabilities [B,K,V], the normalizer [B,K], the largest logit, and the weights
    [B,K,L,H,S] or None. prompt: tokens [B,P + 1] of a decoder prompt and the log-probabilities [B,V] after it; None for
    a bundle without prefill.
    """

    sources: list[Source]
    outputs: dict[str, dict[str, Any]]
    steps: list[tuple[Any, Any, Any, Any, float, Any]]
    prompt: tuple[Any, Any] | None = None


def measure(bundle: Bundle, reference: Reference, threads: int = 1) -> list[OutputError]:
    """Compare the bundle's graphs, run by ONNX Runtime, with `reference`."""
    return compare(bundle, expect(bundle, reference), threads)


def expect(bundle: Bundle, reference: Reference, lengths: Sequence[int] = SOURCE_LENGTHS) -> Expected:
    """Run PyTorch only, so that a caller can free the model's memory before `compare`. lengths: of the sources."""
    rng = np.random.default_rng(SEED)
    sources = random_sources(bundle, rng, lengths)
    inputs = tensors(kind_of(bundle).prepare(sources))
    outputs = {
        graph: {name: value.float().numpy() for name, value in values.items()}
        for graph, values in (("encoder", reference.encode(inputs)), ("cross_kv_init", reference.cross(inputs)))
    }
    steps = list(_expect_steps(bundle, reference, inputs, rng))
    return Expected(sources, outputs, steps, _expect_prompt(bundle, reference, inputs, rng))


def tensors(arrays: Mapping[str, Any]) -> Inputs:
    """The encoder's inputs as PyTorch takes them."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _expect_steps(
    bundle: Bundle, reference: Reference, inputs: Inputs, rng: np.random.Generator
) -> Iterator[tuple[Any, Any, Any, Any, float, Any]]:
    rows = (inputs[MASK].shape[0], N_BEAMS)
    # No padding tokens: in a whole sequence, M2M100 skips them when it numbers positions; step by step, it can't.
    padding = bundle.manifest["source"]["pad_token_id"]
    no_padding = np.array([i for i in range(bundle.vocabulary_size) if i != padding])
    history = np.zeros((*rows, 0), dtype=np.int64)
    for t in range(min(N_STEPS, bundle.max_target_length or N_STEPS)):
        parents = rng.integers(0, N_BEAMS if t else 1, rows)
        tokens = rng.choice(no_padding, rows)
        if t == 0:
            start = bundle.manifest["generation"].get("decoder_start_token_id")
            # Whether it is a token that can be decoded with is asked when it is; any will do here.
            allowed = no_padding if _skips_padding(reference) else np.arange(bundle.vocabulary_size)
            tokens[:] = start if isinstance(start, int) and start in allowed else allowed[0]
        history = np.take_along_axis(history, parents[:, :, None], axis=1)
        history = np.concatenate([history, tokens[:, :, None]], axis=2)
        logits, weights = reference.step(inputs, torch.from_numpy(history.reshape(rows[0] * N_BEAMS, -1)))
        logits = logits.float()
        seen = logits[logits > NEVER].abs()
        if not seen.numel():
            raise CheckpointError("the model's logits hold no finite number; its weights are damaged: restore them")
        log_probs = torch.log_softmax(logits, dim=-1).numpy().reshape(*rows, -1)
        normalizer = torch.logsumexp(logits, dim=-1).numpy().reshape(rows)
        by_row = None if weights is None else weights.float().numpy().reshape(*rows, *weights.shape[1:])
        yield tokens, parents, log_probs, normalizer, float(seen.max()), by_row


def _skips_padding(reference: Reference) -> bool:
    """Whether transformers numbers positions around padding tokens: in a whole sequence, but not step by step."""
    model = getattr(reference, "model", None)
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    names = ("create_position_ids_from_input_ids", "make_positions")
    return any(hasattr(module, name) for module in modules for name in names)


def _expect_prompt(
    bundle: Bundle, reference: Reference, inputs: Inputs, rng: np.random.Generator
) -> tuple[Any, Any] | None:
    length = min(PROMPT_LENGTH, bundle.max_target_length or PROMPT_LENGTH)
    if PREFILL not in bundle.manifest["graphs"] or length < 2:
        return None
    padding = bundle.manifest["source"]["pad_token_id"]
    allowed = np.array([i for i in range(bundle.vocabulary_size) if i != padding])
    tokens = rng.choice(allowed, (inputs[MASK].shape[0], length))
    logits, _ = reference.step(inputs, torch.from_numpy(tokens))
    return tokens, torch.log_softmax(logits.float(), dim=-1).numpy()


def compare(bundle: Bundle, expected: Expected, threads: int = 1) -> list[OutputError]:
    """Run the bundle's graphs with ONNX Runtime and compare each output."""
    errors = OutputErrors(GRAPH_TOLERANCE[bundle.manifest["precision"]])
    # A separate backend for each half: the encoder's weights are freed before the decoder's are loaded.
    found = OnnxRuntimeBackend(bundle, threads, prepack=False).encode(expected.sources)
    for graph, values in expected.outputs.items():
        for name, value in values.items():
            errors.add(graph, name.split(".")[0], found[name], value, found[MASK])
    state = OnnxRuntimeBackend(bundle, threads, prepack=False).start(found, N_BEAMS)
    query = StepQuery(n_candidates=min(4, bundle.vocabulary_size), dense=True, attention=True)
    for tokens, parents, log_probs, normalizer, largest, weights in expected.steps:
        result = state.step(tokens, parents, query)
        likely = float(np.abs(log_probs[log_probs > NEVER]).max())
        errors.add("decoder_step", "log_probs", result.log_probs, log_probs, scale=likely)
        errors.add("decoder_step", "log_normalizer", result.log_normalizer, normalizer, scale=largest)
        if weights is not None and result.attention is not None:
            errors.add("decoder_step", "attention", result.attention, weights)
    if expected.prompt is not None:
        tokens, log_probs = expected.prompt
        state = OnnxRuntimeBackend(bundle, threads, prepack=False).start(found, N_BEAMS)
        parents = feed(state, tokens[:, :-1])
        result = state.step(np.repeat(tokens[:, -1:], N_BEAMS, axis=1), parents, query)
        likely = float(np.abs(log_probs[log_probs > NEVER]).max())
        wanted = np.repeat(log_probs[:, None], N_BEAMS, axis=1)
        errors.add(PREFILL, "log_probs", result.log_probs, wanted, scale=likely)
    return errors.list()


def random_sources(bundle: Bundle, rng: np.random.Generator, lengths: Sequence[int] = SOURCE_LENGTHS) -> list[Source]:
    """Sources of mixed lengths within the model's limit."""
    kind, limit = kind_of(bundle), bundle.max_source_length or max(lengths)
    return [kind.random(rng, min(length, limit)) for length in lengths]


class OutputErrors:
    """Collects the largest error of each output."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.found: dict[tuple[str, str], tuple[float, float]] = {}

    def add(
        self, graph: str, output: str, actual: Any, expected: Any, mask: Any = None, scale: float | None = None
    ) -> None:
        if actual.shape != expected.shape:
            raise ParityError(f"{graph} computes {output} with shape {actual.shape}, PyTorch with {expected.shape}")
        if not expected.size:  # a cache before its first token
            return
        difference = np.abs(actual - expected)
        if mask is not None:  # values at padding are never used
            source_axis = 1 if expected.ndim <= 3 else 2
            shape = [expected.shape[0]] + [1] * (expected.ndim - 1)
            if expected.ndim > source_axis and expected.shape[source_axis] == mask.shape[1]:
                shape[source_axis] = mask.shape[1]
                seen = mask.reshape(shape).astype(bool)
                difference, expected = np.where(seen, difference, 0), np.where(seen, expected, 0)
        error = float(difference.max()) if np.isfinite(difference).all() else float("inf")
        value = scale if scale is not None else float(np.abs(expected).max())
        old = self.found.get((graph, output), (0.0, 0.0))
        self.found[graph, output] = (max(old[0], error), max(old[1], value))

    def list(self) -> list[OutputError]:
        return [OutputError(g, o, error, value, self.tolerance) for (g, o), (error, value) in self.found.items()]
