"""The OpenAI-compatible door: `/v1/chat/completions`, `/v1/models`, `/v1/files`, and `/healthz`.

What is not done here is refused in the API's own error shape; nothing is fetched from an address.
"""

from __future__ import annotations

import time
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwen3vl_webui.api.answering import Answer, AnswerStream, Places
from qwen3vl_webui.api.completions import FILE_ID, INLINE, Attachments, sampling_of
from qwen3vl_webui.api.schema import ChatRequest, read_chat_request
from qwen3vl_webui.api.upload_form import receive_form
from qwen3vl_webui.draft import Attached, Options
from qwen3vl_webui.engine.contract import Engine, ModelInfo
from qwen3vl_webui.engine.opening import OpeningEngine
from qwen3vl_webui.errors import NotFound, NotReady, UserError
from qwen3vl_webui.prompt import Prompt, lay_out
from qwen3vl_webui.services import Services
from qwen3vl_webui.store.store import Stored
from qwen3vl_webui.web.byte_ranges import FileRange
from qwen3vl_webui.web.media_routes import type_of
from qwen3vl_webui.web.protection import owner_of
from qwen3vl_webui.web.refusals import RefusingRoute, refuse

BODY_LIMIT = 64 * 2**20  # bytes of a chat request; larger files go through /v1/files
PURPOSES = ("user_data", "vision", "assistants")
STORYBOARD_PATIENCE = 120.0  # seconds: a program sees no progress, and the same request should get the same answer
STARTED = int(time.time())


