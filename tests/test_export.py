"""What a person takes away reads as it was said."""

import json

from qwen3vl_webui.conversation import Attachment, Conversation
from qwen3vl_webui.export import to_json, to_markdown


def conversation() -> Conversation:
    film = Attachment("f" * 32, "d" * 64, "a *film* [1].mp4", "video")
    chat = Conversation(title="When <b>does</b> it open?").ask("什么时候?", (film,)).answer()
    chat = chat.update(
        str(chat.leaf),
        text="在第47秒。\n\n```json\n{}\n```",
        thinking="Hm.\n\nYes.",
        thinking_seconds=11.6,
        state="done",
    )
    chat = chat.ask("Then?").answer()
    chat = chat.update(str(chat.leaf), text="At the", state="aborted")
    chat = chat.answer(instead_of=chat.leaf)
    return chat.update(str(chat.leaf), state="failed", note="Too long.")


def test_markdown_is_the_branch_shown() -> None:
    assert to_markdown(conversation()) == (
        "# When \\<b\\>does\\</b\\> it open?\n\n"
        "## Question\n\n- a \\*film\\* \\[1\\].mp4 (video)\n\n什么时候?\n\n"
        "## Answer\n\n> **Reasoning, 12 s**\n>\n> Hm.\n>\n> Yes.\n\n在第47秒。\n\n```json\n{}\n```\n\n"
        "## Question\n\nThen?\n\n"
        "## Answer\n\n*The answer failed. Too long.*\n"
    )


def test_another_branch_is_exported_when_it_is_shown() -> None:
    chat = conversation()
    text = to_markdown(chat.show(chat.turns[3].id))
    assert text.endswith("## Answer\n\nAt the\n\n*The answer was stopped.*\n")


def test_an_empty_conversation_is_a_title() -> None:
    assert to_markdown(Conversation()) == "# Conversation\n"


def test_json_is_the_whole_tree() -> None:
    chat = conversation()
    path = chat.turns[0].attachments[0]
    chat = chat.update(chat.turns[0].id, parts=("x",), options={"fps": 2}, created=0.0)
    data = json.loads(to_json(chat))
    assert data["format"] == "qwen3vl-webui conversation" and data["leaf"] == chat.leaf
    assert [turn["id"] for turn in data["turns"]] == [turn.id for turn in chat.turns]
    assert [turn["parent"] for turn in data["turns"]] == [turn.parent for turn in chat.turns]
    first = data["turns"][0]
    assert first["attachments"] == [{"id": path.id, "digest": path.digest, "name": path.name, "kind": "video"}]
    assert first["created"] == "1970-01-01T00:00:00+00:00" and first["options"] == {"fps": 2} and "parts" not in first
    assert data["turns"][1]["text"].startswith("在第47秒") and data["turns"][1]["thinking_seconds"] == 11.6
