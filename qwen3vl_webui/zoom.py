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

from qwen3vl_webui.engine.contract import (
    Engine,
    Event,
    FinishEvent,
    GenerationRequest,
    Message,
    Timings,
    TokenEvent,
)
from qwen3vl_webui.errors import UserError
from qwen3vl_webui.focus import without_pointer
from qwen3vl_webui.looks import NEAR_ENOUGH, Look, find_looks, wants_closer, widest_gap
from qwen3vl_webui.media.captions import within, woven
from qwen3vl_webui.media.sampling import LABEL_TOKENS, plan_frames
from qwen3vl_webui.media.values import Clip, Cue, FramePlan, Part
from qwen3vl_webui.media.video import read_times
from qwen3vl_webui.times import find_times

MOST_MOMENTS = 96  # of the second reading, all spans together
FINEST = 8.0  # frames a second

_PIECE = re.compile(r"[^\n;；。]+")  # of an answer: a line of a list, or a sentence; a full stop is also in 12.5


@dataclass(frozen=True)
class Closer:
    """The second reading begins: what is looked at again, in order."""

    looks: tuple[Look, ...]


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
    return without_pointer("".join(texts))[-400:]


def earlier_words(request: GenerationRequest, plan: FramePlan) -> list[str]:
    """What earlier answers tell of this film with a time: lines of lists, sentences. Nothing where the chat has several
    films, since a time does not say of which it is."""
    plans = [part for message in request.messages for part in message.parts if isinstance(part, FramePlan)]
    if {each.clip.digest for each in plans} != {plan.clip.digest}:
        return []
    answers = [part for message in request.messages if message.role == "assistant" for part in message.parts]
    pieces = [piece for text in answers if isinstance(text, str) for piece in _PIECE.findall(text)]
    return [piece for piece in pieces if find_times(piece)]


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
