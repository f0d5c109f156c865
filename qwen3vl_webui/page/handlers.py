"""What happens when a person does something: one streaming event, `converse`, and functions that answer once.

`converse` is an async generator: its first yield shows what was accepted (already on disk), the later ones the running
answer, coalesced. The answer itself is a job of jobs.py: closing the page, or opening another conversation, ends the
generator and not the answer; opening the conversation again re-attaches.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr
from anyio import to_thread

from qwen3vl_webui.conversation import Attachment, Conversation, Turn
from qwen3vl_webui.errors import Conflict, EngineError, NotFound, Unsupported, UserError
from qwen3vl_webui.jobs import Job
from qwen3vl_webui.page.linking import Linking, linked, sources_of
from qwen3vl_webui.page.options import clean, read_options
from qwen3vl_webui.page.views import EMPTY_THREAD, view_progress, view_thread
from qwen3vl_webui.prompt import Prompt, build
from qwen3vl_webui.services import Services
from qwen3vl_webui.web.protection import owner_of

log = logging.getLogger(__name__)

PAUSE = 0.08  # seconds between two updates of an answer; page.md 3
HEARTBEAT = 5.0  # seconds after which a silent answer sends something, so that the browser knows it is attached
TEXT_LIMIT = 1_000_000  # characters of one question
FILE_LIMIT = 64  # files of one question

Update = tuple[Any, Any]  # values of the thread and the live pane; gr.skip() for what did not change


class Asked:
    """A command's JSON, read with care: raises Unsupported on what no page of ours sends."""

    def __init__(self, values: Any) -> None:
        self.values: dict[str, Any] = values if isinstance(values, dict) else {}

    def text(self, name: str, limit: int = 200) -> str:
        value = self.values.get(name) or ""
        if not isinstance(value, str) or len(value) > limit:
            raise Unsupported(f"This message is too long: it may have {limit:,} characters.")
        return value.encode("utf-8", "replace").decode()  # a lone surrogate would fail in the tokenizer

    @property
    def options(self) -> dict[str, Any]:
        return clean(self.values.get("options"))

    @property
    def files(self) -> list[str]:
        files = self.values.get("files") or []
        ids = (
            [file.get("id") if isinstance(file, dict) else None for file in files]
            if isinstance(files, list)
            else [None]
        )
        if len(ids) > FILE_LIMIT:
            raise Unsupported(f"One message takes at most {FILE_LIMIT} files.")
        if not all(isinstance(file_id, str) for file_id in ids):
            raise Unsupported("The files of this message cannot be read. Reload the page.")
        return [str(file_id) for file_id in ids]


class Desk:
    """The page's work on the services, per owner. Blocking: called in threads."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.store = services.store

    def conversation(self, owner: str, conversation_id: str) -> Conversation:
        return self.store.load(owner, conversation_id) if conversation_id else Conversation()

    def attachments(self, owner: str, ids: list[str]) -> tuple[Attachment, ...]:
        return tuple(self.store.file(owner, file_id).attachment for file_id in ids)

    def prompt(self, conversation: Conversation, options: dict[str, Any]) -> Prompt:
        """Of a conversation that ends with the question."""
        engine = self.services.engine
        task = conversation.path[-1].task
        has_media = any(turn.attachments for turn in conversation.path)
        return build(
            conversation, engine, self.store.media, read_options(options, engine.model, task=task, has_media=has_media)
        )

    def asked(self, owner: str, asked: Asked) -> Conversation:
        """The conversation with the new question at its leaf, as `send`, `edit` and the meter mean it."""
        conversation = self.conversation(owner, asked.text("conversation"))
        text = asked.text("text", TEXT_LIMIT)
        attachments = self.attachments(owner, asked.files)
        if not text.strip() and not attachments:
            raise Unsupported("Write a question, or add a file.")
        instead_of = asked.text("turn") if asked.text("do") == "edit" else None
        try:
            options = {**(kept(conversation.turn(instead_of)) if instead_of else {}), **asked.options}
            return conversation.ask(text, attachments, task=asked.text("task"), options=options, instead_of=instead_of)
        except KeyError:
            raise NotFound("This message is no longer there. Reload the page.") from None

    def begin(self, owner: str, asked: Asked) -> tuple[Conversation, Job]:
        """Plans the question, commits it with an empty answer and starts the answer."""
        if self.running(owner, asked.text("conversation")) is not None:  # begun in another tab
            raise Conflict("An answer is still being written in this conversation. Stop it first, or wait.")
        if asked.text("do") == "retry":
            conversation = self.conversation(owner, asked.text("conversation"))
            try:
                answer = conversation.turn(asked.text("turn"))
                question = conversation.turn(answer.parent or "")
            except KeyError:
                raise NotFound("This answer is no longer there. Reload the page.") from None
            conversation = replace(conversation, leaf=question.id)
            options = {**kept(question), **asked.options}
        else:
            conversation = self.asked(owner, asked)
            question = conversation.path[-1]
            options = question.options
        prompt = self.prompt(conversation, options)
        conversation = conversation.update(question.id, parts=prompt.parts).answer()
        conversation = self.store.save(owner, conversation)
        assert conversation.leaf is not None
        zoom = bool(options.get("zoom", True))
        job = self.services.jobs.start(
            owner, conversation.id, conversation.leaf, prompt.request, zoom=zoom, note=prompt.note, said=prompt.said
        )
        return conversation, job

    def show(self, owner: str, asked: Asked) -> Conversation:
        conversation = self.conversation(owner, asked.text("conversation"))
        try:
            return self.store.save(owner, conversation.show(asked.text("turn")))
        except KeyError:
            raise NotFound("This version is no longer there. Reload the page.") from None

    def stop(self, owner: str, conversation_id: str) -> None:
        job = self.services.jobs.find(conversation_id)
        if job is not None and job.owner == owner and job.running:
            job.stop()
            job.join(5.0)

    def running(self, owner: str, conversation_id: str) -> Job | None:
        job = self.services.jobs.find(conversation_id)
        return job if job is not None and job.owner == owner and job.running else None


KEPT = {"start", "end", "pages", "whole", "moments"}


def kept(question: Turn) -> dict[str, Any]:
    """What was set for the files of one message: it stays with it, also when the drawer has moved on."""
    return {key: value for key, value in question.options.items() if key in KEPT}


class Watches:
    """Which generator a browser session watches: a newer command ends the older one's watch."""

    def __init__(self) -> None:
        self._newest: dict[str, asyncio.Event] = {}

    def begin(self, session: str) -> asyncio.Event:
        """An event that is set when a newer command of this session begins."""
        if session in self._newest:
            self._newest[session].set()
        replaced = self._newest[session] = asyncio.Event()
        return replaced

    def end(self, session: str, mine: asyncio.Event) -> None:
        if self._newest.get(session) is mine:
            del self._newest[session]


