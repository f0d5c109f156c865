"""Which part of a video a question is about: the spans and the moments its words name, and the video it names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3vl_webui.media.moments import NEAR
from qwen3vl_webui.media.values import label_of
from qwen3vl_webui.times import find_span, find_times

MOST_SPANS = 4  # a text with more ranges is a transcript or a list, not a question about parts
MOST_CLOCKS = 8
EXACT = 0.06  # seconds: a stamp is written to the tenth
WHOLE = 0.5  # seconds: a span that leaves out less than that is the whole video
Span = tuple[float, float]

# What follows shows how an answer should look: its times mean nothing.
_EXAMPLE = re.compile(
    r"(?:\be\.g\.|\b(?:for example|such as|format(?:ted)?|in the form)\b|例如|比如|譬如|格式|形如)"
    r"[^;。；\n?？!！]{0,80}",
    re.IGNORECASE,
)
_POINTER = re.compile(r" \(<[\d.]+ seconds>(?:, <[\d.]+ seconds>)*\)$")
_NUMBERED = r"\b(?:video|clip|film|movie) ?{n}\b(?!:)|视频 ?{n}(?![\d:：分秒])|第 ?(?:{n}|{han}) ?[个個段]视频"
_CLOCK = re.compile(r"\d[:：]\d\d(?!\d)|\d秒|\d ?s\b")
_HAN = "一二三四五六七八九"


@dataclass(frozen=True)
class Focus:
    """`spans` are [start, end) seconds in order, apart from each other; `moments` are single seconds asked about, those
    inside the spans where there are some."""

    spans: tuple[Span, ...] = ()
    moments: tuple[float, ...] = ()


def find_focus(question: str, duration: float) -> Focus:
    """What `question` names of a video of `duration` seconds; nothing for a text full of times, such as a transcript,
    and for times that only show the form an answer should have."""
    text = _EXAMPLE.sub(" ", question)
    if len(_CLOCK.findall(text)) > MOST_CLOCKS:
        return Focus()
    times = find_times(text)
    ranges = [(time.start, time.end) for time in times if time.end is not None]
    if len(ranges) > MOST_SPANS or len(times) > MOST_CLOCKS:
        return Focus()
    if not ranges and (named := find_span(text, duration)):
        ranges = [named]
    spans = _joined([(max(0.0, start), min(duration, end)) for start, end in ranges])
    if spans and spans[0][1] - spans[0][0] > duration - WHOLE:
        spans = ()
    moments = {time.start for time in times if time.end is None and time.start < duration}
    if spans:  # the edge of a span ("after 12:30") is no moment of its own
        moments = {second for second in moments if any(start < second < end for start, end in spans)}
    return Focus(spans, tuple(sorted(moments)))


def on_screen(second: float, patches: Sequence[Span]) -> int:
    """Which of the temporal patches, each the seconds of its two frames, in order, shows the picture of a second."""
    for index, patch in enumerate(patches):
        if any(abs(frame - second) < EXACT for frame in patch):
            return index
    return max(0, sum(first < second + NEAR for first, _ in patches) - 1)


def pointer(question: str, patches: Sequence[Span], duration: float) -> str:
    """What is written behind a question that names moments of a video: the labels of what is on screen then, as they
    stand before the pictures. A model need not turn minutes into seconds; where nothing is shown it gets the second.
    """
    moments = find_focus(question, duration).moments
    shown = [patches[on_screen(second, patches)] if patches else (second, second) for second in moments]
    labels = dict.fromkeys(label_of((first + last) / 2) for first, last in shown)
    return f" ({', '.join(labels)})" if labels else ""


def without_pointer(question: str) -> str:
    return _POINTER.sub("", question)


def video_of(subtitles: str, names: Sequence[str]) -> int | None:
    """Which of the videos called `names` a subtitle file of that name belongs to: the one it is named after, the newer
    of two; else the only one there is."""
    name = subtitles.lower()
    stems = [(index, (video.rpartition(".")[0] or video).lower()) for index, video in enumerate(names)]
    fitting = [(len(stem), index) for index, stem in stems if stem and (name == stem or name.startswith(f"{stem}."))]
    if fitting:
        return max(fitting)[1]
    return 0 if len(names) == 1 else None


def around(seconds: Sequence[float], reach: float, duration: float) -> tuple[Span, ...]:
    """Spans of the video that reach so far before and after each second."""
    return _joined([(max(0.0, second - reach), min(duration, second + reach)) for second in seconds])


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    joined: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


def named_videos(question: str, names: Sequence[str]) -> list[int]:
    """Which of the videos called `names`, in the order of the conversation, a question names: by file name, with or
    without its ending, or as `video 2`, `第二个视频`. Empty when it names none."""
    text = question.lower()
    found = []
    for index, name in enumerate(names):
        stem = name.rpartition(".")[0] or name
        called = (name and name.lower() in text) or (len(stem) > 3 and stem.lower() in text)
        han = _HAN[index] if index < len(_HAN) else index + 1
        if called or re.search(_NUMBERED.format(n=index + 1, han=han), text):
            found.append(index)
    return found
