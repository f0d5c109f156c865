"""What the panes ask once and get one answer to: the history, the cost of a message, the model's state, stop.

Each takes one JSON object and returns one; an error is `{"error": {"message", "code"}}`, for the pane to show.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import gradio as gr

from qwen3vl_webui.conversation import Conversation
from qwen3vl_webui.errors import NotFound, TooLong, Unsupported, UserError
from qwen3vl_webui.events import FORMATS, find_events, write_events
from qwen3vl_webui.export import to_json, to_markdown
from qwen3vl_webui.page.handlers import Asked, Desk, unforeseen, view_error
from qwen3vl_webui.page.linking import linked, sources_of
from qwen3vl_webui.page.views import view_files, view_price, view_status
from qwen3vl_webui.services import Services
from qwen3vl_webui.web.protection import owner_of

log = logging.getLogger(__name__)

Function = Callable[[Any, gr.Request], dict[str, Any]]
TITLE_LIMIT = 120  # characters


def make_functions(services: Services) -> dict[str, Function]:
    desk, store = Desk(services), services.store

    def conversations(asked: Asked, owner: str) -> dict[str, Any]:
        found = store.conversations(owner, asked.text("search", 1000))
        return {"conversations": [{"id": each.id, "title": each.title, "updated": each.updated} for each in found]}

    def rename(asked: Asked, owner: str) -> dict[str, Any]:
        title = " ".join(asked.text("title", TITLE_LIMIT).split())
        if not title:
            raise Unsupported("Write a name for the conversation.")
        store.rename(owner, asked.text("conversation"), title)
        return {}

    def delete(asked: Asked, owner: str) -> dict[str, Any]:
        conversation_id = asked.text("conversation")
        desk.stop(owner, conversation_id)
        store.delete(owner, conversation_id)
        return {}

    def exported(asked: Asked, owner: str) -> dict[str, Any]:
        conversation = store.load(owner, asked.text("conversation"))
        name = "".join(letter if letter.isalnum() else "-" for letter in conversation.title)[:60].strip("-")
        if asked.text("format") == "json":
            return {"name": f"{name or 'conversation'}.json", "text": to_json(conversation)}
        return {"name": f"{name or 'conversation'}.md", "text": to_markdown(conversation)}

    def take_events(asked: Asked, owner: str) -> dict[str, Any]:
        """The events of an answer as a file: of the video asked for, else of the one it speaks of most."""
        conversation = store.load(owner, asked.text("conversation"))
        form = asked.text("format")
        try:
            path = conversation.show(asked.text("turn")).path
            at = next(index for index, turn in enumerate(path) if turn.id == asked.text("turn"))
        except (KeyError, StopIteration):
            raise NotFound("This answer is no longer there. Reload the page.") from None
        if form not in FORMATS:
            raise Unsupported("The page and the server do not match. Reload the page.")
        files = view_files(path[: at + 1], store.media)
        found = find_events(linked(path[at].text, sources_of(files.values())))
        found = [event for event in found if event.media in files]
        if not found:
            raise Unsupported("This answer names no time of a video.")
        media = asked.text("file") or Counter(event.media for event in found).most_common(1)[0][0]
        video = files.get(media, {"name": "", "start": 0.0, "duration": 0.0})
        text = write_events(
            [event for event in found if event.media == media],
            form,
            video=video["name"],
            duration=video["start"] + video["duration"],
        )
        ending = {"youtube": "chapters.txt"}.get(form, form)
        return {"name": f"{video['name'].rpartition('.')[0] or video['name'] or 'video'}.{ending}", "text": text}

    def stop(asked: Asked, owner: str) -> dict[str, Any]:
        job = desk.running(owner, asked.text("conversation"))
        if job is not None:
            job.stop()
        return {"stopped": job is not None}

    def price(asked: Asked, owner: str) -> dict[str, Any]:
        if not asked.text("text", 1_000_000).strip() and not asked.files:
            asked.values = {**asked.values, "text": "?"}  # what the conversation costs already
        conversation, options = desk.asked(owner, asked), asked.options
        try:
            return view_price(desk.prompt(conversation, options))
        except TooLong as error:
            plan = fitting_plan(desk, conversation, options)
            return {**full(services, error.tokens), "sentence": error.sentence, "code": error.code, "plan": plan}

    def status(asked: Asked, owner: str) -> dict[str, Any]:
        return view_status(services.engine, services.settings)

    return {
        name: answering(name, call)
        for name, call in {
            "conversations": conversations,
            "rename": rename,
            "delete": delete,
            "exported": exported,
            "take_events": take_events,
            "stop": stop,
            "price": price,
            "status": status,
        }.items()
    }


def fitting_plan(desk: Desk, conversation: Conversation, options: dict[str, Any]) -> dict[str, Any] | None:
    """Settings that would make a message fit: moments and pages chosen within the model's budget."""
    automatic: dict[str, Any] = {key: None for key in ("fps", "most_moments", "pages") if key in options}
    if not automatic:
        return None
    try:
        desk.prompt(conversation, {key: value for key, value in options.items() if key not in automatic})
    except UserError:
        return None
    return automatic


def full(services: Services, tokens: int) -> dict[str, Any]:
    """What the meter shows of a message that does not fit, of so many `tokens` where they are known."""
    context = services.engine.context_length
    return {"tokens": max(tokens, context), "context": context, "answer_tokens": 0, "fits": False, "shown": []}


def answering(name: str, call: Callable[[Asked, str], dict[str, Any]]) -> Function:
    """`call` as Gradio calls it; trouble comes back as a value, because Gradio would hide its sentence."""

    def function(values: Any, request: gr.Request) -> dict[str, Any]:
        try:
            return call(Asked(values), owner_of(request))
        except UserError as error:
            return {"error": view_error(error)}
        except Exception:
            log.exception("the page's %s failed", name)
            return {"error": view_error(unforeseen())}

    function.__name__ = name
    return function
