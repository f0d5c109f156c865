"""Training and test cases: a context (pictures, a video, the pages of a PDF, or nothing) and questions about it.

Each branch is a chat of one or more turns about the context; branches do not see each other. The layout of the texts
around the pictures is the product's (`qwen3vl_webui/prompt.py`).
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from training import questions as q
from training.scenes import Scene, any_name, draw_lines, draw_text, draw_things, empty
from training.words import PRINTED


@dataclass(frozen=True)
class Glance:
    """A letter of a printed word in a question or an answer, and what shows it."""

    character: int  # its place in the question or answer
    order: int  # its place in the word
    part: int  # of the context: a picture, a moment, the text of a page
    spot: int  # the cell there, or the character of the text


@dataclass(frozen=True)
class Exchange:
    skill: str
    language: str
    question: str
    answer: str
    at: int = -1  # which of the context's pictures, moments or cells answers it, from 0; -1: none alone
    evidence: tuple[tuple[int, int, int], ...] = ()  # (first, after, at) of characters of the answer with their own
    read: tuple[Glance, ...] = ()  # letters of the answer that are read off pictures
    asked: tuple[Glance, ...] = ()  # letters of the question that are to be found
    told: tuple[Glance, ...] = ()  # the same letters in the answer


Branch = tuple[Exchange, ...]


@dataclass(frozen=True)
class Still:
    """A picture or page in the prompt. `alone`: it is the only one, so that its cells are the places that answer."""

    pixels: np.ndarray
    alone: bool = False
    boxes: tuple[tuple[int, tuple[int, int, int, int]], ...] = ()  # (cell, box) of each thing that has a cell alone


@dataclass(frozen=True)
class Moment:
    """One temporal patch of a video, the same frame twice."""

    seconds: float
    pixels: np.ndarray


@dataclass(frozen=True)
class Case:
    context: tuple[str | Still | Moment, ...]
    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Level:
    """How hard the cases are; the curriculum's knob. Shares of kinds need not sum to 1."""

    kinds: tuple[tuple[str, float], ...]
    picture_pixels: tuple[int, int] = (4096, 9216)
    frame_pixels: tuple[int, int] = (4096, 6144)
    moments: tuple[int, int] = (1, 4)
    pages: tuple[int, int] = (1, 4)
    longest_text: int = 4
    branches: int = 6
    wear: float = 0.5
    runs: float = 0.3  # how often things stay for several moments
    seconds: float = 600.0  # longest clip
    pairs: float = 0.2  # how often a frame shows two things
    words: float = 0.35  # how often a clip shows words besides things
    lines: float = 0.0  # how often a picture of text has several lines
    turns: float = 0.15  # how often a branch goes on for a second turn
    asked: tuple[tuple[str, float], ...] = (  # about pictures of shapes
        ("name", 3),
        ("is", 1),
        ("colour", 1),
        ("shape", 1),
        ("count", 3),
        ("where", 2),
        ("absent", 1),
        ("refuse", 0.3),
    )
    asked_of_clips: tuple[tuple[str, float], ...] = (
        ("when", 6),
        ("what_at", 5),
        ("all_times", 1),
        ("span", 1),
        ("timeline", 0.6),
        ("absent", 1.2),
        ("refuse", 0.3),
    )
    things: int = 6  # most in one picture
    picture_sizes: tuple[tuple[int, int], ...] = ()  # (width, height) to choose from; empty: any within the pixels
    frame_sizes: tuple[tuple[int, int], ...] = ()
    page_sizes: tuple[tuple[int, int], ...] = ()


def fit(aspect: float, pixels: int) -> tuple[int, int]:
    """(width, height), multiples of 32, near the aspect and not above the pixels."""
    width = max(64, math.floor(math.sqrt(pixels * aspect) / 32 + 0.25) * 32)
    height = max(64, math.floor(math.sqrt(pixels / aspect) / 32 + 0.25) * 32)
    while width * height > pixels and max(width, height) > 64:
        if width >= height:
            width -= 32
        else:
            height -= 32
    return width, height


