"""How hard cases are: the curriculum's knob, and the sizes and words drawn at a level."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass, replace
from random import Random

from training.words import PRINTED


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
    fades: float = 0.05  # how often the first of them is half the one before: no plan straddles a change but by a fade
    seconds: float = 600.0  # longest clip
    parts: float = 0.0  # how often a clip is what a question's span leaves of a longer one: all of it is asked for
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
    odd: float = 0.0  # how often a picture or a whole clip, or one scene of a clip, holds nothing that can be named
    things: int = 6  # most in one picture
    crowds: float = 0.3  # how often a picture shows up to so many of few kinds
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
