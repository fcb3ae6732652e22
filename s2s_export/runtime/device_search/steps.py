"""One step of the search as launches, in the order in which they follow the decoder's own.

    beams         [log-probabilities, rules] best tokens, update, record, stop, publish
    beam samples  log-probabilities, rules, draw, update, record, stop, publish
    one beam      [log-probabilities, rules] best token, row update, publish
    samples       log-probabilities, rules, draw, row update, publish

Brackets: only where rules are active; the best tokens then come from the edited log-probabilities. Where alignments are
asked for, the step's cross-attention is kept before all else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from ... import plugin_sources
from ..cuda.interface import Launch
from .step_executor import Attention, StepExecutor
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
        if plan.has_rules:
            found.append(self._rules())
        if plan.samples:
            found += self._draw()
        else:
            found += self._top()
        found += self._update_beams() if plan.is_beam_search else [self._update_rows()]
        found.append(self._publish(condition))
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

    def _rules(self) -> Queued:
        plan = self._plan
        given = self._fill(
            self._structures.RulesParameters,
            {"scores": self._at["distribution"]},
            n_sources=plan.n_sources,
            beams=plan.beams,
            vocabulary=plan.vocabulary,
            history_width=plan.history_width,
            source_width=plan.source_width,
        )
        return self._loop.rules(given), given

    def _top(self) -> list[Queued]:
        """The best tokens: of the edited log-probabilities or logits where there are rules, else of the logits."""
        plan = self._plan
        edited = self._at.get("choice") or self._at.get("distribution")
        given = self._fill(
            self._structures.LogSoftmaxTopParameters,
            {"logits": edited} if plan.is_dense else None,
            rows=plan.rows,
            vocabulary=plan.vocabulary,
            candidates=plan.candidates,
            lists=plan.lists,
            keeps_values=int(plan.is_dense),
        )
        element = "fp32" if plan.is_dense else plan.element
        return [(launch, given) for launch in self._first.log_softmax_top(element, given)]

    def _draw(self) -> list[Queued]:
        plan = self._plan
        renamed = {"scores": self._at["distribution"], "beam_scores": self._at["scores"]}
        if plan.keeps_choice:
            renamed["scores"] = self._at["choice"]
        given = self._fill(
            self._structures.DrawParameters,
            renamed,
            n_sources=plan.n_sources,
            beams=plan.beams,
            vocabulary=plan.vocabulary,
            n_drawn=plan.n_chosen,
            lists=plan.race_lists,
        )
        launches = self._loop.draw_beams(given) if plan.is_beam_search else [self._loop.draw_rows(given)]
        return [(launch, given) for launch in launches]

    def _update_beams(self) -> list[Queued]:
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
        found: list[Queued]
        if plan.samples:
            drawn = self._fill(self._structures.DrawnUpdateParameters, update=update)
            found = [(self._loop.drawn_update(drawn), drawn)]
        else:
            found = [(self._first.beam_update(update), update)]
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
        return [*found, (self._loop.record(record), record), (self._first.beam_stop(stop), stop)]

    def _update_rows(self) -> Queued:
        plan = self._plan
        given = self._fill(
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
        return self._loop.row_update(given), given

    def _publish(self, condition: int) -> Queued:
        plan, beams = self._plan, self._plan.is_beam_search
        given = self._fill(
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
        return self._loop.publish(given), given
