"""Which attachment the times, pages and places of an answer belong to."""

from __future__ import annotations

import math
import re

from qwen3vl_webui import times
from qwen3vl_webui.evidence.coordinates import Coordinates
from qwen3vl_webui.evidence.links import (
    Box,
    CitedPage,
    CitedTime,
    CodeBlock,
    Evidence,
    Mark,
    Point,
    Source,
    Sources,
    ToolCall,
    chip,
)

_LONGEST_NAME = 160  # a name cut in two by the search is found whole the next time
_NUMBER = rf"(\d{{1,5}}|[{times.NUMERALS}]{{1,5}})"
PAGE = re.compile(
    r"(?:pp?\. ?|pages? )(\d{1,5})(?: ?(?:-|–|—) ?(\d{1,5})| to (\d{1,5}))?(?!\d|[:.]\d)"
    rf"|第 ?{_NUMBER} ?(?:(?:[-–—~至到]) ?(?:第 ?)?{_NUMBER} ?)?[页頁](?: ?[-–—~至到] ?第 ?{_NUMBER} ?[页頁])?",
    re.IGNORECASE,
)
_CALLED = {
    "video": ("video {}", "视频{}", "视频 {}", "第{}个视频"),
    "image": ("image {}", "picture {}", "图{}", "图片{}", "图片 {}", "第{}张图"),
    "document": ("document {}", "文档{}", "文档 {}", "第{}个文档"),
}


