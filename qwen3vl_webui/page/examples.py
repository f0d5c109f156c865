"""Questions to begin with, about files that come with the program; those whose file is missing are not offered."""

from __future__ import annotations

from typing import Any

from qwen3vl_webui.page.boot import ASSETS

EXAMPLES: tuple[dict[str, Any], ...] = (
    {
        "file": "clip.mp4",
        "kind": "video",
        "question": {"en": "When does the colour change?", "zh": "颜色在什么时候变化？"},
    },
    {
        "file": "document.pdf",
        "kind": "document",
        "question": {"en": "Which page names the total?", "zh": "哪一页写着总额？"},
    },
    {
        "file": "picture.png",
        "kind": "image",
        "question": {"en": "Locate every object.", "zh": "定位图中的每个物体。"},
    },
)


def present_examples() -> list[dict[str, Any]]:
    return [example for example in EXAMPLES if (ASSETS / "samples" / example["file"]).is_file()]
