"""What a client is told when a request fails: a status and one sentence. Each format has its own shape for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..errors import InputError, MissingExtra, S2SError, UsageError, explain
from .jobs import DeadlinePassed, Overloaded, TooLarge


class Refused(S2SError):
    """A request that is refused, with the status to say it with."""

    def __init__(self, status: int, message: str, code: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


@dataclass(frozen=True)
class Failure:
    """status: of HTTP. message: one sentence. code: a word for programs. headers: such as Retry-After."""

    status: int
    message: str
    code: str
    headers: dict[str, str] = field(default_factory=dict)


def failure_of(error: BaseException) -> Failure:
    """What a client is told about an error."""
    message = explain(error)
    if isinstance(error, Refused):
        return Failure(error.status, message, error.code or CODES.get(error.status, "error"), _retry(error.retry_after))
    if isinstance(error, Overloaded):
        return Failure(503, message, error.code, _retry(error.retry_after))
    if isinstance(error, TooLarge):
        return Failure(413, message, "too_large")
    if isinstance(error, DeadlinePassed):
        return Failure(504, message, "timeout")
    if isinstance(error, (InputError, UsageError)):
        return Failure(400, message, "invalid_request")
    if isinstance(error, MissingExtra):
        return Failure(501, message, "not_installed")
    return Failure(500, message, "internal_error")


CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    429: "too_many_requests",
    501: "not_supported",
}


def _retry(seconds: float | None) -> dict[str, str]:
    """Whole seconds, at least 1."""
    return {} if seconds is None else {"Retry-After": str(min(3600, max(1, math.ceil(seconds))))}
