"""Boxes, points and times that a model writes as data: JSON (also cut off), `data-bbox` attributes, box comments.

Coordinates are relative, 0..1000, x before y. What is read here names no media yet.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwen3vl_webui.times import find_times, read_seconds

MOST_MARKS = 2000  # of one block
MOST_CHARACTERS = 400_000  # of one block that is parsed
_DEEPEST = 60  # nesting of JSON that is parsed; json.loads recurses
_LONGEST_LABEL = 80


@dataclass(frozen=True)
class Coordinates:
    """One thing a model located: a box, a point, or else only a moment. `image` is what it called the picture."""

    label: str = ""
    box: tuple[float, float, float, float] | None = None
    point: tuple[float, float] | None = None
    start: float | None = None
    end: float | None = None
    page: int | None = None
    image: int | str | None = None


def read_coordinates(text: str) -> list[Coordinates]:
    """All that a block of JSON, HTML or Markdown locates, in order, at most MOST_MARKS."""
    text = text[:MOST_CHARACTERS]
    found: list[Coordinates] = []
    for value in read_json(text):
        for item in _walk(value):
            found.extend(_located(item))
            if len(found) >= MOST_MARKS:
                return found[:MOST_MARKS]
    for match in TAGGED.finditer(text):
        found.extend(read_tagged(match))
        if len(found) >= MOST_MARKS:
            break
    return found


_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)|[{}\[\]]', re.DOTALL)


def read_json(text: str) -> list[Any]:
    """The JSON values of a text: the whole of it, or else every complete object in it. An answer cut off in its last
    object so keeps all the others. Linear in the text; what is nested too deep to be sane is left out."""
    if "{" not in text and "[" not in text:
        return []
    depth = deepest = 0
    open_braces: list[tuple[int, int]] = []
    objects: list[tuple[int, int]] = []
    for token in _JSON_TOKEN.finditer(text):
        character = token[0]
        if character in "{[":
            depth += 1
            deepest = max(deepest, depth)
            if character == "{":
                open_braces.append((token.start(), depth))
        elif character in "}]":
            depth = max(0, depth - 1)
            if character == "}" and open_braces:
                start, _ = open_braces.pop()
                while objects and objects[-1][0] > start:
                    objects.pop()
                objects.append((start, token.end()))
    if deepest <= _DEEPEST:
        whole = _parse(text)
        if whole is not None:
            return [whole]
    values = (_parse(text[start:end]) for start, end in objects if _depth(text[start:end]) <= _DEEPEST)
    return [value for value in values if value is not None]


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _JSON_TOKEN.finditer(text):
        depth += (token[0] in "{[") - (token[0] in "}]")
        deepest = max(deepest, depth)
    return deepest


def _parse(text: str) -> Any:
    """None when it is no JSON; a comma before a closing bracket is forgiven."""
    try:
        return json.loads(text)
    except ValueError:
        try:
            return json.loads(re.sub(r",(?=\s{0,200}[}\]])", "", text))
        except ValueError:
            return None


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a value, in the order written."""
    stack = [value]
    while stack:
        current = stack.pop()
        if isinstance(current, dict):
            yield current
            stack.extend(reversed(list(current.values())))
        elif isinstance(current, list):
            stack.extend(reversed(current))


_BOXES = ("bbox_2d", "bbox", "box")
_POINTS = ("point_2d", "point", "coordinate", "coordinate2")
_STARTS = ("start", "start_time", "start_seconds", "begin", "from")
_ENDS = ("end", "end_time", "end_seconds", "stop", "to")
_MOMENTS = ("time", "timestamp", "time_range", "timestamps", "second", "seconds", "t")
_LABELS = ("label", "text_content", "name", "event", "title", "description", "caption", "text", "action", "content")
_IMAGES = ("image", "img_idx", "image_index", "image_id", "file")


