"""The page's own media routes: upload, the files with byte ranges, thumbnails, page images.

Ids are opaque and belong to one owner; the type of what is served comes from our probe, never from a name.
"""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from qwen3vl_webui.conversation import new_id
from qwen3vl_webui.errors import MediaError, NotFound
from qwen3vl_webui.media import storyboard
from qwen3vl_webui.media.background import Cancelled
from qwen3vl_webui.media.cutting import save_clip, save_picture
from qwen3vl_webui.media.document import find_text, page_image
from qwen3vl_webui.media.image import display_image
from qwen3vl_webui.media.playback import how_to_play, thumbnail
from qwen3vl_webui.media.values import Clip, Document, Image, Subtitles
from qwen3vl_webui.media.video import read_times
from qwen3vl_webui.services import Services
from qwen3vl_webui.store.store import Receiving, Stored
from qwen3vl_webui.times import format_clock
from qwen3vl_webui.web.byte_ranges import FileRange, is_known
from qwen3vl_webui.web.disconnect import while_connected
from qwen3vl_webui.web.playable import PlayableCopies
from qwen3vl_webui.web.protection import is_anonymous, owner_of
from qwen3vl_webui.web.refusals import RefusingRoute
from qwen3vl_webui.web.requested import requested_file, requested_video
from qwen3vl_webui.web.thumbnails import Pictures
from qwen3vl_webui.web.words_routes import words_routes

PIECE = 1 << 20  # bytes of an upload written at once
DECODERS = 2  # pictures made at the same time

VIDEO_TYPES = {
    "mov": "video/mp4",
    "mp4": "video/mp4",
    "matroska": "video/webm",
    "webm": "video/webm",
    "avi": "video/x-msvideo",
    "mpegts": "video/mp2t",
    "mpeg": "video/mpeg",
    "flv": "video/x-flv",
    "ogg": "video/ogg",
    "asf": "video/x-ms-asf",
    "gif": "image/gif",
    "webp": "image/webp",
}

Longest = Annotated[int, Query(ge=16, le=4096)]
Width = Annotated[int, Query(ge=16, le=4096)]
ThumbWidth = Annotated[int, Query(ge=16, le=1280)]
Words = Annotated[str, Query(min_length=1, max_length=200)]


class ServerPath(BaseModel):
    """A file below `--media-dir`, absolute or relative to it."""

    model_config = ConfigDict(extra="forbid")
    path: str


