"""The page at /: files of serving/page/, sent with a policy that lets it load nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from ..calls import Call, Endpoint, Format, plain_error

FOLDER = Path(__file__).parents[1] / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"


def _endpoint(path: str, name: str) -> Endpoint:
    async def send(call: Call) -> Response:
        file = FOLDER / name
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return Response(file.read_bytes(), media_type=TYPES[file.suffix], headers=headers)

    send.__doc__ = f"The page's {name}."
    return Endpoint("GET", path, send, is_open=True)


FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in TYPES)
FORMAT = Format(
    name="page",
    endpoints=(
        _endpoint("/", "index.html"),
        _endpoint("/favicon.ico", "icon.svg"),
        *(_endpoint(f"/page/{name}", name) for name in FILES),
    ),
    prefixes=("/page/",),
    error=plain_error,
)
