"""Files by HTTP with byte ranges, in pieces of 1 MB, so that a player seeks in hours of video at once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwen3vl_webui.web.disconnect import while_connected

CHUNK = 1 << 20


def read_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the byte after the last of `bytes=a-b`, `bytes=a-` or `bytes=-n`.

    None when the whole file is to be sent: another unit, several ranges or no range at all. Raises ValueError when
    nothing of the range lies inside the file.
    """
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", header)
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return None
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise ValueError(f"{header} lies outside of {size} bytes")
    return start, end


class FileRange(Response):
    """Serves a file, or the range that was asked for, under a type we chose. The ETag must name the content."""

    def __init__(self, path: Path, media_type: str, etag: str, *, download_as: str = "") -> None:
        self.path = path
        self.media_type = media_type
        self.etag = f'"{etag}"'
        self.fixed = {"etag": self.etag, "accept-ranges": "bytes", "cache-control": "private, no-cache"}
        if download_as:
            self.fixed["content-disposition"] = f"attachment; filename*=UTF-8''{quote(download_as, safe='')}"
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers(scope=scope)
        if is_known(asked.get("if-none-match", ""), self.etag):
            return await Response(status_code=304, headers=self.fixed)(scope, receive, send)
        try:
            descriptor = await to_thread.run_sync(os.open, self.path, os.O_RDONLY)
        except OSError:
            return await Response("The file is not there any more.", 404)(scope, receive, send)
        try:
            size = os.fstat(descriptor).st_size
            wanted = asked.get("range", "") if asked.get("if-range", self.etag) == self.etag else ""
            try:
                span = read_range(wanted, size)
            except ValueError:
                headers = {**self.fixed, "content-range": f"bytes */{size}"}
                return await Response(status_code=416, headers=headers)(scope, receive, send)
            start, end = span or (0, size)
            headers = {**self.fixed, "content-length": str(end - start), "content-type": str(self.media_type)}
            if span:
                headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": 206 if span else 200, "headers": raw})
            if scope["method"] == "HEAD":
                return await send({"type": "http.response.body", "body": b""})

            async def send_pieces() -> None:
                await send_span(descriptor, start, end, send)

            await while_connected(receive, send_pieces)  # a player that seeks drops the rest of each response
        finally:
            os.close(descriptor)


def is_known(if_none_match: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or "*" in tags


async def send_span(descriptor: int, start: int, end: int, send: Send) -> None:
    while start < end:
        piece = await to_thread.run_sync(os.pread, descriptor, min(CHUNK, end - start), start)
        if not piece:
            return  # the file was cut meanwhile
        start += len(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": start < end})
