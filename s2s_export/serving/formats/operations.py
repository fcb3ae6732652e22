"""Health, metrics, the list of routes: for load balancers, Prometheus and people."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from ...version import __version__
from .. import metrics
from ..calls import Call, Endpoint, Format, json_response, plain_error


async def health(call: Call) -> Response:
    return json_response({"status": "ok"})


async def live(call: Call) -> Response:
    return json_response({"live": True})


async def ready(call: Call) -> Response:
    """503 while the server drains, and while a model has no process that decodes, so that nobody sends new work."""
    status = call.state.status
    if status == "ready" and not all(model.batcher.is_working for model in call.state.models):
        status = "restarting"
    is_ready = status == "ready"
    return JSONResponse({"ready": is_ready, "status": status}, 200 if is_ready else 503)


async def figures(call: Call) -> Response:
    return Response(call.state.metrics.text(), media_type=metrics.CONTENT_TYPE)


async def openapi(call: Call) -> Response:
    """Every route with the format that it belongs to."""
    from ..app import all_formats

    paths: dict[str, Any] = {}
    for each in all_formats():
        for endpoint in each.endpoints:
            summary = (endpoint.handler.__doc__ or endpoint.handler.__name__.replace("_", " ")).strip().split("\n")[0]
            paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = {
                "tags": [each.name],
                "summary": summary,
                "responses": {"200": {"description": "the answer"}, "4XX": {"description": "what is wrong"}},
            }
    return json_response({"openapi": "3.1.0", "info": {"title": "s2s", "version": __version__}, "paths": paths})


FORMAT = Format(
    name="operations",
    endpoints=(
        Endpoint("GET", "/health", health, is_open=True),
        Endpoint("GET", "/v2/health/live", live, is_open=True),
        Endpoint("GET", "/v2/health/ready", ready, is_open=True),
        Endpoint("GET", "/metrics", figures, is_open=True),
        Endpoint("GET", "/openapi.json", openapi, is_open=True),
        Endpoint("GET", "/spec", openapi, is_open=True),
    ),
    prefixes=("/health", "/metrics", "/v2/health", "/openapi.json", "/spec"),
    error=plain_error,
)
