"""Questions to begin with, about files that come with the program; those whose file is missing are not offered."""

from __future__ import annotations

from typing import Any

from qwen3vl_webui.page.boot import ASSETS

EXAMPLES: tuple[dict[str, Any], ...] = (
    {
        "file": "sample.mp4",
        "kind": "video",
        "question": {"en": "When does the red circle appear?", "zh": "红色圆形什么时候出现？"},
    },
    {
        "file": "sample.pdf",
        "kind": "document",
        "question": {"en": "Which page says 7342?", "zh": "哪一页写着7342？"},
    },
    {
        "file": "sample.png",
        "kind": "image",
        "question": {"en": "What is in the picture?", "zh": "图里有什么？"},
    },
)


def present_examples() -> list[dict[str, Any]]:
    return [example for example in EXAMPLES if (ASSETS / "samples" / example["file"]).is_file()]
