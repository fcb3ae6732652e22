"""Server-sent events: `data: {..}` and an empty line for each."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse

from ...errors import S2SError, is_failure
from ...runtime.cases import to_json
from ..failures import Failure, failure_of

log = logging.getLogger("s2s.serving")


def event(value: Any) -> str:
    return f"data: {value if isinstance(value, str) else to_json(value)}\n\n"


async def respond(events: AsyncIterator[Any], error: Callable[[Failure], Any]) -> StreamingResponse:
    """An answer of events. What fails before the first one fails the request; later, `error` makes an event of it."""
    first = await anext(events, None)

    async def body() -> AsyncIterator[str]:
        async with contextlib.aclosing(events):  # type: ignore[type-var]
            try:
                if first is not None:
                    yield event(first)
                async for value in events:
                    yield event(value)
            except BaseException as failed:
                if not is_failure(failed) or not isinstance(failed, Exception):
                    raise
                if not isinstance(failed, S2SError):
                    log.exception("an error that is no bad input")
                yield event(error(failure_of(failed)))

    return StreamingResponse(body(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
