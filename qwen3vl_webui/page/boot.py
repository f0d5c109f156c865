"""What reaches the browser before Gradio does: our static files, and a head with the style sheet, the strings and the
early script that sets theme and language before the first paint.

`mount_gradio_app(head=)` is injected by Gradio's own script, after the first paint; so a pure ASGI wrapper writes
into the page right after `<head>`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ASSETS = Path(__file__).resolve().parent.parent.parent / "assets"


class StaticPage(StaticFiles):
    """Served with an ETag and `no-cache`: modules import each other by plain names, so a new version of the server must
    not meet an old one of the browser's cache."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def script_json(value: Any) -> str:
    """JSON that may stand inside `<script>`: no `</`, no `<!--`, no line separators."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def head(values: dict[str, Any]) -> bytes:
    modules = "".join(
        f'<link rel="modulepreload" href="./ui/{path.name}">'
        for path in sorted((ASSETS / "page").glob("*.js"))
        if path.name != "boot.js"
    )
    return (
        f"<script>window.qvPage={script_json(values)}</script>"
        '<script src="./ui/boot.js"></script>'
        '<link rel="stylesheet" href="./ui/page.css">'
        f'<link rel="icon" type="image/svg+xml" href="./ui/icon.svg">{modules}'
    ).encode()


class BootHead:
    """Pure ASGI: writes `head(values())` after `<head>` of the page at `/`; everything else passes untouched."""

    def __init__(self, app: ASGIApp, values: Callable[[], dict[str, Any]]) -> None:
        self.app = app
        self.values = values

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] not in {"", "/"}:
            await self.app(scope, receive, send)
            return
        start: Message = {}
        body = b""

        async def insert(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            if message["type"] != "http.response.body":
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            headers = MutableHeaders(raw=list(start["headers"]))
            if "text/html" in headers.get("content-type", ""):
                body = body.replace(b"<head>", b"<head>" + head(self.values()), 1)
                headers["content-length"] = str(len(body))
                headers["cache-control"] = "no-store"
            await send({**start, "headers": headers.raw})
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, insert)
