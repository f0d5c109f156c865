"""The links of an answer that open its evidence: what they may point at, how they are written, how they are taken out.

A link is ordinary markdown, `[第47秒](#qv?m=ID&t=47)`. A chip is such a link that we add beside the model's words; its
text begins with one of CHIPS. Only links written here begin with `#qv?`; those that a model writes are broken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

JOINER = "\u2060"  # WORD JOINER: shows nothing, is neither space nor punctuation, so it breaks what markdown would read
CHIPS = "▣◎▸"  # box, point, moment


@dataclass(frozen=True)
class Source:
    """An attachment an answer may refer to. `duration` in seconds (videos), `pages` (documents)."""

    id: str
    kind: Literal["image", "video", "document"]
    name: str = ""
    duration: float = 0.0
    pages: int = 0
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Sources:
    """The attachments of a conversation, in the order they were attached."""

    items: tuple[Source, ...] = ()

    def of(self, kind: str) -> tuple[Source, ...]:
        return tuple(source for source in self.items if source.kind == kind)


@dataclass(frozen=True)
class CitedTime:
    """A second of the video `media`, or a span when `end` is set, cut to its duration; `text` as written or a label."""

    media: str
    start: float
    end: float | None
    text: str


@dataclass(frozen=True)
class CitedPage:
    """Page `page` (1-based), or pages up to `last`, of the document `media`."""

    media: str
    page: int
    last: int | None
    text: str


@dataclass(frozen=True)
class Box:
    """Relative coordinates 0..1000, x1 <= x2, y1 <= y2. `seconds` is set in a video, `page` in a document."""

    media: str
    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    seconds: float | None = None
    page: int | None = None


@dataclass(frozen=True)
class Point:
    """Relative coordinates 0..1000. `seconds` is set in a video, `page` in a document."""

    media: str
    x: float
    y: float
    label: str = ""
    seconds: float | None = None
    page: int | None = None


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block: the first word of its info string in lower case, and what is inside."""

    language: str
    text: str


@dataclass(frozen=True)
class Evidence:
    """Everything an answer points at, in order of appearance."""

    times: tuple[CitedTime, ...] = ()
    pages: tuple[CitedPage, ...] = ()
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    tool_calls: tuple[ToolCall, ...] = field(default=())
    code_blocks: tuple[CodeBlock, ...] = ()


Mark = CitedTime | CitedPage | Box | Point

_MARKDOWN = re.compile(r"[\\`*_\[\]<>&|$~!#{}()@\"']|(?<=[a-z]):(?=//)|(?<=www)\.", re.IGNORECASE)


def _short(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _numbers(*values: float) -> str:
    return ",".join(_short(value) for value in values)


def escape(label: str) -> str:
    """Plain text as markdown that shows just that text. Entities, because `\\[` would open a formula."""
    return _MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", " ".join(label.split()))


def target(mark: Mark) -> str:
    """The `#qv?` address that opens a mark."""
    address = f"#qv?m={quote(mark.media, safe='')}"
    if isinstance(mark, CitedTime):
        return f"{address}&t={_short(mark.start)}" + (f"&e={_short(mark.end)}" if mark.end is not None else "")
    if isinstance(mark, CitedPage):
        return f"{address}&p={mark.page}"
    address += f"&t={_short(mark.seconds)}" if mark.seconds is not None else ""
    address += f"&p={mark.page}" if mark.page is not None else ""
    label = f"&l={quote(mark.label, safe='')}" if mark.label else ""
    if isinstance(mark, Box):
        return f"{address}&b={_numbers(mark.x1, mark.y1, mark.x2, mark.y2)}{label}"
    return f"{address}&x={_numbers(mark.x, mark.y)}{label}"


def chip(mark: Mark, text: str) -> str:
    sign = "▣" if isinstance(mark, Box) else "◎" if isinstance(mark, Point) else "▸"
    return f"[{sign} {escape(text)}]({target(mark)})" if text else f"[{sign}]({target(mark)})"


_OURS = r"\]\(#qv\?[^()\s]*\)"
_CHIP = rf"\[[{CHIPS}][^\[\]\n]*{_OURS}"
_CHIP_LINE = re.compile(rf"(?<=\n)\n[ ]*{_CHIP}(?: {_CHIP})*\n\n|\n\n[ ]*{_CHIP}(?: {_CHIP})*\Z")
_CLOSED = re.compile(rf"(?:(?<=\n)|(\n))[ ]*(?:`{{3,}}|~{{3,}})\n\n[ ]*{JOINER}(?(1){JOINER}){_CHIP}(?: {_CHIP})*\Z")
_LONE_CHIP = re.compile(rf" ?{_CHIP}")
_LINK = re.compile(rf"\[((?:[^\[\]]){{1,400}}){_OURS}")


def plain(markdown: str) -> str:
    """What the model wrote, out of what is shown: no links and chips of ours, no breakers, its `<` again."""
    text = _LONE_CHIP.sub("", _CHIP_LINE.sub("", _CLOSED.sub("", markdown)))
    text = _LINK.sub(r"\1", text).replace(f"){JOINER}{JOINER}", "").replace(JOINER, "").replace("&#60;", "<")
    return re.sub(r"(?<=<)\{\}(?=[A-Za-z/!?])|(?<=\])\{\}(?=[(:])|(?<=!)\{\}(?=\[)", "", text)
