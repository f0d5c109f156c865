"""A conversation to take away: Markdown of the branch shown, or JSON of the whole tree. Pure text, no file is read."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import UTC, datetime
from typing import Any

from qwen3vl_webui.conversation import Conversation, Turn

FORMAT = "qwen3vl-webui conversation"
FORMAT_VERSION = 1
ENDINGS = {"aborted": "The answer was stopped.", "failed": "The answer failed.", "partial": "The answer is unfinished."}


def to_markdown(conversation: Conversation) -> str:
    """What was said on the branch shown, in order. Times and pages stand as the model wrote them."""
    blocks = [f"# {escaped(conversation.title) or 'Conversation'}"]
    for turn in conversation.path:
        blocks.append("## Question" if turn.role == "user" else "## Answer")
        blocks += question_blocks(turn) if turn.role == "user" else answer_blocks(turn)
    return "\n\n".join(blocks) + "\n"


def question_blocks(turn: Turn) -> list[str]:
    files = "\n".join(f"- {escaped(attachment.name)} ({attachment.kind})" for attachment in turn.attachments)
    return [block for block in (files, turn.text.strip()) if block]


def answer_blocks(turn: Turn) -> list[str]:
    blocks = []
    if turn.thinking.strip():
        quoted = "\n".join(f"> {line}".rstrip() for line in turn.thinking.strip().splitlines())
        blocks += [f"> **Reasoning, {turn.thinking_seconds:.0f} s**\n>\n{quoted}"]
    if turn.text.strip():
        blocks.append(turn.text.strip())
    if turn.state != "done":
        blocks.append(f"*{' '.join(filter(None, (ENDINGS[turn.state], escaped(turn.note))))}*")
    return blocks


def to_json(conversation: Conversation) -> str:
    """Every turn of the tree but `parts`, which the model was shown and which repeat the files. Times are UTC."""
    return json.dumps(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "id": conversation.id,
            "title": conversation.title,
            "leaf": conversation.leaf,
            "turns": [turn_fields(turn) for turn in conversation.turns],
        },
        ensure_ascii=False,
        indent=2,
    )


def turn_fields(turn: Turn) -> dict[str, Any]:
    fields = {field.name: getattr(turn, field.name) for field in dataclasses.fields(turn) if field.name != "parts"}
    fields["attachments"] = [dataclasses.asdict(attachment) for attachment in turn.attachments]
    fields["created"] = datetime.fromtimestamp(turn.created, UTC).isoformat(timespec="seconds")
    return fields


def escaped(text: str) -> str:
    """One line that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>#|~$!])", r"\\\1", " ".join(text.split()))
