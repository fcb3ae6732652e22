"""The memory of a search on a device: which tables, how large, where.

Letters: B sources, K rows of each (beams or samples), R = B*K, V vocabulary, M candidates, C positions of the caches,
P tokens of the decoder prompt, T tokens generated at most, H = P + T, S source length.

One block of memory holds them all. A `Plan` says everything that a captured graph depends on, so two calls with equal
plans share their memory and their graphs.
"""

from __future__ import annotations

from ctypes import sizeof
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...errors import BackendError, InvalidOption
from ..decoding.options import GenerationOptions
from ..decoding.state import NO_ATTENTION
from .rules import EDITS, MOST_RULES, Chain, DeviceRules
from .step_executor import Attention, FindsCandidates, StepExecutor

ALIGNMENT = 256
FAR = np.float32(-1e9)
MOST_BEAMS = 16


@dataclass(frozen=True)
class Plan:
    """Sizes and choices of one kind of call: all that a captured graph depends on. Letters as above."""

    n_sources: int
    beams: int
    vocabulary: int
    capacity: int
    element: str
    prompt: int
    limit: int
    n_end: int
    source_width: int
    is_beam_search: bool
    samples: bool
    chain: Chain  # the launches that apply rules; empty where there are none
    keeps_choice: bool  # rules edit the logits as well as the log-probabilities
    keeps_history: bool
    n_ids: int
    n_amounts: int
    early_stopping: bool
    bound_at_limit: bool
    fill: int
    streams: bool
    is_cut: bool = False  # the decoder takes fewer tokens than max_length allows: a text that gets there is an error
    step_lists: int = 0  # lists of candidates of a row that the decoder's step itself finds; 0: it gives logits
    attention: Attention | None = None  # the weights to record at each step, for alignments
    keeps_heads: bool = False  # all heads of all layers are recorded, not the mean over the last layer's

    @property
    def rows(self) -> int:
        return self.n_sources * self.beams

    @property
    def n_chosen(self) -> int:
        return max(2, 1 + self.n_end) * self.beams

    @property
    def candidates(self) -> int:
        """M, candidates of a row: as many as a step needs, since all of them may come from one beam."""
        return min(self.n_chosen, self.vocabulary) if self.is_beam_search else 1

    @property
    def has_rules(self) -> bool:
        return bool(self.chain)

    @property
    def has_filters(self) -> bool:
        """Whether some rule has launches of its own, which meet in memory."""
        return any(effect != EDITS for effect, *_ in self.chain)

    @property
    def filter_lists(self) -> int:
        return int(plugin_sources.module("beam_search.loop_launches").filter_lists(self.vocabulary))

    @property
    def is_dense(self) -> bool:
        """Whether log-probabilities of all tokens are written out, for rules or draws."""
        return (self.has_rules and not self.step_lists) or self.samples

    @property
    def lists(self) -> int:
        return self.step_lists or int(plugin_sources.module("beam_search.launches").top_lists(self.vocabulary))

    @property
    def draw_lists(self) -> int:
        """Slices of what a draw is from: a row, or all beams of a source."""
        tokens = self.vocabulary * (self.beams if self.is_beam_search else 1)
        return int(plugin_sources.module("beam_search.loop_launches").draw_lists(tokens))

    @property
    def history_width(self) -> int:
        return self.prompt + self.limit


Shape = tuple[int, ...]


def make_plan(
    executor: StepExecutor,
    options: GenerationOptions,
    rules: DeviceRules,
    source_width: int,
    *,
    streams: bool,
    alignments: bool | str = False,
) -> Plan:
    """The plan of a call. alignments: as `decoding.decode` has it.

    Raises BackendError or InvalidOption where executor or kernels are too small.
    """
    prompt = len(options.prompt)
    most = min(options.max_length, executor.positions + 1)  # the last token is not fed
    is_beam_search = options.num_beams > 1
    samples = bool(options.do_sample)
    n_end, vocabulary = len(options.eos_token_id), executor.vocabulary_size
    candidates = min(max(2, 1 + n_end) * executor.n_beams, vocabulary) if is_beam_search else 1
    finds = isinstance(executor, FindsCandidates) and not samples and (rules.only_bans or not rules.n_rules)
    step_lists = executor.candidate_lists(candidates) if isinstance(executor, FindsCandidates) and finds else 0
    plan = Plan(
        n_sources=executor.n_sources,
        beams=executor.n_beams,
        vocabulary=vocabulary,
        capacity=executor.capacity,
        element=executor.element,
        prompt=prompt,
        limit=most - prompt,
        n_end=n_end,
        source_width=_rounded(source_width) if rules.reads_sources else 1,
        is_beam_search=is_beam_search,
        samples=samples,
        chain=rules.chain,
        # With one beam the choice is made by logits, as in generate(). Only some rules treat them differently.
        keeps_choice=not is_beam_search and rules.changes_choice and not step_lists,
        keeps_history=rules.n_rules > 0,
        n_ids=_rounded(len(rules.ids)),
        n_amounts=_rounded(len(rules.amounts)),
        early_stopping=options.early_stopping is True,
        bound_at_limit=options.early_stopping == "never" and options.length_penalty > 0.0,
        fill=options.pad_token_id if options.pad_token_id is not None else (*options.eos_token_id, 0)[0],
        streams=streams,
        is_cut=most < options.max_length,
        step_lists=step_lists,
        attention=executor.attention if alignments else None,
        keeps_heads=alignments == "heads",
    )
    if alignments and plan.attention is None:
        raise BackendError(NO_ATTENTION)
    _check(plan, options, rules)
    return plan