def api_routes(services: Services) -> APIRouter:
    """`/v1` and `/healthz`. Include it before the page is mounted at /."""
    router = APIRouter(route_class=RefusingRoute)
    engine = services.engine

    @router.get("/healthz")
    async def healthz() -> Response:
        """`ok` and `loading` answer 200: the server is well. 503 when the model could not be opened."""
        state = engine.status.state if isinstance(engine, OpeningEngine) else "ready"
        try:
            name, device = engine.model.name, engine.model.device
        except NotReady:
            name, device = None, None
        status = {"ready": "ok", "loading": "loading", "failed": "failed"}[state]
        return JSONResponse({"status": status, "model": name, "device": device}, 503 if state == "failed" else 200)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_object(engine.model)]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        check_model(name, engine.model)
        return model_object(engine.model)

    add_completions(router, services)
    add_files(router, services)

    @router.api_route("/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def elsewhere(request: Request, rest: str) -> Response:
        """Without it the page, which is mounted at /, would answer programs in HTML."""
        return refuse(404, f"{request.method} /v1/{rest} is not offered by this server.", "unknown_url")

    return router


def add_completions(router: APIRouter, services: Services) -> None:
    engine, store = services.engine, services.store
    places = Places()

    @router.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        wanted = read_chat_request(await read_body(request, BODY_LIMIT))
        if wanted.stream_options is not None and not wanted.stream:
            raise UserError("`stream_options` needs `stream: true`.", param="stream_options")
        info = engine.model
        check_model(wanted.model, info)
        owner = owner_of(request)
        attachments = Attachments(store, owner)
        answer = Answer(engine, attachments, places, owner)
        try:
            await answer.accept(lambda: build_prompt(wanted, attachments, engine, owner), zoom=bool(wanted.zoom))
        except BaseException:
            await answer.close()
            raise
        if wanted.stream:
            include_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
            return AnswerStream(answer, info.name, include_usage=include_usage)
        return await answer.whole(info.name, request.receive)


def add_files(router: APIRouter, services: Services) -> None:
    store = services.store

    @router.post("/v1/files")
    async def upload(request: Request) -> dict[str, Any]:
        owner = owner_of(request)
        form = await receive_form(request, "file", lambda name: store.receive(owner, name))
        if form.receiving is None:
            raise UserError("The form has no `file`.", param="file")
        try:
            form.receiving.purpose = read_purpose(form.fields)
            return file_object(await to_thread.run_sync(form.receiving.finish))
        finally:
            form.receiving.discard()

    @router.get("/v1/files")
    async def files(
        request: Request, purpose: str = "", limit: int = 10_000, after: str = "", order: str = "desc"
    ) -> dict[str, Any]:
        stored = await to_thread.run_sync(store.files, owner_of(request))
        data = [file_object(file) for file in stored if is_public(file) and purpose in {"", file.purpose}]
        if order == "asc":
            data.reverse()
        ids = [file["id"] for file in data]
        data = data[ids.index(after) + 1 :] if after in ids else data
        limit = max(1, limit)
        return {"object": "list", "data": data[:limit], "has_more": len(data) > limit}

    async def find(request: Request, file_id: str) -> Stored:
        stored = await to_thread.run_sync(store.file, owner_of(request), file_id.removeprefix(FILE_ID))
        if not is_public(stored):
            raise NotFound(f"There is no file {file_id}.", code="file_not_found")
        return stored

    @router.get("/v1/files/{file_id}")
    async def file(request: Request, file_id: str) -> dict[str, Any]:
        return file_object(await find(request, file_id))

    @router.delete("/v1/files/{file_id}")
    async def delete(request: Request, file_id: str) -> dict[str, Any]:
        stored = await find(request, file_id)
        await to_thread.run_sync(store.remove_file, owner_of(request), stored.id)
        return {"id": FILE_ID + stored.id, "object": "file", "deleted": True}

    @router.get("/v1/files/{file_id}/content")
    async def content(request: Request, file_id: str) -> Response:
        stored = await find(request, file_id)
        kind = await to_thread.run_sync(type_of, stored)
        return FileRange(stored.path, kind, stored.digest[:32], download_as=stored.name)


def build_prompt(wanted: ChatRequest, attachments: Attachments, engine: Engine, owner: str) -> Prompt:
    """Opens the files the messages name and lays them out. Blocks."""
    drafts = attachments.drafts(wanted.messages)
    visual = any(isinstance(item, Attached) for draft in drafts for item in draft.items)
    options = Options(
        sampling=sampling_of(wanted, engine.model, visual=visual),
        patience=STORYBOARD_PATIENCE,
        priority=wanted.priority or "chat",
    )
    return lay_out(drafts, engine, options, conversation=f"api:{owner}:{wanted.user or ''}")


async def read_body(request: Request, limit: int) -> bytes:
    """Raises UserError as soon as more than `limit` bytes have come."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise UserError(
                f"The request is larger than {limit // 2**20} MiB. Upload large files to /v1/files and send their ids.",
                code="request_too_large",
            )
    return bytes(body)


def check_model(name: str, model: ModelInfo) -> None:
    if name not in {model.name, model.checkpoint}:
        raise NotFound(
            f"The model `{name}` is not here; this server answers as `{model.name}`.", code="model_not_found"
        )


def model_object(model: ModelInfo) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": STARTED,
        "owned_by": "qwen3vl-webui",
        "root": model.checkpoint,
        "context_length": model.context_length,
    }


def read_purpose(fields: dict[str, str]) -> str:
    unknown = set(fields) - {"purpose"}
    if unknown:
        param = min(unknown)
        raise UserError(f"`{param}` is not supported here. Leave it out.", code="unsupported", param=param)
    purpose = fields.get("purpose", "")
    if purpose not in PURPOSES:
        raise UserError(f"`purpose` is one of {', '.join(PURPOSES)}.", param="purpose")
    return purpose


def is_public(stored: Stored) -> bool:
    """Whether the API's client uploaded it: the page's attachments and files of running requests are not listed."""
    return stored.purpose not in {"", INLINE}


def file_object(stored: Stored) -> dict[str, Any]:
    return {
        "id": FILE_ID + stored.id,
        "object": "file",
        "bytes": stored.size,
        "created_at": int(stored.created),
        "filename": stored.name,
        "purpose": stored.purpose,
        "status": "processed",
    }