def _located(item: dict[str, Any]) -> Iterator[Coordinates]:
    label = next((item[key] for key in _LABELS if isinstance(item.get(key), str) and item[key].strip()), "")
    label = " ".join(label.split())[:_LONGEST_LABEL]
    start, end = _times(item)
    page = item.get("page", item.get("page_number"))
    page = page if isinstance(page, int) and not isinstance(page, bool) and page > 0 else None
    image = next((item[key] for key in _IMAGES if isinstance(item.get(key), int | str)), None)
    placed = False
    for key in _BOXES:
        for box in _groups(item.get(key), 4):
            if ordered := order_box(box):
                placed = True
                yield Coordinates(label, box=ordered, start=start, end=end, page=page, image=image)
    for key in _POINTS:
        for x, y in _groups(item.get(key), 2):
            placed = True
            yield Coordinates(label, point=(_clamp(x), _clamp(y)), start=start, end=end, page=page, image=image)
    if start is not None and not placed:
        yield Coordinates(label, start=start, end=end)
    for key, value in item.items():  # {"00:23.00 - 00:48.00": "what happens"}
        if key and (key[0].isdecimal() or key[0] in "[第<") and len(key) < 80 and (times := find_times(key)):
            words = " ".join(value.split())[:_LONGEST_LABEL] if isinstance(value, str) else ""
            yield Coordinates(words, start=times[0].start, end=times[0].end)


def _times(item: dict[str, Any]) -> tuple[float | None, float | None]:
    for keys in (_STARTS, _MOMENTS):
        for key in keys:
            value = item.get(key)
            if isinstance(value, list) and len(value) == 2 and keys is _MOMENTS:
                first, last = read_seconds(value[0]), read_seconds(value[1])
                if first and last and last[0] > first[0]:
                    return first[0], last[0]
            if read := read_seconds(value):
                ends = (read_seconds(item.get(key)) for key in _ENDS)
                end = read[1] or next((other[0] for other in ends if other), None)
                return read[0], end if end is not None and end > read[0] else None
    return None, None


def _groups(value: Any, size: int) -> Iterator[tuple[float, ...]]:
    """The lists of `size` finite numbers in a field: itself, or several inside it."""
    if not isinstance(value, list):
        return
    if len(value) == size and all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
        try:
            numbers = tuple(float(number) for number in value)
        except OverflowError:  # an integer beyond the range of floats
            return
        if all(math.isfinite(number) for number in numbers):
            yield numbers
    elif len(value) <= MOST_MARKS:
        for inner in value:
            if isinstance(inner, list) and len(inner) == size:
                yield from _groups(inner, size)


def _clamp(value: float) -> float:
    return min(1000.0, max(0.0, value))


def order_box(box: tuple[float, ...]) -> tuple[float, float, float, float] | None:
    """Clamped to 0..1000 with x1 < x2 and y1 < y2; None when nothing is left of it."""
    x1, y1, x2, y2 = (_clamp(value) for value in box)
    x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


_FOUR = r"(\d{1,4}(?:\.\d{1,3})?)[ ,]{1,2}" * 3 + r"(\d{1,4}(?:\.\d{1,3})?)"
TAGGED = re.compile(
    rf"<!-- ?([A-Za-z][A-Za-z ]{{0,24}}?) ?\({_FOUR}\) ?-->"
    rf"|(?:<(\w{{1,12}})[^<>]{{0,120}}?)?data-bbox=[\"']{_FOUR}[\"']"
)


def read_tagged(match: re.Match[str]) -> Iterator[Coordinates]:
    """The box of one TAGGED match: `<!-- Table (x1, y1, x2, y2) -->` or `data-bbox="x1 y1 x2 y2"`."""
    groups = match.groups()
    numbers = groups[1:5] if groups[1] is not None else groups[6:10]
    if box := order_box(tuple(float(value) for value in numbers)):
        yield Coordinates(groups[0] or groups[5] or "", box=box)
