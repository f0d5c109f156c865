"""Presets: what a chip on the page asks for, and how the model is set for it. Data only.

The prompts are those the model was trained on where its authors published them (`qwenvl html`, `qwenvl markdown`,
`bbox_2d` and `point_2d` in JSON, `mm:ss.ff`); coordinates are 0-1000 of the picture's width and height.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Language = Literal["en", "zh"]
Kind = Literal["image", "video", "document"]


@dataclass(frozen=True)
class Task:
    """`question` is put into the box, per language, for the person to change; `sampling` overrides fields of the
    model's own SamplingParams; `kinds` are the files it makes sense for."""

    name: str
    title: dict[Language, str]
    question: dict[Language, str]
    kinds: tuple[Kind, ...]
    sampling: dict[str, Any] = field(default_factory=dict)


# Copying tasks: the published presence penalty of 1.5 harms table cells and repeated words (QwenLM/Qwen3-VL#1611).
FAITHFUL = {"temperature": 0.1, "presence_penalty": 0.0, "repetition_penalty": 1.0, "max_tokens": 8192}
PRECISE = {"temperature": 0.0, "presence_penalty": 0.0}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "describe",
            {"en": "Describe", "zh": "描述"},
            {"en": "What is in the picture?", "zh": "图里有什么？"},
            ("image",),
        ),
        Task(
            "ocr",
            {"en": "Read text", "zh": "识别文字"},
            {
                "en": "Read all the text, in reading order, and keep the line breaks.",
                "zh": "请按阅读顺序读出全部文字，保留换行。",
            },
            ("image", "document"),
            FAITHFUL,
        ),
        Task(
            "parse",
            {"en": "To Markdown", "zh": "转 Markdown"},
            {"en": "qwenvl markdown", "zh": "qwenvl markdown"},
            ("image", "document"),
            FAITHFUL,
        ),
        Task(
            "locate",
            {"en": "Locate", "zh": "定位"},
            {
                "en": "Locate every object in the picture. Report bbox coordinates in JSON format.",
                "zh": "定位图中的每个物体，以 JSON 格式输出 bbox_2d 坐标和 label。",
            },
            ("image",),
            PRECISE,
        ),
        Task(
            "timeline",
            {"en": "Timeline", "zh": "时间轴"},
            {
                "en": "List the events of the video in order, with start and end as mm:ss and a short description.",
                "zh": "按顺序列出视频中的事件，每个事件写出开始和结束时间（mm:ss）和简短描述。",
            },
            ("video",),
            {"presence_penalty": 0.5},
        ),
        Task(
            "find",
            {"en": "Find the page", "zh": "找页"},
            {"en": "Which page says ", "zh": "哪一页写着"},
            ("document",),
            PRECISE,
        ),
        Task(
            "gui",
            {"en": "Click where?", "zh": "点击哪里"},
            {
                "en": "This is a screenshot. Output the point coordinates in JSON format of where to click to: ",
                "zh": "这是一张屏幕截图。请以 JSON 格式输出 point_2d 坐标，指出点击哪里可以：",
            },
            ("image",),
            PRECISE,
        ),
        Task(
            "html",
            {"en": "To HTML", "zh": "转 HTML"},
            {
                "en": "Write one self-contained HTML file with inline CSS that looks like this picture.",
                "zh": "写一个自包含的 HTML 文件（内联 CSS），还原这张图片的样子。",
            },
            ("image",),
            {"presence_penalty": 0.0, "max_tokens": 8192},
        ),
    )
}
