"""Chat completions without HTTP: a request's messages to drafts, an engine's events to the API's chunks, and those to
one answer. The streamed and the whole answer are the same chunks."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, assert_never
from uuid import uuid4

from qwen3vl_webui.api import schema
from qwen3vl_webui.draft import Attached, Draft
from qwen3vl_webui.engine.contract import Event, FinishEvent, ModelInfo, PrefillEvent, SamplingParams, TokenEvent
from qwen3vl_webui.errors import MediaError, UserError
from qwen3vl_webui.store.store import Store, Stored

INLINE = "inline"  # the purpose of files that live as long as their request
FILE_ID = "file-"
DATA_URL = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.ASCII)


class Attachments:
    """The files of one request: those it brings go with `close`, uploaded ones stay."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store, self._owner = store, owner
        self._inline: list[str] = []

    def close(self) -> None:
        for file_id in self._inline:
            self._store.remove_file(self._owner, file_id)
        self._inline.clear()

    def drafts(self, messages: Iterable[schema.Message]) -> list[Draft]:
        """Leading system messages become one. Blocks while files are opened; raises MediaError, NotFound, UserError."""
        drafts: list[Draft] = []
        for index, message in enumerate(messages):
            match message:
                case schema.SystemMessage():
                    if any(draft.role != "system" for draft in drafts):
                        raise UserError("Put system messages before all others.", param=f"messages[{index}].role")
                    before = [str(item) for draft in drafts for item in draft.items]
                    drafts = [Draft("system", ("\n\n".join([*before, text_of(message.content)]),))]
                case schema.AssistantMessage():
                    drafts.append(Draft("assistant", (text_of(message.content or ""),)))
                case schema.UserMessage():
                    drafts.append(Draft("user", self._items(message.content, f"messages[{index}].content")))
        if drafts[-1].role != "user":
            raise UserError("The last message must be the user's.", param="messages")
        return drafts

    def _items(self, content: str | list[schema.Part], param: str) -> tuple[str | Attached, ...]:
        if isinstance(content, str):
            content = [schema.TextPart(type="text", text=content)]
        items: list[str | Attached] = []
        for index, part in enumerate(content):
            try:
                items.append(self._item(part))
            except UserError as error:
                error.param = error.param or f"{param}[{index}]"
                raise
        if not any(items):
            raise UserError("The message is empty. Write a question.", param=param)
        return tuple(item for item in items if item)

    def _item(self, part: schema.Part) -> str | Attached:
        match part:
            case schema.TextPart():
                return part.text
            case schema.ImagePart(image_url=source):
                return self._attached(source.url, source.file_id, "picture", "image", part.type)
            case schema.VideoPart(video_url=source):
                return self._attached(source.url, source.file_id, "video", "video", part.type)
            case schema.FilePart(file=file):
                name = file.filename or "file"
                return self._attached(file.file_data, file.file_id, name, None, part.type)
        assert_never(part)

    def _attached(self, url: str | None, file_id: str | None, name: str, kind: str | None, field: str) -> Attached:
        if (url is None) == (file_id is None):
            raise UserError(f"Give `{field}` either data or a `file_id`.")
        stored = self._open(url, file_id, name)
        if kind is not None and stored.kind != kind:
            article = "an" if stored.kind == "image" else "a"
            right = {"image": "image_url", "video": "video_url", "document": "file", "subtitles": "file"}[stored.kind]
            raise MediaError(f"This `{field}` holds {article} {stored.kind}. Send it as `{right}`.")
        return Attached(stored.media, stored.id, stored.name)

    def _open(self, url: str | None, file_id: str | None, name: str) -> Stored:
        if file_id is not None or (url is not None and url.startswith(FILE_ID)):
            return self._store.file(self._owner, str(file_id or url).removeprefix(FILE_ID))
        stored = self._store.add_file(self._owner, name, [read_data_url(str(url))], purpose=INLINE)
        self._inline.append(stored.id)
        return stored