def with_few_sizes(level: Level, random: Random) -> Level:
    """The same level with a handful of sizes, so that a batch goes through the vision tower in few calls."""
    return replace(
        level,
        picture_sizes=tuple(picture_size(level, random) for _ in range(3)),
        frame_sizes=tuple(frame_size(level, random) for _ in range(2)),
        page_sizes=(page_size(level, random),),
    )


def page_size(level: Level, random: Random) -> tuple[int, int]:
    if level.page_sizes:
        return random.choice(level.page_sizes)
    least, most = level.picture_pixels
    pixels = most if random.random() < 0.5 else random.randint(least, most)
    return fit(random.choice((0.707, 0.707, 0.773, 1.333, 1.778)), max(4096, pixels))


def picture_size(level: Level, random: Random) -> tuple[int, int]:
    if level.picture_sizes:
        return random.choice(level.picture_sizes)
    aspect = random.choice((1, 1, 1, 4 / 3, 3 / 2, 16 / 9, 3 / 4, 2 / 3))
    least, most = level.picture_pixels
    pixels = most if random.random() < 0.4 else round(math.exp(random.uniform(math.log(least), math.log(most))))
    return fit(aspect, max(pixels, 4096))


def frame_size(level: Level, random: Random) -> tuple[int, int]:
    if level.frame_sizes:
        return random.choice(level.frame_sizes)
    aspect = random.choice((1, 4 / 3, 16 / 9, 16 / 9, 9 / 16))
    least, most = level.frame_pixels
    return fit(aspect, random.choice((least, most, most, random.randint(least, most))))


def printed(random: Random, longest: int) -> str:
    kind = random.random()
    if kind < 0.4:
        return "".join(random.choice(string.digits) for _ in range(random.randint(min(2, longest), longest)))
    if kind < 0.75:
        word = random.choice(PRINTED)
        if len(word) > longest:
            word = word[:longest]
        return random.choice((word, word.upper(), word.upper(), word.capitalize()))
    letters = string.ascii_uppercase if random.random() < 0.7 else string.ascii_lowercase
    if random.random() < 0.3:  # as in any code people have to read, none that look alike
        letters = "".join(sorted(set(letters + string.digits) - set("0O1Ilo")))
    return "".join(random.choice(letters) for _ in range(random.randint(1, longest)))


def ask(skill: str, random: Random, language: str, answer: str, at: int = -1, **fields: object) -> Exchange:
    return Exchange(skill, language, random.choice(q.ASK[skill][language]).format(**fields), answer, at)


def shown_by(exchange: Exchange, pieces: Sequence[tuple[str, int]]) -> Exchange:
    """The exchange with the evidence of its answer's pieces, which are named in the answer's order."""
    evidence, end = [], 0
    for piece, at in pieces:
        first = exchange.answer.lower().find(piece.lower(), end)
        if first < 0:
            continue
        end = first + len(piece)
        evidence.append((first, end, at))
    return replace(exchange, evidence=tuple(evidence))


def glances(text: str, begin: int, part: int, spots: Sequence[int]) -> tuple[Glance, ...]:
    """Of a word that stands at `begin`; `spots`: of each of its letters."""
    return tuple(Glance(begin + order, order, part, spot) for order, spot in zip(range(len(text)), spots, strict=False))


def reads(exchange: Exchange, words: Sequence[tuple[str, int, Sequence[int]]]) -> Exchange:
    """The exchange with what shows the words of its answer, in their order: (word, part, spots of its letters)."""
    read: tuple[Glance, ...] = ()
    end = 0
    for word, part, spots in words:
        begin = exchange.answer.index(q.quoted(word, exchange.language), end) + 1
        end = begin + len(word)
        read += glances(word, begin, part, spots)
    return replace(exchange, read=read)


def seeks(exchange: Exchange, called: str, word: str, shown: Sequence[tuple[int, Sequence[int]]]) -> Exchange:
    """The exchange with what shows the word it asks for, `called` so: (part, spots of its letters) of each place."""
    begin = exchange.question.rindex(called) + called.index(word)
    named = exchange.answer.index(q.quoted(word, exchange.language)) + 1
    asked, told = (tuple(g for part, spots in shown for g in glances(word, at, part, spots)) for at in (begin, named))
    return replace(exchange, asked=asked, told=told)


