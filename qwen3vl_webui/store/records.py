"""What the store writes of turns and media: values to JSON and back. No path is written: it follows the digest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_never

from qwen3vl_webui.conversation import Attachment, Turn
from qwen3vl_webui.media.values import Clip, Document, FramePlan, Image, Media, Part, Subtitles

PathOf = Callable[[str], Path]  # of a file's digest


def media_record(media: Media) -> dict[str, Any]:
    """Every field but the path, and `kind`: image, video, document or subtitles, as attachments call it."""
    fields = {field.name: getattr(media, field.name) for field in dataclasses.fields(media) if field.name != "path"}
    return {"kind": kind_of(media), **fields}


def kind_of(media: Media) -> Any:
    match media:
        case Image():
            return "image"
        case Clip():
            return "video"
        case Document():
            return "document"
        case Subtitles():
            return "subtitles"
    assert_never(media)


def media_from(record: dict[str, Any], path_of: PathOf) -> Media:
    fields = {name: value for name, value in record.items() if name != "kind"}
    path = path_of(fields["digest"])
    match record["kind"]:
        case "image":
            fields["seen"] = tuple(fields["seen"]) if fields["seen"] else None
            return Image(path=path, **fields)
        case "video":
            return Clip(path=path, **fields)
        case "document":
            fields["page_sizes"] = tuple((width, height) for width, height in fields["page_sizes"])
            return Document(path=path, **fields)
        case "subtitles":
            return Subtitles(path=path, **fields)
    raise ValueError(f"the store holds an unknown kind of media: {record['kind']}")


def part_record(part: Part) -> Any:
    match part:
        case str():
            return part
        case Image():
            return media_record(part)
        case FramePlan():
            return {
                "kind": "frames",
                "clip": media_record(part.clip),
                "patches": part.patches,
                "width": part.width,
                "height": part.height,
                "captions": part.captions,
            }
    assert_never(part)


def part_from(record: Any, path_of: PathOf) -> Part:
    if isinstance(record, str):
        return record
    if record["kind"] != "frames":
        image = media_from(record, path_of)
        assert isinstance(image, Image)
        return image
    clip = media_from(record["clip"], path_of)
    assert isinstance(clip, Clip)
    patches = tuple((first, second) for first, second in record["patches"])
    return FramePlan(clip, patches, record["width"], record["height"], tuple(record.get("captions", ())))


def turn_record(turn: Turn) -> str:
    """The JSON of a turn but `id`, `state`, `text` and `thinking`, which the store keeps in columns."""
    return json.dumps(
        {
            "parent": turn.parent,
            "role": turn.role,
            "thinking_seconds": turn.thinking_seconds,
            "attachments": [dataclasses.asdict(attachment) for attachment in turn.attachments],
            "parts": None if turn.parts is None else [part_record(part) for part in turn.parts],
            "task": turn.task,
            "options": turn.options,
            "note": turn.note,
            "statistics": turn.statistics,
            "created": turn.created,
        }
    )


def turn_from(turn_id: str, state: Any, text: str, thinking: str, record: str, *, path_of: PathOf) -> Turn:
    fields = json.loads(record)
    parts = fields.pop("parts")
    attachments = fields.pop("attachments")
    return Turn(
        id=turn_id,
        state=state,
        text=text,
        thinking=thinking,
        attachments=tuple(Attachment(**attachment) for attachment in attachments),
        parts=None if parts is None else tuple(part_from(part, path_of) for part in parts),
        **fields,
    )