def text_of(content: str | list[schema.TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def read_data_url(url: str) -> bytes:
    """Raises MediaError: nothing is fetched from an address."""
    head = DATA_URL.match(url[:1000])
    if head is None:
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url)
        named = f"`{scheme[0]}` URLs are" if scheme else "This is"
        raise MediaError(
            f"{named} not opened by this server. Upload the file to /v1/files and send its id, or send a `data:` URL.",
            code="unsupported_url",
        )
    if not head[2].lower().endswith(";base64"):
        raise MediaError("Write the `data:` URL in base64.", code="unsupported_url")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise MediaError("The data of this `data:` URL is not valid base64.") from None


def sampling_of(wanted: schema.ChatRequest, model: ModelInfo, *, visual: bool) -> SamplingParams:
    """The model's published parameters, changed where the request says so."""
    if wanted.thinking_budget is not None and not model.thinking:
        raise UserError("This model does not think. Leave `thinking_budget` out.", param="thinking_budget")
    if wanted.max_tokens is not None and wanted.max_completion_tokens is not None:
        raise UserError("Give `max_completion_tokens` or `max_tokens`, not both.", param="max_tokens")
    stop = (wanted.stop,) if isinstance(wanted.stop, str) else tuple(wanted.stop or ())
    if "" in stop:
        raise UserError("A stop string is empty.", param="stop")
    given: dict[str, Any] = {
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "top_k": None if wanted.top_k is None else max(0, wanted.top_k),
        "min_p": wanted.min_p,
        "presence_penalty": wanted.presence_penalty,
        "repetition_penalty": wanted.repetition_penalty,
        "seed": wanted.seed,
        "stop": stop or None,
        "max_tokens": wanted.max_completion_tokens or wanted.max_tokens,
        "thinking_budget": wanted.thinking_budget,
        "loop_guard": wanted.loop_guard,
    }
    usual = model.sampling if visual else model.sampling_text
    return replace(usual, **{name: value for name, value in given.items() if value is not None})


Chunk = dict[str, Any]


def chunks_of(events: Iterable[Event], model: str, *, include_usage: bool = True) -> Iterator[Chunk | None]:
    """`chat.completion.chunk` objects: the role, the text, the finish reason, the usage.

    None stands for an event that says nothing to a client, so that whoever iterates can look up.
    """
    head = {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
    }

    def chunk(delta: dict[str, str], finish: str | None = None, note: str = "") -> Chunk:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**head, "choices": [{**choice, "note": note} if note else choice]}

    begun = False
    for event in events:
        match event:
            case PrefillEvent():
                yield None if begun else chunk({"role": "assistant", "content": ""})
                begun = True
            case TokenEvent(text=""):
                yield None
            case TokenEvent():
                yield chunk({"reasoning_content" if event.thinking else "content": event.text})
            case FinishEvent():
                yield chunk({}, event.reason, event.note)
                if include_usage:
                    yield {**head, "choices": [], "usage": usage_of(event)}
            case _:
                assert_never(event)


def usage_of(event: FinishEvent) -> dict[str, Any]:
    return {
        "prompt_tokens": event.prompt_tokens,
        "completion_tokens": event.completion_tokens,
        "total_tokens": event.prompt_tokens + event.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": event.reused_tokens},
    }


def fold(chunks: Iterable[Chunk]) -> dict[str, Any]:
    """One `chat.completion` of all chunks of an answer, its usage among them."""
    text: dict[str, list[str]] = {"content": [], "reasoning_content": []}
    finish, note, last = None, "", {}
    for last in chunks:
        for choice in last["choices"]:
            finish = choice["finish_reason"] or finish
            note = choice.get("note", note)
            for name, pieces in text.items():
                pieces.append(choice["delta"].get(name, ""))
    message = {"role": "assistant", "content": "".join(text["content"])}
    if thoughts := "".join(text["reasoning_content"]):
        message["reasoning_content"] = thoughts
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    if note:
        choice["note"] = note
    return {**last, "object": "chat.completion", "choices": [choice]}
