"""Zoom in time: a first reading of the whole film names the moments, a second one looks closer there and answers.

A long film is shown a moment every few seconds, so a time read off it is no finer than that. For questions that want
a time, every occurrence, or exact words, the neighbourhood of each time the first answer names is read again, up to
eight frames a second and at a higher size, for the same number of tokens. So is what that answer may have missed: where
the question's words are said, where earlier answers of the chat tell of them (what slides say is known from those), and
the moments whose pictures look like them.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

from qwen3vl_webui.engine.contract import (
    Engine,
    Event,
    FinishEvent,
    GenerationRequest,
    Message,
    Timings,
    TokenEvent,
    likeness_of,
)
from qwen3vl_webui.errors import UserError
from qwen3vl_webui.media import storyboard as storyboards
from qwen3vl_webui.media.captions import within, woven
from qwen3vl_webui.media.sampling import LABEL_TOKENS, plan_frames
from qwen3vl_webui.media.segments import Storyboard
from qwen3vl_webui.media.values import Clip, Cue, FramePlan, Part
from qwen3vl_webui.media.video import read_times
from qwen3vl_webui.relevance import ASKING, choose_alike, choose_lines, words_of
from qwen3vl_webui.times import find_times

NEAR_ENOUGH = 1.5  # seconds between moments below which a second look finds little new: short clips have one a second
MOST_SPANS = 8
MOST_MOMENTS = 96  # of the second reading, all spans together
FINEST = 8.0  # frames a second
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


_PIECE = re.compile(r"[^\n;；。]+")  # of an answer: a line of a list, or a sentence; a full stop is also in 12.5

Way = Literal["named", "said", "told", "alike"]


@dataclass(frozen=True)
class Look:
    """A span in seconds, and how it was found: the first answer `named` it, the question's words are `said` there,
    an earlier answer `told` of them, or its pictures look `alike`."""

    start: float
    end: float
    ways: tuple[Way, ...] = ("named",)


@dataclass(frozen=True)
class Closer:
    """The second reading begins: what is looked at again, in order."""

    looks: tuple[Look, ...]


def wants_closer(question: str) -> bool:
    """Whether a question asks for what a closer look can give: a time, every occurrence, exact words."""
    return bool(_WANTS.search(question))


def look_closer(
    engine: Engine, request: GenerationRequest, said: Sequence[Cue] = ()
) -> Generator[Event | Closer, None, None]:
    """The events of one answer, with a `Closer` between the readings where there were two. `said` are the lines of the
    film, those the prompt had no room for among them.

    Keeps the contract of `Engine.generate`. One reading is all when the question wants none, the film is short enough
    to be seen whole, nothing is named or said, or the second reading does not fit.
    """
    plan, question = last_film(request), question_of(request)
    if plan is None or not wants_closer(question) or widest_gap(plan) <= NEAR_ENOUGH:
        yield from engine.generate(request)
        return
    pieces: list[TokenEvent] = []
    finish: FinishEvent | None = None
    with closing(engine.generate(request)) as events:
        for event in events:
            match event:
                case TokenEvent():
                    pieces.append(event)
                    yield TokenEvent("", event.thinking)  # whoever follows can stop here
                case FinishEvent():
                    finish = event
                case _:
                    yield event
    assert finish is not None
    first = "".join(piece.text for piece in pieces if not piece.thinking)
    told = earlier_words(request, plan)
    looks = find_looks(engine, question, first, plan, within(said, plan.clip.start, plan.clip.end), told)
    second = second_request(engine, request, plan, looks, said) if looks else None
    if second is not None:
        yield Closer(looks)
        last = yield from _second_answer(engine, second)
        if last is not None:
            yield replace(last, timings=_together(finish.timings, last.timings))
            return
    yield from pieces
    yield finish


def _second_answer(engine: Engine, request: GenerationRequest) -> Generator[Event, None, FinishEvent | None]:
    """The second reading's answer, held back until it names a time; None when it names none, and then nothing of it
    was told: the first reading saw more of the film."""
    held: list[TokenEvent] | None = []
    try:
        with closing(engine.generate(request)) as events:
            for event in events:
                match event:
                    case FinishEvent():
                        return event if held is None else None
                    case TokenEvent() if held is not None:
                        held.append(event)
                        if find_times("".join(piece.text for piece in held if not piece.thinking)):
                            yield from held
                            held = None
                        else:
                            yield TokenEvent("", event.thinking)
                    case _:
                        yield event
    except UserError:
        if held is None:
            raise
    return None


def last_film(request: GenerationRequest) -> FramePlan | None:
    plans = [part for message in request.messages for part in message.parts if isinstance(part, FramePlan)]
    return plans[-1] if plans else None


def question_of(request: GenerationRequest) -> str:
    """The words after the last file of the last message: its end, where a text layer stands before them."""
    texts: list[str] = []
    for part in reversed(request.messages[-1].parts):
        if not isinstance(part, str):
            break
        texts.insert(0, part)
    return "".join(texts)[-400:]


def earlier_words(request: GenerationRequest, plan: FramePlan) -> list[str]:
    """What earlier answers tell of this film with a time: lines of lists, sentences. Nothing where the chat has several
    films, since a time does not say of which it is."""
    plans = [part for message in request.messages for part in message.parts if isinstance(part, FramePlan)]
    if {each.clip.digest for each in plans} != {plan.clip.digest}:
        return []
    answers = [part for message in request.messages if message.role == "assistant" for part in message.parts]
    pieces = [piece for text in answers if isinstance(text, str) for piece in _PIECE.findall(text)]
    return [piece for piece in pieces if find_times(piece)]


def widest_gap(plan: FramePlan) -> float:
    """Seconds between neighbouring pictures, at most; the ends of the clip count."""
    edges = [plan.clip.start, *plan.seconds, plan.clip.end]
    return max(after - before for before, after in zip(edges, edges[1:], strict=False))


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
    wanted = {word for word in words_of(asked) if word not in ASKING}
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
        ways = {each: (*each.ways, *(way for way in look.ways if way not in each.ways)) for each in met}
        return [replace(each, ways=ways.get(each, each.ways)) for each in looks]
    edges = [look.start, *(stamp for stamp in plan.stamps if look.start < stamp < look.end), look.end]
    fine = max(after - before for before, after in zip(edges, edges[1:], strict=False)) <= NEAR_ENOUGH / 2
    return looks if fine or len(joined(looks)) >= MOST_SPANS else [*looks, look]


def joined(looks: Sequence[Look]) -> tuple[Look, ...]:
    """In order, overlapping ones as one."""
    merged: list[Look] = []
    for look in sorted(set(looks), key=lambda look: (look.start, look.end)):
        if merged and look.start <= merged[-1].end:
            last = merged[-1]
            ways = (*last.ways, *(way for way in look.ways if way not in last.ways))
            merged[-1] = Look(last.start, max(last.end, look.end), ways)
        else:
            merged.append(look)
    return tuple(merged)


def spans_of(answer: str, plan: FramePlan, storyboard: Storyboard | None = None) -> list[tuple[float, float]]:
    """Where the times of an answer may really lie: from the moment before each to the moment after it; with a
    storyboard only around the change that brought what is shown then. Those that were seen finely already are left
    out."""
    clip, stamps = plan.clip, plan.stamps
    spans = []
    for found in find_times(answer):
        first, last = found.start, found.start if found.end is None else found.end
        if not clip.start - 1 <= first <= last <= clip.end + 1:
            continue
        before = max((stamp for stamp in stamps if stamp < first - 1e-3), default=clip.start)
        after = min((stamp for stamp in stamps if stamp > last + 1e-3), default=clip.end)
        if storyboard is not None and found.end is None:
            began = [segment.start for segment in storyboard.segments if before <= segment.start <= first]
            if began:
                before = max(before, began[-1] - AROUND_A_CHANGE)
                after = min(after, began[-1] + AROUND_A_CHANGE)
        if after - before > NEAR_ENOUGH:
            spans.append((max(clip.start, before - MARGIN), min(clip.end, after + MARGIN)))
    return spans


def span_at(stamp: float, plan: FramePlan, storyboard: Storyboard | None = None) -> tuple[float, float]:
    """Around the change that brought what is shown at a moment; without a storyboard, the gaps beside it."""
    clip = plan.clip
    before = max((each for each in plan.stamps if each < stamp - 1e-3), default=clip.start)
    after = min((each for each in plan.stamps if each > stamp + 1e-3), default=clip.end)
    began = [segment.start for segment in storyboard.segments if segment.start <= stamp] if storyboard else []
    if began:
        before, after = began[-1] - AROUND_A_CHANGE, began[-1] + AROUND_A_CHANGE
    return max(clip.start, before - MARGIN), min(clip.end, after + MARGIN)


def second_request(
    engine: Engine, request: GenerationRequest, plan: FramePlan, looks: Sequence[Look], said: Sequence[Cue] = ()
) -> GenerationRequest | None:
    """The same chat with the film shown in these spans only, and what is said in those found by it; None when that
    does not fit."""
    price = plan.tokens_per_patch + LABEL_TOKENS  # so the second reading costs no more than the first, at no less size
    moments = min(MOST_MOMENTS, engine.model.most_moments or MOST_MOMENTS, len(plan.patches))
    whole = sum(look.end - look.start for look in looks)
    closer: list[Part] = []
    try:
        for look in looks:
            share = max(1, int(moments * (look.end - look.start) / whole))
            budget = len(plan.patches) * price * share // moments
            view = closer_plan(plan.clip.between(look.start, look.end), engine, budget, share)
            lines = within(said, look.start, look.end) if "said" in look.ways else ()
            view, after = woven(view, lines)
            closer += [view, after] if after else [view]
    except UserError:
        return None
    second = replace(
        request,
        messages=tuple(_with(message, plan, closer) for message in request.messages),
        conversation=f"{request.conversation}/closer" if request.conversation else "",
    )
    return second if engine.plan(second).fits else None


def closer_plan(clip: Clip, engine: Engine, budget: int, moments: int) -> FramePlan:
    """At most `moments` moments of a span, none finer than `FINEST`. Raises TooLong or MediaError."""
    paired = 2 * moments / clip.duration  # two frames, half a second apart or less, share a moment
    fps = min(FINEST, paired) if paired >= 2 else moments / clip.duration
    return plan_frames(
        clip,
        read_times(clip),
        budget=budget,
        label_tokens=LABEL_TOKENS,
        frame_pixels=engine.model.frame_pixels,
        fps=fps,
        most_moments=moments,
    )


def _with(message: Message, plan: FramePlan, closer: Sequence[Part]) -> Message:
    """What is said in the film stays, in front."""
    said = "".join(plan.captions)
    views = [said, *closer] if said else list(closer)
    parts = [new for part in message.parts for new in (views if part is plan or part == plan else (part,))]
    return replace(message, parts=tuple(parts))


def _together(first: Timings, second: Timings) -> Timings:
    """Whoever waits for the first word waits for the whole first reading."""
    return Timings(first.queued + second.queued, first.prefill + first.decode + second.prefill, second.decode)
