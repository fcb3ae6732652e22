"""One step of the search as launches, in the order in which they follow the decoder's own.

    beams         [log-probabilities, rules] best tokens of slices, end of the step
    beam samples  log-probabilities, rules, draw, end of the step
    one beam      [log-probabilities, rules] best tokens of slices, end of the step
    samples       log-probabilities, rules, draw, end of the step

Brackets: only where rules are active; the best tokens then come from the edited log-probabilities. Rules are one
launch, but each filter has its own, and so has renormalising; a draw is one or two. The end of a step is one launch:
merge the slices' lists, update beams or rows, record, stop, publish. Where the decoder's step finds the candidates
itself, without what rules ban, only that one is left. Where alignments are asked for, the step's cross-attention is
kept before all else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from ... import plugin_sources
from ..cuda.interface import Launch
from .step_executor import Attention, CandidateTables, StepExecutor
from .tables import Plan

Queued = tuple[Launch, ctypes.Structure]


class StepLaunches:
    """The launches of a plan's step.

    addresses: of the tables by name, and of `news` and `progress` in mapped host memory; 0 for what a plan doesn't use.
    """

    def __init__(self, plan: Plan, executor: StepExecutor, addresses: Mapping[str, int]) -> None:
        self._plan = plan
        self._at = dict(addresses)
        self._at |= {
            "logits": executor.logits,
            "position": executor.position,
            "next_tokens": executor.token,
            "ancestors": executor.ancestors,
        }
        self._structures = plugin_sources.module("beam_search.structures")
        self._first = plugin_sources.module("beam_search.launches")
        self._loop = plugin_sources.module("beam_search.loop_launches")
        self._alignment = plugin_sources.module("beam_search.alignment")

    def queue(self, condition: int = 0) -> list[Queued]:
        """condition: of the WHILE node that the step is captured into, or 0."""
        plan = self._plan
        found: list[Queued] = []
        if plan.attention is not None:
            found.append(self._keep_attention(plan.attention))
        if plan.is_dense:
            found += self._normalize()
        if plan.has_rules and plan.is_dense:
            found += self._loop.rules(self._chain(), plan.chain)
        if plan.samples:
            found += self._draw()
        elif not plan.step_lists:
            found.append(self._top())
        found.append(self._end_beams(condition) if plan.is_beam_search else self._end_rows(condition))
        return found

    def _fill(
        self, structure: Any, renamed: Mapping[str, int | None] | None = None, **numbers: Any
    ) -> ctypes.Structure:
        """A kernel's arguments: each pointer is found by its field's name, in `renamed` or among the tables."""
        given: ctypes.Structure = structure(**numbers)
        for name, kind in structure._fields_:
            if kind is ctypes.c_void_p:
                chosen = renamed[name] if renamed is not None and name in renamed else self._at.get(name, 0)
                setattr(given, name, chosen or None)
        return given

    def _keep_attention(self, attention: Attention) -> Queued:
        plan = self._plan
        given = self._fill(
            self._structures.AlignmentParameters,
            {"attention": attention.address},
            rows=plan.rows,
            layers=attention.layers,
            heads=attention.heads,
            width=attention.width,
            prompt=plan.prompt,
            limit=plan.limit,
            keeps_heads=int(plan.keeps_heads),
        )
        return self._alignment.record(attention.element, given), given

    def _normalize(self) -> list[Queued]:
        plan = self._plan
        given = self._fill(
            self._structures.NormalizeParameters,
            {"scores": self._at["distribution"]},
            rows=plan.rows,
            vocabulary=plan.vocabulary,
            lists=plan.lists,
        )
        return [(launch, given) for launch in self._loop.log_probs(plan.element, given)]

    @property
    def candidate_tables(self) -> CandidateTables | None:
        """What the decoder's step is to fill, where it finds the candidates."""
        plan = self._plan
        if not plan.step_lists:
            return None
        names = ("list_values", "list_ids", "list_maximum", "list_sum")
        rules = self._rules() if plan.has_rules else None
        return CandidateTables({name: self._at[name] for name in names}, plan.candidates, plan.step_lists, rules)

    def _rules(self) -> ctypes.Structure:
        plan = self._plan
        return self._fill(
            self._structures.RulesParameters,
            {"scores": self._at.get("distribution")},
            n_sources=plan.n_sources,
            beams=plan.beams,
            vocabulary=plan.vocabulary,
            history_width=plan.history_width,
            source_width=plan.source_width,
        )

    def _chain(self) -> ctypes.Structure:
        return self._fill(self._structures.ChainParameters, rules=self._rules(), lists=self._plan.filter_lists)

    def _top(self) -> Queued:
        """The best tokens: of the edited log-probabilities or logits where there are rules, else of the logits."""
        given = self._lists()
        return self._first.top_of_slices("fp32" if self._plan.is_dense else self._plan.element, given), given

    def _lists(self) -> ctypes.Structure:
        plan = self._plan
        edited = self._at.get("choice") or self._at.get("distribution")
        return self._fill(
            self._structures.LogSoftmaxTopParameters,
            {"logits": edited} if plan.is_dense else None,
            rows=plan.rows,
            vocabulary=plan.vocabulary,
            candidates=plan.candidates,
            lists=plan.lists,
            keeps_values=int(plan.is_dense),
        )

    def _draw(self) -> list[Queued]:
        plan = self._plan
        renamed = {"scores": self._at["distribution"], "beam_scores": self._at["scores"]}
        renamed["arrived"] = self._at["draws_arrived"]
        if plan.keeps_choice:
            renamed["scores"] = self._at["choice"]
        given = self._fill(
            self._structures.DrawParameters,
            renamed,
            n_sources=plan.n_sources,
            beams=plan.beams,
            vocabulary=plan.vocabulary,
            n_drawn=plan.n_chosen,
            lists=plan.draw_lists,
        )
        launches = self._loop.draw_beams(given) if plan.is_beam_search else self._loop.draw_rows(given)
        return [(launch, given) for launch in launches]

    def _end_beams(self, condition: int) -> Queued:
        plan = self._plan
        update = self._fill(
            self._structures.BeamUpdateParameters,
            sources=plan.n_sources,
            beams=plan.beams,
            candidates=plan.candidates,
            n_end=plan.n_end,
            prompt=plan.prompt,
            limit=plan.limit,
            capacity=plan.capacity,
            early_stopping=int(plan.early_stopping),
            bound_at_limit=int(plan.bound_at_limit),
        )
        record = self._fill(
            self._structures.RecordParameters,
            {"scores": self._at.get("distribution"), "history": self._at["history"] if plan.keeps_history else None},
            n_sources=plan.n_sources,
            beams=plan.beams,
            vocabulary=plan.vocabulary,
            candidates=plan.candidates,
            prompt=plan.prompt,
            limit=plan.limit,
            history_width=plan.history_width,
        )
        stop = self._fill(
            self._structures.BeamStopParameters,
            sources=plan.n_sources,
            beams=plan.beams,
            early_stopping=int(plan.early_stopping),
        )
        given = self._fill(
            self._structures.BeamStepParameters,
            top=self._lists(),
            update=update,
            record=record,
            stop=stop,
            publish=self._publish(condition),
        )
        return self._loop.beam_step(given), given

    def _end_rows(self, condition: int) -> Queued:
        plan = self._plan
        rows = self._fill(
            self._structures.RowUpdateParameters,
            {
                "chosen_ids": self._at["drawn_ids" if plan.samples else "candidate_ids"],
                "chosen_log_probs": self._at["candidate_log_probs"],
                "scores": self._at.get("distribution"),
                "history": self._at["history"] if plan.keeps_history else None,
            },
            rows=plan.rows,
            vocabulary=plan.vocabulary,
            n_end=plan.n_end,
            fill=plan.fill,
            prompt=plan.prompt,
            limit=plan.limit,
            history_width=plan.history_width,
        )
        given = self._fill(
            self._structures.RowStepParameters,
            top=self._lists(),
            rows=rows,
            publish=self._publish(condition),
            merges=int(not plan.samples),
        )
        return self._loop.row_step(given), given

    def _publish(self, condition: int) -> ctypes.Structure:
        plan, beams = self._plan, self._plan.is_beam_search
        return self._fill(
            self._structures.PublishParameters,
            {
                "parents": self._at["parents"] if beams else None,
                "pool_steps": self._at["pool_steps" if beams else "n_generated"],
            },
            n_sources=plan.n_sources,
            beams=plan.beams,
            prompt=plan.prompt,
            limit=plan.limit,
            early_stopping=int(plan.early_stopping),
            condition=condition,
        )