def _check(plan: Plan, options: GenerationOptions, rules: DeviceRules) -> None:
    launches = plugin_sources.module("beam_search.launches")
    if plan.beams != options.n_rows:
        raise BackendError(
            f"the executor runs {plan.beams} beams and the search wants {options.n_rows}; expected as many; "
            "build the engine for that number of beams (--max-beams)"
        )
    if plan.limit < 1:
        positions = plan.prompt + plan.limit - 1
        raise BackendError(
            f"the decoder's prompt has {plan.prompt} tokens, but the engine was built for {positions}; "
            "shorten decoder_input_ids, or raise ranges.T in its recipe and build it again"
        )
    if rules.n_rules > MOST_RULES:
        raise InvalidOption(f"{rules.n_rules} decoding rules at once; a device takes {MOST_RULES}; use fewer")
    if not plan.is_beam_search:
        return
    n_offers = plan.beams * (plan.vocabulary if plan.samples else plan.candidates)
    most_offers = n_offers if plan.samples else launches.MOST_OFFERS
    if plan.beams > MOST_BEAMS or plan.n_chosen > launches.MOST_CHOSEN or not plan.n_chosen <= n_offers <= most_offers:
        raise InvalidOption(
            f"num_beams is {plan.beams} with {plan.n_end} end tokens and {plan.vocabulary} tokens; a device takes up "
            f"to {MOST_BEAMS} beams, {launches.MOST_CHOSEN} candidates a step and as many tokens as candidates; "
            "lower num_beams, or load with search='host'"
        )


Layout = dict[str, tuple[Shape, type]]  # every table with its shape and element


def layout(plan: Plan) -> tuple[Layout, Layout]:
    """The tables that a call sets beforehand (`first_values`), and those that the loop fills. See the letters above."""
    B, K, R, V, M, T = plan.n_sources, plan.beams, plan.rows, plan.vocabulary, plan.candidates, plan.limit
    set_beforehand: Layout = {
        "stop": ((1,), np.int32),
        "end_ids": ((max(plan.n_end, 1),), np.int64),
        "length_divisor": ((T + 1,), np.float32),
        "scores": ((B, K), np.float32),  # of beams
        "pool_scores": ((B, K), np.float32),
        "pool_finished": ((B, K), np.int32),
        "pool_steps": ((B, K), np.int32),
        "pool_parents": ((B, K), np.int32),
        "pool_tokens": ((B, K), np.int32),
        "open": ((B,), np.int32),
        "all_hit": ((B,), np.int32),
        "finished": ((R,), np.int32),  # of rows
        "n_generated": ((R,), np.int32),
        "seed": ((1,), np.uint64),
        "numbers": ((B,), np.uint64),
        "iterations": ((1,), np.int32),
        "arrived": ((1,), np.int32),
        "n_rules": ((1,), np.int32),
        "rules": ((MOST_RULES * 36,), np.uint8),
        "ids": ((plan.n_ids,), np.int32),
        "amounts": ((plan.n_amounts,), np.float32),
        "sources": ((B, plan.source_width), np.int32),
        "history": ((B, K, plan.history_width if plan.keeps_history else 1), np.int32),
    }
    by_the_loop: Layout = {
        "tokens": ((T, B, K), np.int32),
        "parents": ((T, B, K), np.int32),
        "token_scores": ((T, B, K), np.float32),
        "finished_scores": ((T, B, K), np.float32),
        "log_normalizer": ((R,), np.float32),
        "candidate_log_probs": ((B, K, M), np.float32),
        "candidate_ids": ((B, K, M), np.int64),
        "list_values": ((R, plan.lists, M), np.float32),
        "list_ids": ((R, plan.lists, M), np.int32),
        "list_maximum": ((R, plan.lists), np.float32),
        "list_sum": ((R, plan.lists), np.float32),
    }
    if plan.is_dense:
        by_the_loop["distribution"] = ((B, K, V), np.float32)
    if plan.keeps_choice:
        by_the_loop["choice"] = ((B, K, V), np.float32)
    if plan.has_filters:
        structures, texts = plugin_sources.module("beam_search.structures"), 1 + plan.keeps_choice
        by_the_loop["filter_rows"] = ((texts * R, sizeof(structures.FilterRow)), np.uint8)
        by_the_loop["filter_slices"] = ((texts * R, plan.filter_lists, sizeof(structures.FilterSlice)), np.uint8)
    if plan.samples:
        set_beforehand["draws_arrived"] = ((B if plan.is_beam_search else R,), np.int32)
        by_the_loop["drawn_ids"] = ((B, max(plan.n_chosen, K)), np.int64)
    if plan.samples and plan.is_beam_search:
        by_the_loop["drawn_beams"] = ((B, plan.n_chosen), np.int32)
        by_the_loop["drawn_sums"] = ((B, plan.n_chosen), np.float32)
        by_the_loop["race"] = ((B, plan.draw_lists, plan.n_chosen), np.uint64)
    elif plan.samples:
        by_the_loop["maxima"] = ((R, plan.draw_lists), np.float32)
        by_the_loop["weights"] = ((R, plan.draw_lists), np.uint64)
    if plan.attention is not None:
        heads = (plan.attention.layers, plan.attention.heads) if plan.keeps_heads else ()
        by_the_loop["alignment"] = ((T, B, K, *heads, plan.attention.width), np.float32)
    return set_beforehand, by_the_loop


