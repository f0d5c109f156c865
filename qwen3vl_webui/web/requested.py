"""The file a request is about: one of its owner's, by its opaque id."""

from __future__ import annotations

from anyio import to_thread
from starlette.requests import Request

from qwen3vl_webui.errors import NotFound
from qwen3vl_webui.media.values import Clip
from qwen3vl_webui.store.store import Store, Stored
from qwen3vl_webui.web.protection import owner_of


async def requested_file(store: Store, request: Request, file_id: str) -> Stored:
    return await to_thread.run_sync(store.file, owner_of(request), file_id)


async def requested_video(store: Store, request: Request, file_id: str) -> tuple[Stored, Clip]:
    """Raises NotFound where the file is something else."""
    stored = await requested_file(store, request, file_id)
    if not isinstance(stored.media, Clip):
        raise NotFound("This file is not a video.")
    return stored, stored.media