def make_converse(services: Services) -> Callable[[gr.EventData, gr.Request], AsyncGenerator[Update, None]]:
    desk, watches = Desk(services), Watches()

    async def converse(event: gr.EventData, request: gr.Request) -> AsyncGenerator[Update, None]:
        asked = Asked(event._data)
        owner, session = owner_of(request), request.session_hash or ""
        command = str(asked.values.get("command", ""))[:80]
        replaced = watches.begin(session)
        try:
            async with aclosing(answer(asked, owner, command, replaced)) as updates:
                async for update in updates:
                    yield update
        except UserError as error:
            yield gr.skip(), {"command": command, "error": view_error(error)}
        except Exception:
            log.exception("a command of the page failed")
            yield gr.skip(), {"command": command, "error": view_error(unforeseen())}
        finally:
            watches.end(session, replaced)

    async def answer(asked: Asked, owner: str, command: str, replaced: asyncio.Event) -> AsyncGenerator[Update, None]:
        do = asked.text("do")
        job: Job | None
        if do in {"send", "edit", "retry"}:
            conversation, job = await to_thread.run_sync(desk.begin, owner, asked)
        elif do in {"open", "show"}:
            conversation = await to_thread.run_sync(open_conversation, owner, asked)
            job = desk.running(owner, conversation.id)
        else:
            raise Unsupported("The page and the server do not match. Reload the page.")
        if job is None:
            live = {"command": command, "conversation": conversation.id, "state": "done"}
            thread = {**await to_thread.run_sync(thread_of, conversation), "command": command}
            if not replaced.is_set():  # a late answer would hide the newer command's
                yield thread, live
            return
        async with aclosing(watch(job, owner, conversation, command, replaced)) as updates:
            async for update in updates:
                yield update

    def open_conversation(owner: str, asked: Asked) -> Conversation:
        if asked.text("do") == "show":
            return desk.show(owner, asked)
        try:
            return desk.conversation(owner, asked.text("conversation"))
        except NotFound:
            return Conversation()  # deleted elsewhere, or of another data folder: an empty page, not an error

    def thread_of(conversation: Conversation) -> dict[str, Any]:
        if not conversation.turns:
            return EMPTY_THREAD
        thread = view_thread(conversation, services.store.media)
        shown: dict[str, Any] = {}
        for turn in thread["turns"]:  # an answer speaks of the files shown before it, not of later ones
            shown.update((file["id"], file) for file in turn["files"])
            if turn["role"] == "assistant" and turn["text"]:
                turn["text"] = linked(turn["text"], sources_of(shown.values()))
        return thread

    async def watch(
        job: Job, owner: str, conversation: Conversation, command: str, replaced: asyncio.Event
    ) -> AsyncGenerator[Update, None]:
        """The thread at once, then the answer as it grows, then the thread again."""
        thread = {**await to_thread.run_sync(thread_of, conversation), "command": command}
        linking = Linking(sources_of(thread["files"].values()))
        version, first = -1, True
        while True:
            progress = job.snapshot()
            live = {
                "command": command,
                "conversation": conversation.id,
                "turn": job.turn_id,
                "state": "partial",
                "beat": round(time.monotonic(), 1),
                "answer": {**view_progress(progress), "text": linking.growing(progress.text)},
            }
            if progress.state != "partial":
                break
            yield (thread if first else gr.skip()), live
            began, first = time.monotonic(), False
            news = asyncio.ensure_future(job.changed(version))
            stops = asyncio.ensure_future(replaced.wait())
            try:
                await asyncio.wait({news, stops}, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
                if replaced.is_set():
                    return
                if news.done():
                    version = news.result()
            finally:
                news.cancel()
                stops.cancel()
            if not first and progress.text:  # the first words at once, then gathered
                await asyncio.sleep(max(0.0, PAUSE - (time.monotonic() - began)))
        settled = await to_thread.run_sync(desk.conversation, owner, conversation.id)
        yield {**await to_thread.run_sync(thread_of, settled), "command": command}, {**live, "state": progress.state}

    return converse


def unforeseen() -> UserError:
    return EngineError("Something failed here. Try again; the server's log has the cause.")


def view_error(error: UserError) -> dict[str, str]:
    return {"message": error.sentence, "code": error.code}