class Arena:
    """Where the tables lie in one block of memory. The first `image_bytes` are uploaded by each call."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        set_beforehand, by_the_loop = layout(plan)
        self.tables = set_beforehand | by_the_loop
        self.offsets: dict[str, int] = {}
        self.image_bytes = self._place(set_beforehand, 0)
        self.n_bytes = self._place(by_the_loop, self.image_bytes)

    def _place(self, tables: Layout, end: int) -> int:
        """Gives the tables offsets from `end` on. Returns where they end."""
        for name, (shape, dtype) in tables.items():
            self.offsets[name] = end
            end += -(-max(prod(shape) * np.dtype(dtype).itemsize, 1) // ALIGNMENT) * ALIGNMENT
        return end

    def view(self, name: str, block: NDArray[np.uint8]) -> NDArray[np.generic]:
        """The part of a host copy of the block that holds a table."""
        shape, dtype = self.tables[name]
        first, size = self.place(name, 0)
        return block[first : first + size].view(dtype).reshape(shape)

    def place(self, name: str, block: int) -> tuple[int, int]:
        """A table's address in the block at an address, and its bytes."""
        shape, dtype = self.tables[name]
        return block + self.offsets[name], prod(shape) * np.dtype(dtype).itemsize

    def report(self) -> list[tuple[str, str, int]]:
        """(name, shape, bytes), the largest first."""
        found = [
            (name, "x".join(map(str, shape)), prod(shape) * np.dtype(dtype).itemsize)
            for name, (shape, dtype) in self.tables.items()
        ]
        return sorted(found, key=lambda entry: -entry[2])


def first_values(
    arena: Arena,
    image: NDArray[np.uint8],
    options: GenerationOptions,
    rules: DeviceRules,
    padded_sources: NDArray[np.int64],
) -> None:
    """Fills the image with the values that a search begins with. padded_sources [B, n]: ids, -1 behind them."""
    plan = arena.plan
    image[:] = 0

    def table(name: str) -> NDArray[np.generic]:
        return arena.view(name, image)

    table("end_ids")[: plan.n_end] = options.eos_token_id
    with np.errstate(over="ignore", under="ignore"):
        lengths = [*range(plan.limit), options.max_length - plan.prompt]
        table("length_divisor")[...] = [max(n, 1) ** float(options.length_penalty) for n in lengths]
    table("scores")[...] = FAR
    table("scores")[:, 0] = 0
    table("pool_scores")[...] = FAR
    table("pool_steps")[...] = -1
    table("open")[...] = 1
    table("n_rules")[0] = rules.n_rules
    table("rules")[: rules.records.size] = rules.records
    table("ids")[: rules.ids.size] = rules.ids
    table("amounts")[: rules.amounts.size] = rules.amounts
    table("sources")[...] = -1
    if rules.reads_sources:
        table("sources")[:, : padded_sources.shape[1]] = padded_sources
    if plan.keeps_history:
        table("history")[..., : plan.prompt] = options.prompt


def _rounded(n: int) -> int:
    """The next power of two, so that calls of similar size share a plan."""
    return 1 << max(n - 1, 0).bit_length()
