"""A deployment for Ray Serve: lines of `s2s generate` in, their results out, over HTTP or by a handle.

Each replica has a `Batcher`, so texts of different requests are decoded together, as `s2s serve` does it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from ..errors import InputError, MissingExtra
from ..runtime.cases import case_of, finished, result_of
from ..runtime.scheduling import DEFAULT_BATCH_SIZE
from ..runtime.session import load
from ..serving.batcher import Batcher
from ..serving.failures import failure_of

TIMEOUT = 30.0  # seconds that a request may take


class Replica:
    """What runs in each replica."""

    def __init__(
        self, bundle: str, batch_size: int, workers: int | None, timeout: float, loading: Mapping[str, Any]
    ) -> None:
        self._session = load(bundle, **{"threads": 1, **loading})
        limit = self._session.bundle.max_source_length or 32
        self._session.warm_up([min(length, limit) for length in (8, 32)])
        self._batcher = Batcher(self._session, batch_size=batch_size, workers=workers)
        self._timeout = timeout

    async def generate(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The result of a line's fields, such as {"text": "...", "num_beams": 4}. Raises InputError and Overloaded."""
        case = await asyncio.to_thread(case_of, self._session, dict(fields), 1)
        if case.options is None or case.source is None:
            raise InputError(case.error or "the line can't be decoded")
        [job] = self._batcher.submit(
            [case.source], case.options, alignments=case.finishing.wants_alignments, timeout=self._timeout
        )
        try:
            hypotheses = await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            job.cancel()
            raise
        outcome = finished(self._session, case.finishing, case.text, case.source, hypotheses)
        if isinstance(outcome, str):
            raise InputError(outcome)
        return {"id": case.id, **result_of(self._session, outcome, case.finishing)}

    async def __call__(self, request: Any) -> Any:
        """An HTTP request (starlette's) with such an object as its body."""
        from starlette.responses import JSONResponse

        try:
            try:
                fields = await request.json()
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"the body is not JSON ({error}); expected an object such as {{'text': '...'}}"
                ) from None
            if not isinstance(fields, dict):
                raise InputError(f"the body is {type(fields).__name__}; expected a JSON object")
            return JSONResponse(await self.generate(fields))
        except Exception as error:
            failure = failure_of(error)
            return JSONResponse({"error": failure.message}, failure.status, dict(failure.headers))


def application(
    bundle: str | os.PathLike[str],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    workers: int | None = 1,
    timeout: float = TIMEOUT,
    deployment: Mapping[str, Any] | None = None,
    **loading: Any,
) -> Any:
    """For `ray.serve.run`.

    bundle: a folder that every machine has, at the same place. workers: batches that a replica decodes side by side.
    timeout: seconds that a request may take. deployment: of `serve.deployment`, such as
    {"num_replicas": "auto", "ray_actor_options": {"num_cpus": 1}}. loading: of `s2s_export.load`.
    Raises MissingExtra without Ray Serve.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtra("ray", "ray", "a deployment for Ray Serve") from error
    # Back-pressure is the batcher's: it gathers what waits, and refuses what does not fit with the time to wait.
    given = {"name": "s2s", "max_ongoing_requests": 4096, **(deployment or {})}
    return serve.deployment(**given)(Replica).bind(os.fspath(bundle), batch_size, workers, timeout, loading)
