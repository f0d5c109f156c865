"""Clips: things and words that come and go, asked when, what and in which order."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from qwen3vl_webui.focus import on_screen, pointer
from training import questions as q
from training.exchanges import (
    Case,
    Exchange,
    Moment,
    ask,
    branches_of,
    called,
    called_text,
    cell_of_thing,
    cells_of_letters,
    letters_of,
    mentions,
    misses,
    other_name,
    other_text,
    reads,
    refusal,
    seeks,
    shown_by,
)
from training.level import Level, frame_size, printed
from training.scenes import any_name, draw_text, draw_things, empty, odd

MOST_TOLD = 8  # scenes in one answer
POINTED = 0.9  # how often a question has behind it what the product writes there
HALF = 0.5  # seconds for which a scene must be seen in a span to be part of it
PART_MOMENTS = (2, 32)  # of a clip that is all that is shown of a longer one, because the question names its span
PART_ASKED = (("span", 5.0), ("timeline", 3.0), ("all_times", 1.0), ("what_at", 1.0), ("when", 1.0))


def clock(seconds: float, language: str, random: Random, *, up_to: float | None = None) -> str:
    """A time as a person writes it, to the second; of a span `up_to` that one, both ends in one form."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    most = round(up_to or seconds) // 60
    forms = [f"{minutes:02d}:{rest:02d}", f"{minutes:02d}:{rest:02d}", f"{minutes}:{rest:02d}"]
    if language == "en":
        forms += [f"{whole} seconds", f"{whole} s", f"second {whole}", f"{seconds:.1f} seconds"]
        if most:
            forms.append(f"{minutes} minute{'s' * (minutes != 1)} {rest} seconds")
    else:
        forms += [f"第{whole}秒", f"第{whole}秒", f"{whole}秒", f"第{seconds:.1f}秒"]
        if most:
            forms += [f"{minutes}分{rest}秒"]
    if most >= 60:
        forms = [f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"] * 3 + forms[3:]
    return random.choice(forms)


@dataclass(frozen=True)
class Event:
    """What is on the screen from `seconds` (the first stamp that shows it) on; things, a text, or nothing."""

    seconds: float
    last: float
    things: tuple[tuple[str, str], ...] = ()
    text: str = ""
    cells: tuple[int, ...] = ()  # of the text's letters, or of the things
    is_odd: bool = False  # something that has no name

    @property
    def named(self) -> list[tuple[tuple[str, str], int]]:
        """Its things and their cells."""
        return list(zip(self.things, self.cells, strict=False))

    @property
    def keys(self) -> tuple[tuple[str, str] | str, ...]:
        return (self.text,) if self.text else self.things

    def told(self, language: str) -> str:
        if self.text:
            return q.quoted(self.text, language)
        names = [q.thing(*name, language) for name in self.things]
        return q.listed(names if language == "zh" else [q.a(name) for name in names], language)

    @property
    def is_empty(self) -> bool:
        return not self.things and not self.text


def stamps(count: int, most: float, random: Random) -> list[float]:
    """Rising times, to a tenth of a second, of clips up to `most` seconds long."""
    if most <= 60 and count <= 8 and random.random() < 0.5:  # one digit tells the moments apart
        return [float(second) for second in sorted(random.sample(range(10), count))]
    kind = random.random()
    if kind < 0.3:  # what the product's sampling gives short clips: two frames a second, two to a patch
        start = random.choice((0.25, 0.25, 0.0, random.uniform(0, max(0.0, most - count))))
        return [float(f"{start + i:.1f}") for i in range(count)]
    if kind < 0.7:
        step = random.choice((0.25, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0, 3.0, 4.0, 5.0, random.uniform(0.4, 15)))
        if most > 600 and random.random() < 0.4:
            step = random.uniform(5.0, most / count)
        step = min(step, most / count)
        start = random.choice(
            (0.0, 0.0, 0.5, random.uniform(0, step), random.uniform(0, max(0.0, most - step * count)))
        )
        return [round(start + i * step, 1) for i in range(count)]
    lengths = (10, 30, 60, 60, 120, 300, 600, *((1200, 2400, 3600, 7200) if most > 600 else ()))
    longest = min(most, max(count, random.choice(lengths)))
    times = sorted(random.uniform(0, longest) for _ in range(count))
    for i in range(1, count):
        times[i] = max(times[i], times[i - 1] + 0.3)
    return [round(time, 1) for time in times]


def video_case(level: Level, random: Random) -> Case:
    part = random.random() < level.parts
    count = random.randint(*(PART_MOMENTS if part else level.moments))
    width, height = frame_size(level, random)
    times = stamps(count, level.seconds, random)
    runs = random.random() < level.runs
    words = random.random() < level.words
    all_odd = random.random() < level.odd
    plain = random.random() < 0.6  # one background light for the whole clip, as in a recording
    events: list[Event] = []
    moments: list[Moment] = []
    which: list[int] = []  # event of each moment
    last: float | None = None  # where the last scene began that was not empty
    last_seen: dict[tuple[str, str] | str, float] = {}
    repeated: list[tuple[str, str] | str] = []
    i = 0
    while i < count:
        stay = 1
        if runs:
            stay = min(count - i, random.choice((1, 2, 2, 3, 4, 5, random.randint(1, 12))))
        previous = events[-1] if events else None
        kind = random.random()
        if all_odd or kind < level.odd:
            event = Event(times[i], times[i + stay - 1], is_odd=True)
            scene = odd(width, height, random, wear=level.wear)
        elif kind < 0.12 and not (previous and previous.is_empty):
            event = Event(times[i], times[i + stay - 1])
            scene = empty(width, height, random, wear=level.wear)
        elif words and kind < 0.6:
            text = printed(random, min(level.longest_text, 8 if width >= 96 else 4))
            shown = [one for one in repeated if isinstance(one, str)]
            if shown and random.random() < 0.25:
                text = random.choice(shown)
            if previous and previous.text == text:
                continue
            repeated.append(text)
            scene = draw_text(text, width, height, random, wear=level.wear, page=plain and random.random() < 0.5)
            event = Event(times[i], times[i + stay - 1], text=text, cells=cells_of_letters(scene))
        else:
            names = list(dict.fromkeys(any_name(random) for _ in range(2 if random.random() < level.pairs else 1)))
            again_things = [one for one in repeated if not isinstance(one, str)]
            if again_things and random.random() < 0.2:
                names = [random.choice(again_things)]
            if previous and set(previous.things) & set(names):
                continue
            scene = draw_things(names, width, height, random, wear=level.wear)
            names = [one.name for one in scene.things]
            if not names:
                continue
            repeated.extend(names)
            cells = tuple(cell_of_thing(scene, name) for name in names)
            event = Event(times[i], times[i + stay - 1], things=tuple(names), cells=cells)
        keys: Sequence[tuple[str, str] | str] = event.things or (event.text,) * len(event.cells)
        again = tuple((cell, last_seen.get(key)) for key, cell in zip(keys, event.cells, strict=True))
        for k in range(stay):
            pixels = scene.pixels
            if k == 0 and runs and moments and random.random() < level.fades:
                pixels = ((moments[-1].pixels.astype(np.uint16) + pixels) // 2).astype(np.uint8)
            letters = letters_of(scene) if pixels is scene.pixels else ()
            follows = last if k == 0 and not event.is_empty else None
            moments.append(Moment(times[i + k], pixels, letters, follows, again))
            again = tuple((cell, None) for cell, _ in again)  # it does not come again, it stays
            which.append(len(events))
        if not event.is_empty:
            last = event.seconds
        last_seen |= dict.fromkeys(event.keys, event.seconds)
        events.append(event)
        i += stay
    seen: dict[tuple[str, str] | str, list[Event]] = {}
    for event in events:
        for key in event.keys:
            seen.setdefault(key, []).append(event)

    def say(key: tuple[str, str] | str, language: str) -> tuple[str, str]:
        """How the question and the answer call it."""
        if isinstance(key, str):
            return called_text(key, language, random), q.quoted(key, language)
        return called(key, language, random), q.thing(*key, language)

    def tell(skill: str, language: str, first: int, last: int, **fields: object) -> Exchange | None:
        """What is shown from moment `first` to `last` in order, each item with its own evidence; None where that is
        nothing or too much.
        """
        inside = {which[first]: first}  # of each event its first moment there
        for index in range(first, last + 1):
            inside.setdefault(which[index], index)
        told = [(index, events[number]) for number, index in inside.items() if not events[number].is_empty]
        if not 1 <= len(told) <= MOST_TOLD:
            return None
        answer = q.moments_answer([(times[index], event.told(language)) for index, event in told], language)
        exchange = ask(skill, random, language, answer, -1, **fields)
        exchange = reads(exchange, [(event.text, index, event.cells) for index, event in told if event.text])
        exchange = mentions(exchange, [(index, event.named) for index, event in told if event.things])
        items = [item.rstrip('."。”') for item in answer.split("; " if language == "en" else "；")]
        return shown_by(exchange, [(item, index) for item, (index, _) in zip(items, told, strict=True)], items=True)

    def seek(exchange: Exchange, asked: str, key: tuple[str, str] | str, shown: Sequence[Event]) -> Exchange:
        if not isinstance(key, str):
            return exchange
        return seeks(exchange, asked, key, [(times.index(event.seconds), event.cells) for event in shown])

    def span(random: Random) -> tuple[int, int, float, float] | None:
        """(first and last moment in it, start, end): the scene on screen at the start is part of it, and none that is
        seen for less than half a second; in a clip that is itself a part, all of it.
        """
        if part:
            return 0, count - 1, float(math.floor(times[0])), float(math.ceil(times[-1]))
        first = random.randrange(count)
        last = min(count - 1, first + random.randint(0, 6))
        start = float(math.ceil(times[first]))
        changed = which[first + 1] != which[first] if first + 1 < count else False
        if start - times[first] > 0.9 or (changed and start > times[first + 1] - HALF):
            return None
        least = times[last] + (HALF if last and which[last] != which[last - 1] else 0.0)
        most = times[last + 1] - 0.1 if last + 1 < count else times[last] + 0.9
        end = float(math.floor(random.uniform(least, most))) if most > least else 0.0
        return (first, last, start, end) if max(least, start + HALF) <= end <= most else None

    def make(random: Random, language: str) -> Exchange:
        skills, weights = zip(*(PART_ASKED if part else level.asked_of_clips), strict=True)
        skill = random.choices(skills, weights)[0]
        if all_odd and random.random() < 0.8:
            skill = "absent"
        if skill == "when" and seen:
            key = random.choice(list(seen))
            if len(seen[key]) == 1 or random.random() < 0.3:
                asked, told = say(key, language)
                first = seen[key][0].seconds
                answer = q.when_answer(told, first, language)
                when = ask("when", random, language, answer, at=times.index(first), thing=asked)
                return seek(when, asked, key, seen[key][:1])
        if skill == "all_times" and seen:
            several = [key for key in seen if len(seen[key]) > 1]
            key = random.choice(several if several and random.random() < 0.7 else list(seen))
            if len(seen[key]) <= 5:
                asked, told = say(key, language)
                answer = q.all_times_answer(told, [event.seconds for event in seen[key]], language)
                found = [(q.stamp(event.seconds, language), times.index(event.seconds)) for event in seen[key]]
                every = seek(ask("all_times", random, language, answer, thing=asked), asked, key, seen[key])
                return shown_by(every, found, items=True)
        if skill == "absent":
            skill = random.choice(("when", "when", "all_times"))
            if words and random.random() < 0.4:
                printed_words = [key for key in seen if isinstance(key, str)]
                text = other_text(printed_words, random, level.longest_text)
                asked = called_text(text, language, random)
                one = ask(skill, random, language, q.never_answer(text, language), thing=asked)
                return replace(misses(one, asked, text, printed_words), skill="absent")
            name = other_name([key for key in seen if not isinstance(key, str)], random)
            answer = q.absent_answer(q.thing(*name, language), language)
            one = ask(skill, random, language, answer, thing=called(name, language, random))
            return replace(one, skill="absent")
        if skill == "span" and (asked_span := span(random)):
            first, last, start, end = asked_span
            form = random.randrange(1 << 30)
            begin, finish = (clock(second, language, Random(form), up_to=end) for second in (start, end))
            if told_all := tell("span", language, first, last, start=begin, end=finish):
                return told_all
        if skill == "timeline" and (told_all := tell("timeline", language, 0, count - 1)):
            return told_all
        known = [index for index in range(count) if not events[which[index]].is_odd]
        if skill == "refuse" or not known:
            return refusal(random, language)
        index = random.choice(known)
        if events[which[index]].is_empty and random.random() < 0.7:
            index = random.choice(known)
        time = clock(times[index], language, random)
        whole = round(times[index])  # a person's second must not be another scene's
        patches = [(second, second) for second in times]
        shown = on_screen(float(whole), patches)
        nearest = min(range(count), key=lambda number: abs(times[number] - whole))
        on_it = which[nearest] == which[max(0, bisect(times, whole) - 1)] == which[shown] == which[index]
        if not on_it or whole < times[0] or abs(times[shown] - whole) > HALF:
            time = q.stamp(times[index], language)
        elif f"{times[index]:.1f}" not in time:  # it is named by the whole second
            index = shown
        event = events[which[index]]
        told = event.told(language) if not event.is_empty else ("nothing" if language == "en" else "没有内容")
        answer = q.moments_answer([(times[index], told)], language)
        one = ask("what_at", random, language, answer, at=index, time=time)
        if random.random() < POINTED:
            one = replace(one, pointer=pointer(one.question, patches, times[-1] + 1))
        if event.things:
            return mentions(one, [(index, event.named)])
        return reads(one, [(event.text, index, event.cells)]) if event.text else one

    return Case(tuple(moments), branches_of(make, level, random))