def media_routes(services: Services) -> APIRouter:
    store, settings = services.store, services.settings
    copies = PlayableCopies(store)
    pictures = Pictures(store.data_dir / "pictures")
    decoders = CapacityLimiter(DECODERS)
    cutters = CapacityLimiter(1)  # encoding takes every core

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(copies.close)

    router = APIRouter(route_class=RefusingRoute, lifespan=lifespan)

    router.include_router(words_routes(services))
    find_file, find_video = partial(requested_file, store), partial(requested_video, store)

    async def serve(request: Request, stored: Stored, name: str, make: Callable[[], bytes]) -> Response:
        headers = {
            "ETag": f'"{stored.digest[:32]}-{name}"',
            "Cache-Control": "private, max-age=31536000, immutable",
        }
        if is_known(request.headers.get("if-none-match", ""), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        picture = await to_thread.run_sync(pictures.read, stored.digest, name, make, limiter=decoders)
        return Response(picture, media_type="image/webp", headers=headers)

    @router.post("/upload")
    async def upload(request: Request, name: str = "") -> dict[str, Any]:
        receiving = await to_thread.run_sync(store.receive, owner_of(request), name)
        stored = await receive_body(request, receiving)
        await to_thread.run_sync(look_through, stored)
        return await to_thread.run_sync(described, stored)

    @router.post("/upload/path")
    async def open_path(request: Request, wanted: ServerPath) -> dict[str, Any]:
        owner = owner_of(request)
        path = path_below(settings.media_dir, wanted.path, anonymous=is_anonymous(owner))
        stored = await to_thread.run_sync(lambda: store.add_file(owner, path.name, path, link=True))
        await to_thread.run_sync(look_through, stored)
        return await to_thread.run_sync(described, stored)

    @router.api_route("/media/{file_id}", methods=["GET", "HEAD"])
    async def media(request: Request, file_id: str, original: bool = False) -> Response:
        stored = await find_file(request, file_id)
        if isinstance(stored.media, Clip) and not original:
            copy = store.playable_path(stored.digest)
            if copy.exists():
                return FileRange(copy, "video/mp4", f"{stored.digest[:32]}-play")
        kind = await to_thread.run_sync(type_of, stored)
        download = stored.name if kind in {"application/pdf", "application/octet-stream"} or original else ""
        return FileRange(stored.path, kind, stored.digest[:32], download_as=download)

    @router.get("/media/{file_id}/state")
    async def state(request: Request, file_id: str) -> dict[str, Any]:
        stored = await find_file(request, file_id)
        url = f"/media/{file_id}"
        if not isinstance(stored.media, Clip):
            return {"play": "as_is", "progress": 1.0, "url": url, "sentence": ""}
        playing = await to_thread.run_sync(copies.state, stored.media)
        if playing.play == "ready":
            url += "?copy=1"  # another address than the original's, which a player may have begun to load
        return {"play": playing.play, "progress": playing.progress, "url": url, "sentence": playing.sentence}

    @router.get("/storyboard/{file_id}")
    async def board(request: Request, file_id: str) -> dict[str, Any]:
        """What happens in a video, as far as it is looked through; asking begins it. `[start, end, seconds, change,
        like]` of each segment."""
        _, clip = await find_video(request, file_id)
        await to_thread.run_sync(storyboard.begin, clip)
        reading = storyboard.reading(clip)
        segments = reading.storyboard.segments if reading.storyboard else ()
        return {
            "state": reading.state,
            "progress": reading.done,
            "sentence": reading.sentence,
            "segments": [astuple(segment) for segment in segments],
        }

    @router.get("/media/{file_id}/around")
    async def around(request: Request, file_id: str, t: float) -> dict[str, Any]:
        """When the picture on screen at that second appears, the one before it and the one after it (null: none)."""
        _, clip = await find_video(request, file_id)
        check_second(t)
        shown = (await to_thread.run_sync(read_times, clip)).shown
        at = max(0, int(shown.searchsorted(t + 0.002, side="right")) - 1)  # a player is asked to seek a little later
        return {
            "before": float(shown[at - 1]) if at else None,
            "at": float(shown[at]),
            "after": float(shown[at + 1]) if at + 1 < len(shown) else None,
        }

    @router.get("/media/{file_id}/frame.{form}")
    async def frame(request: Request, file_id: str, form: Literal["png", "jpg"], t: float) -> Response:
        """The picture on screen at that second, to keep."""
        stored, clip = await find_video(request, file_id)
        check_second(t)
        second = min(max(t, clip.start), clip.end)
        kind: Literal["PNG", "JPEG"] = "PNG" if form == "png" else "JPEG"
        picture = await to_thread.run_sync(save_picture, clip, second, kind, limiter=decoders)
        headers = {"Content-Disposition": attachment_named(saved_name(stored, form, second))}
        return Response(picture, media_type=f"image/{kind.lower()}", headers=headers)

    @router.get("/media/{file_id}/clip.mp4")
    async def part(request: Request, file_id: str, start: float, end: float) -> Response:
        """A part of a video as MP4, to keep; made now, and given up when nobody waits for it any more."""
        stored, whole = await find_video(request, file_id)
        try:
            clip = whole.between(start, end)
        except ValueError:
            raise MediaError("There is nothing between these times. Choose a part of the video.") from None
        target = store.data_dir / "media" / "incoming" / f"{new_id()}.mp4"
        leaving = threading.Event()

        def progress(_: float) -> None:
            if leaving.is_set():
                raise Cancelled

        async def make() -> bool:
            try:
                await to_thread.run_sync(
                    partial(save_clip, clip, target, progress=progress), abandon_on_cancel=True, limiter=cutters
                )
            except BaseException:
                leaving.set()
                raise
            return True

        try:
            made = await while_connected(request.receive, make)
        except Cancelled:
            made = None
        if made is None:
            target.unlink(missing_ok=True)
            return Response(status_code=499)
        name = saved_name(stored, "mp4", clip.start, clip.end)
        gone = BackgroundTask(partial(target.unlink, missing_ok=True))
        return FileResponse(target, media_type="video/mp4", filename=name, background=gone)

    @router.get("/thumb/{file_id}/{seconds}.webp")
    async def thumb(request: Request, file_id: str, seconds: float, width: ThumbWidth = 320) -> Response:
        stored, clip = await find_video(request, file_id)
        check_second(seconds)
        second = min(max(seconds, clip.start), clip.end)
        return await serve(request, stored, f"{second:.3f}-{width}.webp", lambda: thumbnail(clip, second, width))

    @router.get("/page/{file_id}/{page}.webp")
    async def page(request: Request, file_id: str, page: int, width: Width = 1200) -> Response:
        stored = await find_file(request, file_id)
        document = stored.media
        if not isinstance(document, Document) or not 1 <= page <= document.pages:
            raise NotFound(f"There is no page {page}.")
        return await serve(request, stored, f"p{page}-{width}.webp", lambda: page_image(document, page, width))

    @router.get("/page/{file_id}/{page}/words")
    async def words(request: Request, file_id: str, page: int, find: Words) -> dict[str, Any]:
        stored = await find_file(request, file_id)
        document = stored.media
        if not isinstance(document, Document) or not 1 <= page <= document.pages:
            raise NotFound(f"There is no page {page}.")
        return {"boxes": await to_thread.run_sync(find_text, document, page, find)}

    @router.get("/picture/{file_id}.webp")
    async def picture(request: Request, file_id: str, longest: Longest = 1600) -> Response:
        stored = await find_file(request, file_id)
        image = stored.media
        if not isinstance(image, Image):
            raise NotFound("This file is not a picture.")
        return await serve(request, stored, f"{longest}.webp", lambda: display_image(image, longest))

    return router


def check_second(seconds: float) -> None:
    if not math.isfinite(seconds):
        raise MediaError("A second is a finite number.")


def saved_name(stored: Stored, ending: str, *seconds: float) -> str:
    """`lecture 00-12-30.500.png`."""
    clocks = [format_clock(second, 3).replace(":", "-") for second in seconds]
    return f"{stored.name.rpartition('.')[0] or stored.name} {' to '.join(clocks)}.{ending}"


def attachment_named(name: str) -> str:
    return f"attachment; filename*=UTF-8''{quote(name)}"


async def receive_body(request: Request, receiving: Receiving) -> Stored:
    """A raw body straight to disk, a megabyte in memory at most; nothing stays when it breaks off."""
    try:
        waiting = bytearray()
        async for chunk in request.stream():
            waiting += chunk
            if len(waiting) >= PIECE:
                await to_thread.run_sync(receiving.write, bytes(waiting))
                waiting.clear()
        if waiting:
            await to_thread.run_sync(receiving.write, bytes(waiting))
        return await to_thread.run_sync(receiving.finish)
    finally:
        receiving.discard()


def look_through(stored: Stored) -> None:
    """Begins the storyboard of a video, so that it is there when the question is written."""
    if isinstance(stored.media, Clip):
        storyboard.begin(stored.media)


def described(stored: Stored) -> dict[str, Any]:
    """What the page is told of an upload; what a kind does not have is null."""
    media = stored.media
    sized = media if isinstance(media, Image | Clip) else None
    return {
        "id": stored.id,
        "kind": stored.kind,
        "name": stored.name,
        "size": stored.size,
        "digest": stored.digest,
        "width": sized.width if sized else None,
        "height": sized.height if sized else None,
        "duration": media.duration if isinstance(media, Clip) else None,
        "pages": media.pages if isinstance(media, Document) else None,
        "lines": media.cues if isinstance(media, Subtitles) else None,
        "looked_through": isinstance(media, Clip) and storyboard.pays(media),
        "playable": how_to_play(media) == "as_is" if isinstance(media, Clip) else True,
    }


def path_below(folder: Path | None, wanted: str, *, anonymous: bool) -> Path:
    """The file meant, links resolved, only when it lies below `folder`."""
    if folder is None:
        raise NotFound("Opening files by path is off. Start the server with --media-dir FOLDER.")
    if anonymous:
        raise NotFound("Log in to open files by path.")
    root = folder.resolve()
    try:
        path = (root / wanted).resolve(strict=True)
    except (OSError, ValueError):  # ValueError: a NUL in it
        path = None
    if path is None or not path.is_relative_to(root) or not path.is_file():
        raise NotFound(f"There is no such file below {root}.")
    return path


def type_of(stored: Stored) -> str:
    """The media type to serve a file under: by our probe, and for a picture by its first bytes."""
    match stored.media:
        case Clip(container=container):
            return next((VIDEO_TYPES[name] for name in container.split(",") if name in VIDEO_TYPES), "video/mp4")
        case Document():
            return "application/pdf"
        case Subtitles():
            return "application/octet-stream"
        case Image():
            with open(stored.path, "rb") as file:
                return picture_type(file.read(16))


def picture_type(head: bytes) -> str:
    """Types that a browser draws; the others are sent as bytes to keep."""
    if head.startswith(b"\x89PNG"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"GIF8"):
        return "image/gif"
    if head.startswith(b"BM"):
        return "image/bmp"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:12] in {b"ftypavif", b"ftypavis"}:
        return "image/avif"
    return "application/octet-stream"
