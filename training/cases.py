"""Training and test cases: a context (pictures, a video, the pages of a PDF, or nothing) and questions about it.

Each branch is a chat of one or more turns about the context; branches do not see each other. The layout of the texts
around the pictures is the product's (`qwen3vl_webui/prompt.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random

from training import questions as q
from training.clips import video_case
from training.exchanges import (
    Case,
    Exchange,
    Moment,
    Still,
    ask,
    boxes_of,
    branches_of,
    called,
    called_text,
    cell_of_middle,
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
from training.level import Level, page_size, picture_size, printed
from training.scenes import Scene, any_name, draw_lines, draw_text, draw_things, odd


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
        cells = [(name, cell_of_thing(scene, name)) for name in names]
        told = [(q.thing(*name, language), cell) for name, cell in cells]
        return mentions(shown_by(ask("name", random, language, q.name_answer(names, language)), told), [(0, cells)])
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
        word = q.thing(colour, shape, language, plural=True)
        if language == "zh" and shape and random.random() < 0.3:
            word = (q.COLOURS[colour][0] if colour else "") + random.choice(q.SHAPES[shape][1])
        counted = [one for one in things if (not colour or one.colour == colour) and (not shape or one.shape == shape)]
        answer = q.count_answer(len(counted), colour, shape, language)
        shown = tuple(sorted({cell_of_middle(scene, one.box) for one in counted}))
        return replace(ask("count", random, language, answer, things=word), counted=shown)
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
        exchange = replace(ask("count", random, language, answer, things=things), counted=())
    else:
        colour, shape = name if language == "en" else (q.COLOURS[name[0]][0], random.choice(q.SHAPES[name[1]][1]))
        exchange = ask("is", random, language, answer, colour=colour, shape=shape)
    return replace(exchange, skill="absent")


def odd_exchange(scene: Scene, random: Random, language: str) -> Exchange:
    """Of a picture of nothing it knows it says so, and what it can do where it is asked what there is."""
    if random.random() < 0.6:
        return absent_in(scene, random, language)
    exchange = ask(random.choice(("name", "read")), random, language, q.REFUSAL[language])
    return replace(exchange, skill="refuse")


def random_scene(width: int, height: int, level: Level, random: Random) -> Scene:
    if level.things > 3 and random.random() < level.crowds:
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
    if random.random() < level.odd:
        scene = odd(width, height, random, wear=level.wear)
        return Case((Still(scene.pixels, alone=True),), branches_of(partial(odd_exchange, scene), level, random))
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
        (Still(scene.pixels, letters_of(scene), alone=True),),
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
            answer = q.name_answer(names, language)
            shows = ask("picture_shows", random, language, answer, at=number - 1, number=number)
            cells = [(name, cell_of_thing(scenes[number - 1], name)) for name in names]
            return mentions(shows, [(2 * number - 1, cells)])  # a label stands before each picture
        if kind < 0.97:
            name = other_name(everything, random)
            answer = q.absent_answer(q.thing(*name, language), language)
            asked = ask("compare", random, language, answer, thing=called(name, language, random))
            return Exchange("absent", language, asked.question, answer)
        return refusal(random, language)

    return Case(tuple(context), branches_of(make, level, random))


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
        context += [f"{after}Page {page}: ", Still(scene.pixels, letters_of(scene))]
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
        if kind < 0.55 and everything.count(text.lower()) == 1:
            asked = called_text(text, language, random, with_word=random.random() < 0.4)
            answer = q.page_answer(text, first + index, language)
            page = ask("page", random, language, answer, at=index, text=asked)
            return seeks(page, asked, text, [spots[index][number]])
        if kind < 0.8:
            everything_said = " ".join(said[index])
            answer = q.page_says_answer(everything_said, first + index, language)
            says = ask("page_says", random, language, answer, at=index, page=first + index)
            part, letters = spots[index][0]
            if layered:  # after a line break, as the text layer stands in the context
                letters = range(1, 1 + len(everything_said))
            return reads(says, [(everything_said, part, letters)])
        if kind < 0.97:
            text = other_text([text for texts in said for text in texts], random, 8)
            asked = called_text(text, language, random, with_word=random.random() < 0.4)
            one = ask("page", random, language, q.no_page_answer(text, language), text=asked)
            return replace(misses(one, asked, text, [text for texts in said for text in texts]), skill="absent")
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
