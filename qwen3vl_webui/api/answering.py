"""One completion over HTTP: the engine's generator is drained in a thread and closed as soon as the client leaves."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from dataclasses import replace
from itertools import chain
from typing import Any

import anyio
from anyio import CapacityLimiter, to_thread
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from qwen3vl_webui.api.completions import Attachments, Chunk, chunks_of, fold
from qwen3vl_webui.engine.contract import Engine, Event, FinishEvent
from qwen3vl_webui.errors import EngineError, Overloaded, UserError
from qwen3vl_webui.prompt import Prompt
from qwen3vl_webui.web.disconnect import while_connected
from qwen3vl_webui.web.protection import is_anonymous
from qwen3vl_webui.web.refusals import error_object
from qwen3vl_webui.zoom import Closer, look_closer

log = logging.getLogger(__name__)

REQUESTS = 256  # running and waiting, all owners together: each holds a thread while it waits for its next event
REQUESTS_PER_OWNER = 64
REQUESTS_PER_VISITOR = 8
KEEP_ALIVE_SECONDS = 5.0  # between two comments while a stream has nothing to say


class Places:
    """How many requests run or wait, per owner; used on the event loop only."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self.threads = CapacityLimiter(REQUESTS)

    def take(self, owner: str) -> Callable[[], None]:
        """What gives the place back. Raises Overloaded before the request costs anything."""
        most = REQUESTS_PER_VISITOR if is_anonymous(owner) else REQUESTS_PER_OWNER
        if self._taken[owner] >= most:
            raise Overloaded(f"{most} of your requests are running or waiting. Wait for one to end.")
        if self._taken.total() >= REQUESTS:
            raise Overloaded("The server has too many requests. Try again in a moment.")
        self._taken[owner] += 1

        def leave() -> None:
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]

        return leave


class Answer:
    """Holds a place, the request's own files and the engine's generator until `close`."""

    def __init__(self, engine: Engine, attachments: Attachments, places: Places, owner: str) -> None:
        self._leave: Callable[[], None] | None = places.take(owner)
        self._threads = places.threads
        self._engine, self._attachments = engine, attachments
        self._events: Generator[Event, None, None] | None = None
        self._first: Event | None = None

    async def accept(self, prepare: Callable[[], Prompt], *, zoom: bool = False) -> None:
        """Returns when the engine has accepted the prompt; raises a UserError when it has not."""
        prompt = await to_thread.run_sync(prepare, limiter=self._threads)
        request = prompt.request
        events = look_closer(self._engine, request, prompt.said) if zoom else self._engine.generate(request)
        self._events = answer_events(events, prompt.note)
        self._first = await to_thread.run_sync(next, self._events, None, limiter=self._threads)
        if self._first is None:
            raise EngineError("The engine gave no answer. Try again.")

    async def chunks(self, model: str, *, include_usage: bool) -> AsyncGenerator[Chunk | None, None]:
        """None: nothing new. A UserError ends them where the engine failed."""
        assert self._events is not None and self._first is not None
        chunks = chunks_of(chain([self._first], self._events), model, include_usage=include_usage)
        ended = object()
        while True:
            # Cancelling waits for this one event: only then may the generator be closed.
            chunk = await to_thread.run_sync(next, chunks, ended, limiter=self._threads)
            if chunk is ended:
                return
            yield chunk  # type: ignore[misc]

    async def whole(self, model: str, receive: Receive) -> Response:
        """The answer in one piece; nothing when the client left before its end."""

        async def collect() -> list[Chunk]:
            async with aclosing(self.chunks(model, include_usage=True)) as chunks:
                return [chunk async for chunk in chunks if chunk is not None]

        try:
            chunks = await while_connected(receive, collect)
            return Response(status_code=499) if chunks is None else JSONResponse(fold(chunks))
        finally:
            await self.close()

    async def close(self) -> None:
        """Stops the engine within one event, removes what the request brought. Harmless when repeated."""

        def give_back() -> None:
            if self._events is not None:
                self._events.close()
            self._attachments.close()

        leave, self._leave = self._leave, None
        if leave is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await to_thread.run_sync(give_back, limiter=self._threads)
            finally:
                leave()


def answer_events(events: Generator[Event | Closer, None, None], note: str) -> Generator[Event, None, None]:
    """Without the steps on the way, which have no place in the API; the prompt's note stands with the engine's."""
    with closing(events):
        for event in events:
            if isinstance(event, FinishEvent):
                yield replace(event, note="\n".join(filter(None, (note, event.note))))
            elif not isinstance(event, Closer):
                yield event


class AnswerStream(StreamingResponse):
    """Server-sent events; closes its answer however it ends, also when the client left before the first line."""

    def __init__(self, answer: Answer, model: str, *, include_usage: bool) -> None:
        self._answer = answer
        self._lines = lines_of(answer, model, include_usage=include_usage)
        # A proxy must not collect the lines.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._lines, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answer.close()


async def lines_of(answer: Answer, model: str, *, include_usage: bool) -> AsyncGenerator[str, None]:
    said = time.monotonic()
    try:
        async with aclosing(answer.chunks(model, include_usage=include_usage)) as chunks:
            async for chunk in chunks:
                now = time.monotonic()
                if chunk is not None:
                    yield line(chunk)
                elif now - said >= KEEP_ALIVE_SECONDS:
                    yield ": keep-alive\n\n"
                else:
                    continue
                said = now
    except UserError as error:
        yield line(error_object(error.status, error.sentence, error.code))
    except Exception:
        log.exception("an answer failed")
        failure = EngineError("The engine failed. Try again; the server's log has the cause.")
        yield line(error_object(failure.status, failure.sentence, failure.code))
    yield "data: [DONE]\n\n"


def line(message: dict[str, Any]) -> str:
    return f"data: {json.dumps(message, ensure_ascii=False)}\n\n"
