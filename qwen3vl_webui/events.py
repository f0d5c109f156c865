"""The chapters and events of an answer, to take away: SRT, WebVTT, YouTube chapters, CSV, JSON. Pure text.

An event is a time the answer cites, with the words it stands beside: the rest of its line, of its table row, or the
sentence around it; of data, its label.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qs

from qwen3vl_webui.evidence.links import CHIPS, plain
from qwen3vl_webui.times import format_clock

FORMATS = ("srt", "vtt", "youtube", "csv", "json")
LONGEST_TITLE = 200
SHORTEST = 0.5  # seconds an event without an end is shown, where the next comes at once

_LINK = re.compile(r"\[([^\[\]\n]{0,400})\]\(#qv\?([^()\s]{1,400})\)")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])")
_BULLET = re.compile(r"^\s*(?:[-*+>]\s+|\d{1,3}[.)]\s+|#{1,6}\s+)*")
_MARKUP = re.compile(r"\*\*|__|~~|`|(?<!\w)\*(?=\S)|(?<=\S)\*(?!\w)")
_CLOCKS = re.compile(r"^[\d:.]+(?:\s?[–-]\s?[\d:.]+)?\s*")
_EDGES = " \t:：,，;；–—-|·.。→>"


@dataclass(frozen=True)
class Event:
    """`title` happens in the video `media` from `start` to `end` seconds; None: the answer names no end."""

    media: str
    start: float
    end: float | None
    title: str


def find_events(markdown: str) -> list[Event]:
    """The events of an answer as it is shown, its times linked, in the order of their seconds and none twice."""
    found: dict[tuple[str, float, float | None], Event] = {}
    for line in markdown.splitlines():
        for event in _row(line) if line.lstrip().startswith("|") else _line(line):
            key = (event.media, event.start, event.end)
            if key not in found or not found[key].title:
                found[key] = event
    return sorted(found.values(), key=lambda event: (event.start, event.end or event.start))


def _line(line: str) -> list[Event]:
    links = [link for link in _LINK.finditer(line) if _times(link[2])]
    events = []
    for link in links:
        times = _times(link[2])
        assert times is not None
        chip = link[1].lstrip()[:1] in CHIPS and bool(link[1].strip())
        if chip:
            title = _CLOCKS.sub("", html.unescape(link[1]).strip()[1:].strip())
        elif len(links) == 1 and (beside := _beside(line, link)):
            title = beside
        else:
            title = _sentence(line, link)
        title = _clean(title)
        events.append(Event(*times, "" if title == _clean(link[0]) else title))
    return events


def _row(line: str) -> list[Event]:
    """Of a table: the other cells of the row; two cells with one time each are its start and its end."""
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
    timed = [(_times(link[2]), link) for cell in cells for link in _LINK.finditer(cell) if _times(link[2])]
    words = [cell for cell in cells if not _LINK.search(cell) and _clean(cell)]
    title = _clean(" · ".join(words)) or _clean(_LINK.sub(r"\1", " ".join(cells)))
    events = [Event(*times, title) for times, _ in timed if times]
    if len(events) == 2 and events[0].media == events[1].media and events[0].end is None and events[1].end is None:
        start, end = sorted((events[0].start, events[1].start))
        return [Event(events[0].media, start, end, title)] if start < end else events[:1]
    return events


def _times(query: str) -> tuple[str, float, float | None] | None:
    fields = parse_qs(query)
    try:
        start = float(fields["t"][0])
        end = float(fields["e"][0]) if "e" in fields else None
        return fields["m"][0], start, end
    except (KeyError, ValueError):
        return None


def _beside(line: str, link: re.Match[str]) -> str:
    """What stands after a time at the beginning of a line, or before one at its end."""
    before = _clean(line[: link.start()]).rstrip("([（ ")
    after = _clean(line[link.end() :]).lstrip(")]） ")
    return _clean(after) if not before else _clean(before) if not after else ""


def _sentence(line: str, link: re.Match[str]) -> str:
    at = 0
    for piece in _SENTENCE.split(line):
        at = line.index(piece, at) + len(piece) if piece else at
        if link.start() < at:
            return piece
    return line


def _clean(text: str) -> str:
    text = plain(_LINK.sub(r"\1", _BULLET.sub("", text)))
    text = html.unescape(_MARKUP.sub("", text)).replace("\\|", "|")
    return " ".join(text.split()).strip(_EDGES)[:LONGEST_TITLE]


def closed(events: Sequence[Event], duration: float) -> list[Event]:
    """Each event with an end: its own, else the beginning of the next, else the end of the video."""
    ends = []
    for index, event in enumerate(events):
        later = (other.start for other in events[index + 1 :] if other.start > event.start + SHORTEST)
        end = event.end if event.end is not None else next(later, max(duration, event.start + SHORTEST))
        ends.append(replace(event, end=max(end, event.start + 0.001)))
    return ends


def write_events(events: Sequence[Event], form: str, *, video: str, duration: float) -> str:
    """Events of one video in one of FORMATS; `video` is its name. Raises KeyError for another form."""
    writers = {"srt": _srt, "vtt": _vtt, "youtube": _youtube, "csv": _csv, "json": _json}
    return writers[form](closed(events, duration), video)


def _clock(seconds: float, point: str = ".") -> str:
    thousandths = round(seconds * 1000)
    hours, rest = divmod(thousandths, 3_600_000)
    return f"{hours:02d}:{rest // 60_000:02d}:{rest // 1000 % 60:02d}{point}{rest % 1000:03d}"


def _title(event: Event) -> str:
    return event.title or format_clock(event.start)


def _srt(events: Sequence[Event], video: str) -> str:
    blocks = [
        f"{number}\n{_clock(event.start, ',')} --> {_clock(event.end or 0, ',')}\n{_title(event).replace('-->', '→')}\n"
        for number, event in enumerate(events, 1)
    ]
    return "\n".join(blocks)


def _vtt(events: Sequence[Event], video: str) -> str:
    blocks = [
        f"{_clock(event.start)} --> {_clock(event.end or 0)}\n{html.escape(_title(event), quote=False)}\n"
        for event in events
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _youtube(events: Sequence[Event], video: str) -> str:
    """A list for the description of a video; YouTube asks for a first chapter at 0:00."""
    whole: list[Event] = []
    for event in events:
        if not whole or int(event.start) > int(whole[-1].start):
            whole.append(event)
    if whole and whole[0].start >= 1:
        whole = [Event(whole[0].media, 0.0, whole[0].start, "Start"), *whole]
    return "".join(f"{_short(event.start)} {_title(event)}\n" for event in whole)


def _short(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _csv(events: Sequence[Event], video: str) -> str:
    """With a byte order mark, for spreadsheets; a cell they would compute is made text by an apostrophe."""
    written = io.StringIO()
    rows = csv.writer(written)
    rows.writerow(["start", "end", "start_seconds", "end_seconds", "title", "video"])
    for event in events:
        end = event.end or 0.0
        seconds = f"{event.start:.3f}", f"{end:.3f}"
        rows.writerow([_clock(event.start), _clock(end), *seconds, harmless(event.title), harmless(video)])
    return "\ufeff" + written.getvalue()


def harmless(cell: str) -> str:
    return f"'{cell}" if cell.lstrip()[:1] in tuple("=+-@|%") and cell.strip() or cell[:1] in "\t\r" and cell else cell


def _json(events: Sequence[Event], video: str) -> str:
    rows = [{"start": event.start, "end": event.end, "title": event.title, "video": video} for event in events]
    return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
