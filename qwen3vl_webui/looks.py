"""Where in a long film it is worth looking closer: spans that an answer names, that the question's words are said in,
that earlier answers tell of, or whose pictures look like those words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from qwen3vl_webui.engine.contract import Engine, likeness_of
from qwen3vl_webui.media import storyboard as storyboards
from qwen3vl_webui.media.segments import Storyboard
from qwen3vl_webui.media.values import Clip, Cue, FramePlan
from qwen3vl_webui.relevance import choose_alike, choose_lines, words_asked, words_of
from qwen3vl_webui.times import find_times

NEAR_ENOUGH = 1.5  # seconds between moments below which a second look finds little new: short clips have one a second
MOST_SPANS = 8
MARGIN = 0.2  # seconds on both sides of a span
AROUND_A_CHANGE = 1.0  # seconds before and after a change the storyboard knows
AROUND_A_LINE = 2.0  # seconds before and after a line that is said
MOST_ALIKE = 2  # spans that are read again for their pictures alone; benchmarks.moments was no better with more

_WANTS = re.compile(
    r"\bwhen\b|\bwhat (?:time|second|moment|point)|\bwhich (?:time|second|moment|point)|\bat what\b|\btime ?stamps?\b"
    r"|\btimes\b|\boccurrences?\b|\b(?:every|each|all the?) (?:time|moment|instance|scene|appearance)|\bhow often\b"
    r"|\bexact(?:ly)?\b|\bprecise(?:ly)?\b|\bmoments? (?:when|where|that)\b"
    r"|什么时[候间]|何时|几时|哪[一]?[秒刻]|第?几秒|几分几?秒?|时间[点戳]|哪些时[候间刻]|每[一]?次|[所全]有.{0,6}[次刻]|多少次|几次|确切|准确|具体",
    re.IGNORECASE,
)

Way = Literal["named", "said", "told", "alike"]


@dataclass(frozen=True)
class Look:
    """A span in seconds, and how it was found: the first answer `named` it, the question's words are `said` there,
    an earlier answer `told` of them, or its pictures look `alike`."""

    start: float
    end: float
    ways: tuple[Way, ...] = ("named",)

    @property
    def record(self) -> list[float | Way]:
        """As it is kept and the page is told it."""
        return [self.start, self.end, *self.ways]


def wants_closer(question: str) -> bool:
    """Whether a question asks for what a closer look can give: a time, every occurrence, exact words."""
    return bool(_WANTS.search(question))


def widest_gap(plan: FramePlan) -> float:
    """Seconds between neighbouring pictures, at most; the ends of the clip count."""
    edges = [plan.clip.start, *plan.seconds, plan.clip.end]
    return widest(edges)


def widest(edges: Sequence[float]) -> float:
    return max(after - before for before, after in pairwise(edges))


def find_looks(
    engine: Engine,
    question: str,
    answer: str,
    plan: FramePlan,
    said: Sequence[Cue] = (),
    told: Sequence[str] = (),
) -> tuple[Look, ...]:
    """What is worth a second reading, in order, overlapping spans joined, what was seen finely already left out.

    What the answer names comes first, then what is said, then what earlier answers told, then what looks alike, as long
    as there is room; the last only beside an answer that names a time: pictures are always alike to something.
    """
    storyboard = storyboards.find(plan.clip)
    looks = [Look(*span) for span in spans_of(answer, plan, storyboard)]
    if len(joined(looks)) > MOST_SPANS:  # a list, and no question of where to look
        return ()
    asked = _WANTS.sub(" ", question)
    for index in choose_lines(asked, [cue.text for cue in said]):
        start, end = said[index].start - AROUND_A_LINE, said[index].end + AROUND_A_LINE
        looks = with_look(looks, Look(max(plan.clip.start, start), min(plan.clip.end, end), ("said",)), plan)
    wanted = set(words_asked(asked))
    for index in choose_lines(asked, told):
        shared = wanted & set(words_of(told[index]))
        if shared == wanted or len(shared) > 1:  # a red circle that was told of says nothing of a red star
            for span in spans_of(told[index], plan, storyboard):
                looks = with_look(looks, Look(*span, ("told",)), plan)
    if find_times(answer):
        alike = 0
        for index in choose_alike(likeness_of(engine, plan, question)):
            more = with_look(looks, Look(*span_at(plan.stamps[index], plan, storyboard), ("alike",)), plan)
            alike += len(more) > len(looks)
            looks = more
            if alike == MOST_ALIKE:
                break
    return joined(looks)


def with_look(looks: list[Look], look: Look, plan: FramePlan) -> list[Look]:
    """One more, unless there are enough or it was seen finely already; where it meets others, they tell its way too."""
    met = [each for each in looks if each.start < look.end and look.start < each.end]
    if met:
        return [replace(each, ways=ways_of(each, look)) if each in met else each for each in looks]
    edges = [look.start, *(stamp for stamp in plan.stamps if look.start < stamp < look.end), look.end]
    fine = widest(edges) <= NEAR_ENOUGH / 2
    return looks if fine or len(joined(looks)) >= MOST_SPANS else [*looks, look]


def joined(looks: Sequence[Look]) -> tuple[Look, ...]:
    """In order, overlapping ones as one."""
    merged: list[Look] = []
    for look in sorted(set(looks), key=lambda look: (look.start, look.end)):
        if merged and look.start <= merged[-1].end:
            last = merged[-1]
            merged[-1] = Look(last.start, max(last.end, look.end), ways_of(last, look))
        else:
            merged.append(look)
    return tuple(merged)


def ways_of(*looks: Look) -> tuple[Way, ...]:
    return tuple(dict.fromkeys(way for look in looks for way in look.ways))


def spans_of(answer: str, plan: FramePlan, storyboard: Storyboard | None = None) -> list[tuple[float, float]]:
    """Where the times of an answer may really lie: from the moment before each to the moment after it; with a
    storyboard only around the change that brought what is shown then. Those that were seen finely already are left
    out."""
    clip, spans = plan.clip, []
    for found in find_times(answer):
        first, last = found.start, found.start if found.end is None else found.end
        if not clip.start - 1 <= first <= last <= clip.end + 1:
            continue
        before, after = beside(first, last, plan)
        if storyboard is not None and found.end is None:
            began = [segment.start for segment in storyboard.segments if before <= segment.start <= first]
            if began:
                before = max(before, began[-1] - AROUND_A_CHANGE)
                after = min(after, began[-1] + AROUND_A_CHANGE)
        if after - before > NEAR_ENOUGH:
            spans.append(with_margin(before, after, clip))
    return spans


def span_at(stamp: float, plan: FramePlan, storyboard: Storyboard | None = None) -> tuple[float, float]:
    """Around the change that brought what is shown at a moment; without a storyboard, the gaps beside it."""
    before, after = beside(stamp, stamp, plan)
    began = [segment.start for segment in storyboard.segments if segment.start <= stamp] if storyboard else []
    if began:
        before, after = began[-1] - AROUND_A_CHANGE, began[-1] + AROUND_A_CHANGE
    return with_margin(before, after, plan.clip)


def beside(first: float, last: float, plan: FramePlan) -> tuple[float, float]:
    """The moment before a span and the one after it; the ends of the clip where there is none."""
    before = max((stamp for stamp in plan.stamps if stamp < first - 1e-3), default=plan.clip.start)
    return before, min((stamp for stamp in plan.stamps if stamp > last + 1e-3), default=plan.clip.end)


def with_margin(start: float, end: float, clip: Clip) -> tuple[float, float]:
    return max(clip.start, start - MARGIN), min(clip.end, end + MARGIN)
