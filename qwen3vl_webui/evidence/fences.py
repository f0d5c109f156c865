"""Where the code fences of markdown are, line by line while it streams: in which list or quote, until which line.

Follows CommonMark, and errs to one side: a list is believed to go on rather than to have ended, so a fence that is
believed to be open is open, or its reader is told that it was `left`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

LONGEST_HEAD = 64  # characters before the first word of a line
_LONGEST_INFO = 100  # characters after an opening fence

_HEAD = re.compile(r"((?: {0,3}>)*)([ \t]*)((?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)(`{3,}|~{3,})?")
_MAYBE_HEAD = re.compile(
    r"(?: {0,3}>)*[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*(?:[-*+]|\d{1,9}[.)]?|`{1,200}|~{1,200}| {0,3}>)?\Z"
)
_MARKER = re.compile(r"([-*+]|\d{1,9}[.)])([ \t]+)")


@dataclass
class Fence:
    """An open code fence. `base` is the column where its list item's content begins, `column` its own."""

    mark: str
    base: int
    column: int
    quotes: int
    language: str
    doubtful: bool  # whether the page reads it as a fence is not certain
    diagram: bool = False  # the page reads its inside as HTML

    def line(self, text: str, index: int, ended: bool) -> Literal["inside", "closed", "left"] | None:
        """What the line at `index` is to this fence; None: not enough of it is here."""
        found = re.compile(
            rf"((?: {{0,3}}>){{0,{self.quotes}}})([ \t]*)({re.escape(self.mark[0])}*)([ \t]*)(\n)?"
        ).match(text, index)
        assert found is not None
        here = len(text) - index
        whole = found[5] is not None
        if not whole and found.end() == len(text) and here < LONGEST_HEAD and not ended:
            return None
        blank = not found[3] and (whole or found.end() == len(text))
        if found[1].count(">") < self.quotes:
            return "left"
        if blank:
            return "inside"
        column = len(found[2].expandtabs(4)) if not self.quotes else 0
        if column < self.base:
            return "left"
        closes = len(found[3]) >= len(self.mark) and column - self.base <= 3
        return "closed" if closes and (whole or found.end() == len(text)) else "inside"


@dataclass(frozen=True)
class Head:
    """The beginning of a line: `length` characters of indent and list markers, or a whole line that opens `fence`."""

    length: int
    column: int
    markers: tuple[tuple[str, int, int], ...]  # marker, its column, the column of its content
    fence: Fence | None = None
    refused: bool = False  # a fence stands here that is not read as one: it is to be broken

    @property
    def marked(self) -> bool:
        return bool(self.markers)


class Lists:
    """Lives as long as the text streams: the columns where the content of the open list items begins."""

    def __init__(self) -> None:
        self._columns: list[int] = []

    def head(self, text: str, index: int, ended: bool) -> Head | None:
        """The beginning of the line at `index`; None: not enough of it is here."""
        if not ended and len(text) - index < LONGEST_HEAD and _MAYBE_HEAD.match(text, index):
            return None
        found = _HEAD.match(text, index)
        assert found is not None
        quotes = found[1].count(">")
        column = at = len(found[2].expandtabs(4))
        markers = []
        for marker in _MARKER.finditer(found[3]):
            width = len(marker[2].expandtabs(4))
            content = at + len(marker[1]) + (width if width <= 4 else 1)
            markers.append((marker[1], at, content))
            at += len(marker[1]) + width
        plain = Head(found.end(3) - index, column, tuple(markers))
        refused = replace(plain, refused=True)
        if not found[4]:
            return plain
        newline = text.find("\n", found.end(), found.end() + _LONGEST_INFO)
        if newline < 0 and not ended and len(text) - found.end() < _LONGEST_INFO:
            return None
        if newline < 0 and len(text) - found.end() >= _LONGEST_INFO:
            return refused
        info = text[found.end() : newline if newline >= 0 else len(text)]
        if "`" in info and found[4][0] == "`":
            return plain
        base = 0
        if markers:
            base = markers[-1][2]
        elif not quotes:
            base = next((open_column for open_column in reversed(self._columns) if open_column <= column), 0)
        if at - base > 3:
            return refused
        if not markers:
            self._columns = [open_column for open_column in self._columns if open_column <= column]
        words = info.split()
        language = words[0].lower() if words else ""
        diagram = found[4] == "```" and info.strip() == "mermaid"
        fence = Fence(found[4], base, at, quotes, language, bool(quotes or markers), diagram)
        length = (newline + 1 if newline >= 0 else len(text)) - index
        return Head(length, column, tuple(markers), fence)

    def enter(self, head: Head, blank_before: bool) -> None:
        """Go past a line that is neither a fence nor blank."""
        if blank_before or head.markers:
            self._columns = [column for column in self._columns if column <= head.column]
        for marker, column, content in head.markers:
            base = self._columns[-1] if self._columns else 0
            starts = marker in "-*+" or blank_before or int(marker[:-1]) == 1 or bool(self._columns)
            if starts and column - base <= 3:
                self._columns.append(content)