def cells_of_letters(scene: Scene) -> tuple[int, ...]:
    """Of each character of its text, line breaks too."""
    return tuple(cell_of(scene, x, y) for x, y in scene.letters)


def cell_of(scene: Scene, x: float, y: float) -> int:
    """The cell of 32 px that holds a point, given in pixels."""
    height, width, _ = scene.pixels.shape
    rows, columns = height // 32, width // 32
    return max(0, min(rows - 1, int(y) // 32)) * columns + max(0, min(columns - 1, int(x) // 32))


def cell_of_middle(scene: Scene, box: tuple[int, int, int, int]) -> int:
    height, width, _ = scene.pixels.shape
    return cell_of(scene, (box[0] + box[2]) / 2000 * width, (box[1] + box[3]) / 2000 * height)


def cell_of_thing(scene: Scene, name: tuple[str, str]) -> int:
    return cell_of_middle(scene, next(one.box for one in scene.things if one.name == name))


def boxes_of(scene: Scene) -> tuple[tuple[int, tuple[int, int, int, int]], ...]:
    """(cell, box) of the things whose middle is in a cell of their own."""
    cells = [cell_of_middle(scene, one.box) for one in scene.things]
    return tuple((cell, one.box) for cell, one in zip(cells, scene.things, strict=True) if cells.count(cell) == 1)


def called(name: tuple[str, str], language: str, random: Random) -> str:
    """A thing as a person calls it: mostly as the answers do."""
    colour, shape = name
    if language == "en":
        return f"{colour} {shape}"
    if random.random() < 0.7:
        return q.thing(colour, shape, language)
    return q.COLOURS[colour][0] + random.choice(("", "的")) + random.choice(q.SHAPES[shape][1])


def called_text(text: str, language: str, random: Random, *, with_word: bool = True) -> str:
    quote = random.choice(('"{}"', "“{}”", "{}", "'{}'")) if language == "en" else random.choice(("“{}”", "{}", '"{}"'))
    if not with_word:
        return quote.format(text)
    number = text.isdigit()
    if language == "en":
        return random.choice(("number " if number else "word ", "text ", "")) + quote.format(text)
    return random.choice(("数字" if number else "单词", "文字", "")) + quote.format(text)


def other_name(taken: Sequence[tuple[str, str]], random: Random) -> tuple[str, str]:
    """A thing that is not there, often nearly one that is."""
    while True:
        name = any_name(random)
        if taken and random.random() < 0.6:
            colour, shape = random.choice(list(taken))
            name = (colour, name[1]) if random.random() < 0.5 else (name[0], shape)
        if name not in taken:
            return name


def other_text(taken: Sequence[str], random: Random, longest: int) -> str:
    while True:
        text = printed(random, longest)
        if taken and random.random() < 0.3:
            base = random.choice(list(taken))
            spot = random.randrange(len(base))
            pool = string.digits if base[spot].isdigit() else string.ascii_uppercase
            text = base[:spot] + random.choice(pool) + base[spot + 1 :]
        if text.lower() not in {one.lower() for one in taken}:
            return text


def refusal(random: Random, language: str) -> Exchange:
    return Exchange("refuse", language, random.choice(q.REFUSED[language]), q.REFUSAL[language])


def reading(scene: Scene, random: Random, language: str) -> Exchange:
    """What is written, line by line; of each letter the cell that shows it."""
    lines = scene.text.split("\n")
    exchange = ask("read", random, language, q.read_answer(lines, language))
    cells = cells_of_letters(scene)
    letter = 0
    words = []
    for line in lines:
        words.append((line, 0, cells[letter : letter + len(line)]))
        letter += len(line) + 1  # and the line break
    exchange = reads(exchange, words)
    evidence = tuple((one.character, one.character + 1, one.spot) for one in exchange.read)
    return replace(exchange, skill="read" if len(lines) == 1 else "read_lines", evidence=evidence)


def picture_exchange(scene: Scene, level: Level, random: Random, language: str) -> Exchange:
    """One question about one picture of things or of a word."""
    if scene.text:
        if random.random() < 0.9:
            return reading(scene, random, language)
        return refusal(random, language) if random.random() < 0.3 else absent_in(scene, random, language)
    things = scene.things
    names = [one.name for one in things]
    distinct = len(set(names)) == len(names)
    skills, weights = zip(*level.asked, strict=True)
    skill = random.choices(skills, weights)[0]
    if skill == "name" and distinct and 1 <= len(names) <= 3:
        told = [(q.thing(*name, language), cell_of_thing(scene, name)) for name in names]
        return shown_by(ask("name", random, language, q.name_answer(names, language)), told)
    if skill == "colour":
        shapes = [shape for _, shape in names]
        single = [name for name in names if shapes.count(name[1]) == 1]
        if single:
            colour, shape = random.choice(single)
            word = shape if language == "en" else random.choice(q.SHAPES[shape][1])
            at = cell_of_thing(scene, (colour, shape))
            return ask("colour", random, language, q.colour_answer(colour, shape, language), at, shape=word)
    if skill == "shape":
        colours = [colour for colour, _ in names]
        single = [name for name in names if colours.count(name[0]) == 1]
        if single:
            name = random.choice(single)
            word = name[0] if language == "en" else q.COLOURS[name[0]][0]
            at = cell_of_thing(scene, name)
            return ask("shape", random, language, q.name_answer([name], language), at, colour=word)
    if skill == "is" and names:
        name = random.choice(names)
        fields = {"colour": name[0], "shape": name[1]}
        if language == "zh":
            fields = {"colour": q.COLOURS[name[0]][0], "shape": random.choice(q.SHAPES[name[1]][1])}
        return ask("is", random, language, q.is_answer(q.thing(*name, language), language), at=-1, **fields)
    if skill == "count" and names:
        colour, shape = random.choice(names)
        kind = random.random()
        if kind < 0.3:
            colour = ""
        elif kind < 0.4:
            shape = ""
        elif kind < 0.55:
            colour, shape = "", ""
        number = sum((not colour or a == colour) and (not shape or b == shape) for a, b in names)
        word = q.thing(colour, shape, language, plural=True)
        if language == "zh" and shape and random.random() < 0.3:
            word = (q.COLOURS[colour][0] if colour else "") + random.choice(q.SHAPES[shape][1])
        return ask("count", random, language, q.count_answer(number, colour, shape, language), things=word)
    if skill == "where":
        alone = [one for one in things if names.count(one.name) == 1]
        if alone:
            one = random.choice(alone)
            label = q.thing(*one.name, language)
            at = cell_of_thing(scene, one.name)
            return ask(
                "where", random, language, q.where_answer(one.box, label), at, thing=called(one.name, language, random)
            )
    if skill == "refuse":
        return refusal(random, language)
    return absent_in(scene, random, language)


def absent_in(scene: Scene, random: Random, language: str) -> Exchange:
    name = other_name([one.name for one in scene.things], random)
    what = called(name, language, random)
    answer = q.absent_answer(q.thing(*name, language), language)
    skill = random.choice(("where", "count", "is"))
    if skill == "where":
        exchange = ask("where", random, language, answer, thing=what)
    elif skill == "count":
        things = what if language == "zh" else q.thing(*name, language, plural=True)
        exchange = ask("count", random, language, answer, things=things)
    else:
        colour, shape = name if language == "en" else (q.COLOURS[name[0]][0], random.choice(q.SHAPES[name[1]][1]))
        exchange = ask("is", random, language, answer, colour=colour, shape=shape)
    return Exchange("absent", language, exchange.question, exchange.answer)


def language_of(random: Random) -> str:
    return "en" if random.random() < 0.5 else "zh"


def branches_of(make, level: Level, random: Random) -> tuple[Branch, ...]:  # type: ignore[no-untyped-def]
    """Chats about one context: `make(random, language)` gives one exchange."""
    branches = []
    for _ in range(level.branches):
        language = language_of(random)
        turns = [make(random, language)]
        while len(turns) < 3 and random.random() < level.turns:
            turns.append(make(random, language))
        branches.append(tuple(turns))
    return tuple(branches)


def random_scene(width: int, height: int, level: Level, random: Random) -> Scene:
    if level.things > 3 and random.random() < 0.3:
        count = random.randint(2, level.things)
        pool = [any_name(random) for _ in range(random.randint(1, 3))]
        names = [random.choice(pool) for _ in range(count)]
    else:
        count = min(level.things, random.choices((1, 2, 3), (4, 3, 3))[0])
        names = []
        while len(names) < count:
            name = any_name(random)
            if name not in names:
                names.append(name)
    return draw_things(names, width, height, random, wear=level.wear)


def picture_case(level: Level, random: Random) -> Case:
    width, height = picture_size(level, random)
    scene = random_scene(width, height, level, random)
    branches = branches_of(lambda r, language: picture_exchange(scene, level, r, language), level, random)
    return Case((Still(scene.pixels, alone=True, boxes=boxes_of(scene)),), branches)


def text_case(level: Level, random: Random) -> Case:
    width, height = picture_size(level, random)
    longest = min(level.longest_text, 8)
    if random.random() < level.lines:
        texts = [printed(random, longest) for _ in range(random.randint(2, 6))]
        scene = draw_lines(texts, width, height, random, wear=level.wear)
    else:
        scene = draw_text(printed(random, longest), width, height, random, wear=level.wear)
    few = Level(level.kinds, branches=2, turns=0.0)
    return Case(
        (Still(scene.pixels, alone=True),),
        branches_of(lambda r, language: picture_exchange(scene, level, r, language), few, random),
    )


def pictures_case(level: Level, random: Random) -> Case:
    """Several pictures, asked by number."""
    count = random.randint(2, 4)
    scenes = []
    for _ in range(count):
        width, height = picture_size(level, random)
        names = list(dict.fromkeys(any_name(random) for _ in range(random.choice((1, 1, 2)))))
        scenes.append(draw_things(names, width, height, random, wear=level.wear))
    context: list[str | Still | Moment] = []
    for number, scene in enumerate(scenes, 1):
        context += [f"Picture {number}: ", Still(scene.pixels)]
    everything = [one.name for scene in scenes for one in scene.things]

    def make(random: Random, language: str) -> Exchange:
        kind = random.random()
        number = random.randint(1, count)
        if kind < 0.6:
            single = [one.name for one in scenes[number - 1].things if everything.count(one.name) == 1]
            if single:
                name = random.choice(single)
                return ask(
                    "compare",
                    random,
                    language,
                    q.compare_answer(number, language),
                    at=number - 1,
                    thing=called(name, language, random),
                )
        if kind < 0.85:
            names = [one.name for one in scenes[number - 1].things]
            return ask("picture_shows", random, language, q.name_answer(names, language), at=number - 1, number=number)
        if kind < 0.97:
            name = other_name(everything, random)
            answer = q.absent_answer(q.thing(*name, language), language)
            asked = ask("compare", random, language, answer, thing=called(name, language, random))
            return Exchange("absent", language, asked.question, answer)
        return refusal(random, language)

    return Case(tuple(context), branches_of(make, level, random))


def clock(seconds: float, language: str, random: Random) -> str:
    """A time as a person writes it, to the second."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    forms = [f"{minutes:02d}:{rest:02d}", f"{minutes:02d}:{rest:02d}", f"{minutes}:{rest:02d}"]
    if language == "en":
        forms += [f"{whole} seconds", f"{whole} s", f"second {whole}", f"{seconds:.1f} seconds"]
        if minutes:
            forms.append(f"{minutes} minutes {rest} seconds" if minutes > 1 else f"{minutes} minute {rest} seconds")
    else:
        forms += [f"第{whole}秒", f"第{whole}秒", f"{whole}秒", f"第{seconds:.1f}秒"]
        if minutes:
            forms += [f"{minutes}分{rest}秒"]
    if minutes >= 60:
        forms = [f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"] * 3 + forms[3:]
    return random.choice(forms)


@dataclass(frozen=True)
class Event:
    """What is on the screen from `seconds` (the first stamp that shows it) on; things, a text, or nothing."""

    seconds: float
    last: float
    things: tuple[tuple[str, str], ...] = ()
    text: str = ""
    cells: tuple[int, ...] = ()  # of the text's letters

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
    count = random.randint(*level.moments)
    width, height = frame_size(level, random)
    times = stamps(count, level.seconds, random)
    runs = random.random() < level.runs
    words = random.random() < level.words
    plain = random.random() < 0.6  # one background light for the whole clip, as in a recording
    events: list[Event] = []
    moments: list[Moment] = []
    which: list[int] = []  # event of each moment
    repeated: list[tuple[str, str] | str] = []
    i = 0
    while i < count:
        stay = 1
        if runs:
            stay = min(count - i, random.choice((1, 2, 2, 3, 4, 5, random.randint(1, 12))))
        previous = events[-1] if events else None
        kind = random.random()
        if kind < 0.12 and not (previous and previous.is_empty):
            event = Event(times[i], times[i + stay - 1])
            scene = empty(width, height, random, wear=level.wear)
        elif words and kind < 0.6:
            text = printed(random, min(level.longest_text, 8 if width >= 96 else 4))
            again = [one for one in repeated if isinstance(one, str)]
            if again and random.random() < 0.25:
                text = random.choice(again)
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
            event = Event(times[i], times[i + stay - 1], things=tuple(names))
        for k in range(stay):
            pixels = scene.pixels
            if k == 0 and runs and moments and random.random() < 0.5:  # the cut falls between the patch's two frames
                pixels = ((moments[-1].pixels.astype(np.uint16) + pixels) // 2).astype(np.uint8)
            moments.append(Moment(times[i + k], pixels))
            which.append(len(events))
        events.append(event)
        i += stay
    seen: dict[tuple[str, str] | str, list[Event]] = {}
    for event in events:
        for key in (event.text,) if event.text else event.things:
            seen.setdefault(key, []).append(event)

    def say(key: tuple[str, str] | str, language: str) -> tuple[str, str]:
        """How the question and the answer call it."""
        if isinstance(key, str):
            return called_text(key, language, random), q.quoted(key, language)
        return called(key, language, random), q.thing(*key, language)

    def follow(exchange: Exchange, inside: Sequence[Event]) -> Exchange:
        """An answer that tells moments in order: each item has its own evidence."""
        separator = "; " if exchange.language == "en" else "；"
        items = exchange.answer.split(separator)
        exchange = reads(exchange, [(e.text, times.index(e.seconds), e.cells) for e in inside if e.text])
        return shown_by(exchange, [(item, times.index(e.seconds)) for item, e in zip(items, inside, strict=False)])

    def seek(exchange: Exchange, asked: str, key: tuple[str, str] | str, shown: Sequence[Event]) -> Exchange:
        if not isinstance(key, str):
            return exchange
        return seeks(exchange, asked, key, [(times.index(event.seconds), event.cells) for event in shown])

    def make(random: Random, language: str) -> Exchange:
        skills, weights = zip(*level.asked_of_clips, strict=True)
        skill = random.choices(skills, weights)[0]
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
                return shown_by(every, found)
        if skill == "absent":
            if words and random.random() < 0.3:
                text = other_text([key for key in seen if isinstance(key, str)], random, level.longest_text)
                asked, told = called_text(text, language, random), q.quoted(text, language)
            else:
                name = other_name([key for key in seen if not isinstance(key, str)], random)
                asked, told = called(name, language, random), q.thing(*name, language)
            answer = q.absent_answer(told, language)
            one = ask(random.choice(("when", "when", "all_times")), random, language, answer, thing=asked)
            return Exchange("absent", language, one.question, answer)
        if skill == "span" and count >= 2:
            first = random.randrange(count)
            last = min(count - 1, first + random.randint(0, 6))
            start = times[first] - random.uniform(0, (times[first] - times[first - 1]) * 0.8 if first else times[first])
            after = (times[last + 1] - times[last]) * 0.8 if last + 1 < count else 5.0
            start, end = math.ceil(start), math.floor(times[last] + random.uniform(0, after))
            inside = [event for event in events if not event.is_empty and start <= event.last and event.seconds <= end]
            if end > start and 1 <= len(inside) <= 5 and all(start <= event.seconds for event in inside):
                form = random.randrange(1 << 30)
                fields = {name: clock(v, language, Random(form)) for name, v in (("start", start), ("end", end))}
                told_all = [(event.seconds, event.told(language)) for event in inside]
                return follow(ask("span", random, language, q.moments_answer(told_all, language), **fields), inside)
        if skill == "timeline":
            inside = [event for event in events if not event.is_empty]
            told_all = [(event.seconds, event.told(language)) for event in inside]
            if 1 <= len(told_all) <= 8:
                return follow(ask("timeline", random, language, q.moments_answer(told_all, language)), inside)
        if skill == "refuse":
            return refusal(random, language)
        index = random.randrange(count)
        event = events[which[index]]
        if event.is_empty and random.random() < 0.7:
            index = random.randrange(count)
            event = events[which[index]]
        told = event.told(language) if not event.is_empty else ("nothing" if language == "en" else "没有内容")
        answer = q.moments_answer([(times[index], told)], language)
        time = clock(times[index], language, random)
        one = ask("what_at", random, language, answer, at=index, time=time)
        return reads(one, [(event.text, index, event.cells)]) if event.text else one

    return Case(tuple(moments), branches_of(make, level, random))


def document_case(level: Level, random: Random) -> Case:
    """The pages of a PDF, each a picture and mostly its text layer."""
    count = random.randint(*level.pages)
    layered = random.random() < 0.8
    first = 1 if random.random() < 0.9 else random.randint(2, 20)
    context: list[str | Still | Moment] = []
    said: list[list[str]] = []
    spots: list[list[tuple[int, Sequence[int]]]] = []  # of each text: the part that shows it, and where its letters are
    width, height = page_size(level, random)
    after = ""
    for page in range(first, first + count):
        longest = 8 if layered else min(level.longest_text, 8)
        texts = [printed(random, longest) for _ in range(random.choice((1, 1, 2, 3)) if layered else 1)]
        said.append(texts)
        shown = texts[0] if len(texts[0]) <= level.longest_text else texts[0][: level.longest_text]
        scene = draw_text(shown, width, height, random, wear=0.1, page=True)
        context += [f"{after}Page {page}: ", Still(scene.pixels)]
        separator = random.choice(("\n", " ", "\n"))
        after = f"\n{separator.join(texts)}\n" if layered else "\n"
        if layered:
            begins = [1 + sum(len(text) + 1 for text in texts[:number]) for number in range(len(texts))]
            spots.append([(len(context), range(b, b + len(t))) for b, t in zip(begins, texts, strict=True)])
        else:
            spots.append([(len(context) - 1, cells_of_letters(scene))])
    context.append(after)
    everything = [text.lower() for texts in said for text in texts]

    def make(random: Random, language: str) -> Exchange:
        index = random.randrange(count)
        kind = random.random()
        number = random.randrange(len(said[index]))
        text = said[index][number]
        if kind < 0.65 and everything.count(text.lower()) == 1:
            asked = called_text(text, language, random, with_word=random.random() < 0.4)
            answer = q.page_answer(text, first + index, language)
            page = ask("page", random, language, answer, at=index, text=asked)
            return seeks(page, asked, text, [spots[index][number]])
        if kind < 0.8:
            answer = q.page_says_answer(" ".join(said[index]), first + index, language)
            says = ask("page_says", random, language, answer, at=index, page=first + index)
            return says if layered else reads(says, [(text, *spots[index][0])])
        if kind < 0.97:
            text = other_text([text for texts in said for text in texts], random, 8)
            answer = q.absent_answer(q.quoted(text, language), language)
            one = ask(
                "page",
                random,
                language,
                answer,
                text=called_text(text, language, random, with_word=random.random() < 0.4),
            )
            return Exchange("absent", language, one.question, answer)
        return refusal(random, language)

    return Case(tuple(context), branches_of(make, level, random))


def nothing_case(level: Level, random: Random) -> Case:
    return Case((), branches_of(refusal, level, random))


MAKERS = {
    "picture": picture_case,
    "text": text_case,
    "pictures": pictures_case,
    "video": video_case,
    "document": document_case,
    "nothing": nothing_case,
}


def make_case(kind: str, level: Level, random: Random) -> Case:
    return MAKERS[kind](level, random)