class Citations:
    """Lives as long as one answer streams: what it cited, and which attachment of each kind it named last."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._names = {source.id: source.name for source in sources.items}
        self._called = _called(sources)
        self._pattern = _pattern(self._called)
        self._named: dict[str, Source] = {}
        self._page: dict[str, int] = {}  # the last page cited, by document
        self._tail = ""
        self._marks: list[Mark] = []
        self.tool_calls: list[ToolCall] = []
        self.code_blocks: list[CodeBlock] = []

    @property
    def evidence(self) -> Evidence:
        return Evidence(
            tuple(mark for mark in self._marks if isinstance(mark, CitedTime)),
            tuple(mark for mark in self._marks if isinstance(mark, CitedPage)),
            tuple(mark for mark in self._marks if isinstance(mark, Box)),
            tuple(mark for mark in self._marks if isinstance(mark, Point)),
            tuple(self.tool_calls),
            tuple(self.code_blocks),
        )

    def read(self, pieces: list[str]) -> None:
        """Look for names in what was said since the last time; empties `pieces`."""
        if self._pattern and pieces:
            text = self._tail + "".join(pieces)
            for match in self._pattern.finditer(text):
                source = self._called.get(match[0].lower())
                if source and (match.start() or not self._tail):  # the tail may begin inside a longer name
                    self._named[source.kind] = source
            self._tail = text[-_LONGEST_NAME:]
        pieces.clear()

    def time(self, found: times.FoundTime, text: str) -> list[Mark]:
        """The time in the video named last, or in every video that is that long."""
        return [_cited(video, found.start, found.end, text) for video in self._candidates("video", found.start)]

    def page(self, found: re.Match[str], text: str) -> list[Mark]:
        """Of a match of PAGE: the page in the document named last, or in every one that has it."""
        numbers = [int(times.number(group)) for group in found.groups() if group]
        page, last = numbers[0], numbers[1] if len(numbers) > 1 and numbers[1] > numbers[0] else None
        documents = self._candidates("document", page)
        return [CitedPage(each.id, page, last if last and last <= each.pages else None, text) for each in documents]

    def place(self, place: Coordinates) -> list[Mark]:
        """What a block of data located, in the media it most likely means; empty when there is none."""
        if place.box is None and place.point is None:
            if place.start is None:
                return []
            videos = self._candidates("video", place.start)
            return [_cited(video, place.start, place.end, place.label) for video in videos]
        media, seconds, page = self._media_of(place)
        if media is None:
            return []
        if place.box is not None:
            return [Box(media.id, *place.box, place.label, seconds, page)]
        assert place.point is not None
        return [Point(media.id, *place.point, place.label, seconds, page)]

    def keep(self, marks: list[Mark]) -> None:
        """These are cited."""
        self._marks.extend(marks)
        for mark in marks:
            if isinstance(mark, CitedPage):
                self._page[mark.media] = mark.page

    def chip(self, mark: Mark) -> str:
        """The chip of a mark of data: its label, and the moment where there is one."""
        if isinstance(mark, CitedTime):
            return chip(mark, f"{_clock(mark)} {mark.text}".strip())
        if isinstance(mark, CitedPage):
            return chip(mark, mark.text)
        clock = times.format_clock(mark.seconds, 1) if mark.seconds is not None else ""
        return chip(mark, f"{mark.label} {clock}".strip())

    def choice(self, mark: Mark) -> str:
        """The chip of one of several attachments that a time or page may be of."""
        return chip(mark, self._names[mark.media][:24])

    def _candidates(self, kind: str, place: float) -> list[Source]:
        if named := self._named.get(kind):
            return [named] if _has(named, place) else []
        return [source for source in self._sources.of(kind) if _has(source, place)]

    def _media_of(self, place: Coordinates) -> tuple[Source | None, float | None, int | None]:
        """Where a box or point lies: a moment of a video, a page of a document, or a picture: the one it names, the one
        the text named last, or the newest."""
        if place.start is not None and (videos := self._candidates("video", place.start)):
            return videos[-1], min(place.start, videos[-1].duration), None
        if place.page is not None and (documents := self._candidates("document", place.page)):
            return documents[-1], None, place.page
        images = self._sources.of("image")
        if images:
            by_name = self._called.get(place.image.lower()) if isinstance(place.image, str) else None
            if by_name and by_name.kind == "image":
                return by_name, None, None
            if isinstance(place.image, int) and 0 <= place.image < len(images):
                return images[place.image], None, None
            return self._named.get("image") or images[-1], None, None
        if documents_here := self._sources.of("document"):
            document = self._named.get("document") or documents_here[-1]
            page = self._page.get(document.id, 1 if document.pages == 1 else 0)
            return (document, None, page) if page else (None, None, None)
        return None, None, None


def _has(source: Source, place: float) -> bool:
    """Whether a video has that second (a model rounds its end up) or a document that page."""
    return 0 <= place <= math.ceil(source.duration) if source.kind == "video" else 1 <= place <= source.pages


def _cited(video: Source, start: float, end: float | None, text: str) -> CitedTime:
    last = min(end, video.duration) if end is not None and _has(video, end) else None
    return CitedTime(video.id, min(start, video.duration), last, text)


def _clock(mark: CitedTime) -> str:
    digits = 1 if mark.start % 1 or (mark.end or 0) % 1 else 0
    end = f"–{times.format_clock(mark.end, digits)}" if mark.end is not None else ""
    return times.format_clock(mark.start, digits) + end


def _called(sources: Sources) -> dict[str, Source]:
    """All that an answer may call an attachment, in lower case: file name, `video 2`, `视频2`, `第二个视频`."""
    called: dict[str, Source] = {}
    for kind, forms in _CALLED.items():
        for count, source in enumerate(sources.of(kind), 1):
            for form in forms:
                called[form.format(count)] = source
                if count < 10 and form[0] == "第":
                    called[form.format("一二三四五六七八九"[count - 1])] = source
    for source in sources.items:
        stem = source.name.rpartition(".")[0].lower()
        if len(stem) > 3:
            called.setdefault(stem, source)
    return called | {source.name.lower(): source for source in sources.items if source.name}


def _pattern(called: dict[str, Source]) -> re.Pattern[str] | None:
    if not called:
        return None
    names = "|".join(re.escape(name) for name in sorted(called, key=len, reverse=True))
    return re.compile(rf"(?<![A-Za-z0-9_])(?:{names})(?![A-Za-z0-9_])", re.IGNORECASE)
