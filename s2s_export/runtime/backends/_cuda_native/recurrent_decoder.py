"""A recurrent decoder's step as launches: one a layer, and a few besides.

    embedding, and the states of each beam's parent
    of attention: query, scores of the source's positions, their weighted mean
    each layer   gates and states
    the layer before the output projection, where there is one
    output projection

A row of `line` has what several products read side by side: with a readout the last layer's state, then the embedding,
then the context. Letters: B sources, K beams, R = B*K rows, L layers, U units, A context's width.
"""

from __future__ import annotations

from typing import Any

from .loaded import Buffer, Loaded, launches, named, structures
from .recurrent_encoder import RecurrentEncoder, add_product
from .step_program import Kept, StepProgram


class RecurrentDecoder(StepProgram):
    """A recurrent decoder's step. What is kept: each layer's states [L, R, U], in the element and in fp32. The next
    step gathers them by ancestors at its beginning; the one at position 0 begins with the encoder's."""

    def __init__(self, loaded: Loaded, encoder: RecurrentEncoder, n_beams: int, capacity: int, buffer: Buffer) -> None:
        super().__init__(loaded, encoder.n_sources, n_beams, capacity, buffer)
        model, element, R = loaded.recurrent, loaded.model.element, self.n_rows
        own = named("decoder", buffer)
        U, L, E, A = model.units, len(model.decoder), model.target.width, model.context_width
        after, after_kept = (buffer(f"after {name}", (L, R, U), name) for name in ("float16", "float32"))
        before, before_kept = (own(f"before {name}", (L, R, U), name) for name in ("float16", "float32"))
        self.kept = [Kept(after, (L, R, U), "float16", 1), Kept(after_kept, (L, R, U), "float32", 1)]
        state_width = U if model.readout is not None else 0
        stride = state_width + E + A
        line = own("line", (R, stride), "float16")
        embedded, context = line + 2 * state_width, line + 2 * (state_width + E)

        def add(launch: Any, given: Any) -> None:
            self.program.add(launch, given)

        given = structures.BeginParameters(
            ids=self.token, embedding=loaded.address(model.target.embedding),
            embedding_row_scales=loaded.address(model.target.row_scales), embedded=embedded,
            context=encoder.context or None, context_rows=context, ancestors=self.ancestors, position=self.position,
            first=encoder.first, first_kept=encoder.first_kept, after=after, kept_after=after_kept, before=before,
            kept_before=before_kept, rows=R, beams=n_beams, capacity=capacity, width=E,
            vocabulary=model.target.vocabulary, stride=stride, context_width=A, units=U, layers=L,
        )  # fmt: skip
        add(launches.begin_step(element, given), given)
        if model.score is not None:
            scores, asking = own("scores", (R, encoder.length), "float32"), before + 2 * (L - 1) * R * U
            query = None
            if model.score.query is not None:
                query = own("query", (R, U), "float32")
                add_product(loaded, self.program, model.score.query, asking, R, output_float=query)
            of_scores = structures.ScoreParameters(
                query=query, state=asking, energy=loaded.address(model.score.energy), keys=encoder.keys,
                mask=encoder.mask, scores=scores, beams=n_beams, length=encoder.length, units=U,
            )  # fmt: skip
            add(launches.source_scores(element, of_scores, encoder.n_sources), of_scores)
            of_context = structures.ContextParameters(
                scores=scores, annotations=encoder.annotations, output=context, beams=n_beams, length=encoder.length,
                width=A, stride=stride,
            )  # fmt: skip
            add(launches.source_context(element, of_context, encoder.n_sources), of_context)
        for i, cells in enumerate(model.decoder):
            at = i * R * U
            is_last = i == L - 1 and model.readout is not None
            of_cell = structures.CellParameters(
                input=embedded if i == 0 else after + 2 * (at - R * U), input_stride=stride if i == 0 else U,
                input_weight=loaded.address(cells.input.weight), input_scale=loaded.address(cells.input.scale),
                input_bias=loaded.address(cells.input.bias), hidden_weight=loaded.address(cells.hidden.weight),
                hidden_scale=loaded.address(cells.hidden.scale), hidden_bias=loaded.address(cells.hidden.bias),
                before=before + 2 * at, kept_before=before_kept + 4 * at, after=after + 2 * at,
                kept_after=after_kept + 4 * at, output=line if is_last else None, rows=R, inputs=cells.input.inputs,
                units=U, outputs=cells.gates, stride=U, output_stride=stride,
            )  # fmt: skip
            add(launches.cell(element, of_cell, cells.kind), of_cell)
        features = after + 2 * (L - 1) * R * U
        if model.readout is not None:
            features = own("readout", (R, model.readout.outputs // 2), "float16")
            add_product(loaded, self.program, model.readout, line, R, output=features, gated=structures.MAXOUT)
        add_product(
            loaded, self.program, model.head, features, R, output_float=self.logits, limit=model.vocabulary
        )  # fmt: skip
