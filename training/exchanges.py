"""A case: a context and the exchanges about it, each with what shows its answer; and how questions are put."""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from training import questions as q
from training.level import Level, printed
from training.scenes import Scene, any_name

NOWHERE = -1


@dataclass(frozen=True)
class Glance:
    """A letter of a printed word in a question or an answer, and what shows it."""

    character: int  # its place in the question or answer
    order: int  # its place in the word
    part: int  # of the context: a picture, a moment, the text of a page; or NOWHERE
    spot: int  # the cell there, or the character of the text


@dataclass(frozen=True)
class Mention:
    """A thing in an answer, and what shows it."""

    first: int  # its characters in the answer, from `first`
    after: int
    part: int  # of the context
    cell: int
    last: bool  # nothing more is there beside it


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
    pointer: str = ""  # what the product writes behind a question that names a moment: its stamp
    counted: tuple[int, ...] | None = None  # cells of what is counted in the only picture
    things: tuple[Mention, ...] = ()
    items: bool = False  # the evidence is of items in the order of time, each with its stamp


Branch = tuple[Exchange, ...]
Letter = tuple[int, int, str]  # on a picture: its cell, its place in its word and itself


@dataclass(frozen=True)
class Still:
    """A picture or page in the prompt. `alone`: it is the only one, so that its cells are the places that answer."""

    pixels: np.ndarray
    letters: tuple[Letter, ...] = ()
    alone: bool = False
    boxes: tuple[tuple[int, tuple[int, int, int, int]], ...] = ()  # (cell, box) of each thing that has a cell alone


@dataclass(frozen=True)
class Moment:
    """One temporal patch of a video, the same frame twice."""

    seconds: float
    pixels: np.ndarray
    letters: tuple[Letter, ...] = ()
    follows: float | None = None  # where a scene begins: where the one before began; None elsewhere
    again: tuple[tuple[int, float | None], ...] = ()  # cells of things and letters: there, where they came before


@dataclass(frozen=True)
class Case:
    context: tuple[str | Still | Moment, ...]
    branches: tuple[Branch, ...]


def ask(skill: str, random: Random, language: str, answer: str, at: int = -1, **fields: object) -> Exchange:
    return Exchange(skill, language, random.choice(q.ASK[skill][language]).format(**fields), answer, at)


def shown_by(exchange: Exchange, pieces: Sequence[tuple[str, int]], *, items: bool = False) -> Exchange:
    """The exchange with the evidence of its answer's pieces, which are named in the answer's order."""
    evidence, end = [], 0
    for piece, at in pieces:
        first = exchange.answer.lower().find(piece.lower(), end)
        if first < 0:
            continue
        end = first + len(piece)
        evidence.append((first, end, at))
    return replace(exchange, evidence=tuple(evidence), items=items)


def glances(begin: int, part: int, spots: Sequence[int]) -> tuple[Glance, ...]:
    """Of a word that stands at `begin`; `spots`: of each of its letters that is shown."""
    return tuple(Glance(begin + order, order, part, spot) for order, spot in enumerate(spots))


def reads(exchange: Exchange, words: Sequence[tuple[str, int, Sequence[int]]]) -> Exchange:
    """The exchange with what shows the words of its answer, in their order: (word, part, spots of its letters)."""
    read: tuple[Glance, ...] = ()
    end = 0
    for word, part, spots in words:
        begin = exchange.answer.index(q.quoted(word, exchange.language), end) + 1
        end = begin + len(word)
        read += tuple(one for one in glances(begin, part, spots) if not exchange.answer[one.character].isspace())
    return replace(exchange, read=read)


def mentions(exchange: Exchange, scenes: Sequence[tuple[int, Sequence[tuple[tuple[str, str], int]]]]) -> Exchange:
    """The exchange with what shows the things of its answer, in their order: (part, names and cells) of each scene."""
    found: list[Mention] = []
    end = 0
    for part, things in scenes:
        for number, (name, cell) in enumerate(things, 1):
            noun = q.thing(*name, exchange.language)
            told = noun if exchange.language == "zh" else q.a(noun)
            begin = exchange.answer.lower().index(told, end)
            end = begin + len(told)
            found.append(Mention(begin, end, part, cell, number == len(things)))
    return replace(exchange, things=tuple(found))


def seeks(exchange: Exchange, called: str, word: str, shown: Sequence[tuple[int, Sequence[int]]]) -> Exchange:
    """The exchange with what shows the word it asks for, `called` so: (part, spots of its letters) of each place."""
    begin = exchange.question.rindex(called) + called.index(word)
    named = exchange.answer.index(q.quoted(word, exchange.language)) + 1
    asked, told = (tuple(g for part, spots in shown for g in glances(at, part, spots)) for at in (begin, named))
    return replace(exchange, asked=asked, told=told)


def misses(exchange: Exchange, called: str, word: str, shown: Sequence[str]) -> Exchange:
    """The exchange about a word that is nowhere: its letters from where no other word begins like it, at least one."""
    alike = max((len(os.path.commonprefix((word.lower(), other.lower()))) for other in shown), default=0)
    first = min(alike, len(word) - 1)
    sought = seeks(exchange, called, word, [(NOWHERE, [0] * len(word))])
    return replace(sought, asked=sought.asked[first:], told=sought.told[first:])


def cells_of_letters(scene: Scene) -> tuple[int, ...]:
    """Of each character of its text, line breaks too."""
    return tuple(cell_of(scene, x, y) for x, y in scene.letters)


def letters_of(scene: Scene) -> tuple[Letter, ...]:
    """Those that are inside the picture."""
    height, width, _ = scene.pixels.shape
    order, letters = -1, []
    for character, (x, y) in zip(scene.text, scene.letters, strict=True):
        order = -1 if character == "\n" else order + 1
        if order >= 0 and 0 <= x < width and 0 <= y < height:
            letters.append((cell_of(scene, x, y), order, character))
    return tuple(letters)


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
