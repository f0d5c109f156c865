"""Pictures drawn from nothing: coloured shapes and printed text on all kinds of backgrounds, as arrays.

Everything is drawn at twice the size and reduced, so that edges look as they do in a resized photograph. A scene knows
what is in it; boxes are in 0..1000 of the picture.
"""

from __future__ import annotations

import colorsys
import functools
import io
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.questions import COLOURS, SHAPES

Rgb = tuple[int, int, int]

# Hue in degrees, its jitter, then least and most saturation and value.
PAINT = {
    "red": (0, 7, 0.75, 1.0, 0.65, 1.0),
    "orange": (29, 5, 0.85, 1.0, 0.9, 1.0),
    "yellow": (54, 5, 0.75, 1.0, 0.88, 1.0),
    "green": (125, 22, 0.55, 1.0, 0.4, 0.8),
    "blue": (222, 13, 0.65, 1.0, 0.55, 1.0),
    "purple": (281, 11, 0.5, 0.95, 0.4, 0.8),
    "black": (0, 180, 0.0, 0.3, 0.0, 0.12),
    "white": (0, 180, 0.0, 0.04, 0.94, 1.0),
}
WIDEST_LETTER = 0.17  # of the width
UNUSED_FONTS = ("Math", "Oblique", "Italic", "ExtraLight", "Narrow")
FONT_FOLDERS = ("/usr/share/fonts/truetype/dejavu", "/usr/share/fonts/truetype/liberation")


@dataclass(frozen=True)
class Thing:
    colour: str
    shape: str
    box: tuple[int, int, int, int]  # 0..1000

    @property
    def name(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    pixels: np.ndarray  # [height, width, 3] uint8
    things: tuple[Thing, ...] = ()
    text: str = ""
    letters: tuple[tuple[float, float], ...] = ()  # the centre of each character of the text, in pixels


def paint(colour: str, random: Random) -> Rgb:
    hue, jitter, least, most, dark, bright = PAINT[colour]
    turn = (hue + random.uniform(-jitter, jitter)) % 360 / 360
    red, green, blue = colorsys.hsv_to_rgb(turn, random.uniform(least, most), random.uniform(dark, bright))
    return round(red * 255), round(green * 255), round(blue * 255)


def contrast(one: Rgb, other: Rgb) -> float:
    """A rough distance in which hue weighs as much as light: 0 (same) to about 3."""
    difference = [abs(a - b) / 255 for a, b in zip(one, other, strict=True)]
    return sum(difference)


@functools.cache
def noise_pool() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((512, 512, 3)).astype(np.float32)


def background(random: Random, avoid: Sequence[Rgb]) -> tuple[Rgb, Rgb]:
    """Two ends of a gradient, often equal, both clear of the colours to avoid."""

    def one() -> Rgb:
        best: tuple[float, Rgb] = (-1.0, (255, 255, 255))
        for _ in range(8):
            kind = random.random()
            if kind < 0.45:  # paper
                light = random.uniform(0.8, 1)
                tint = random.uniform(0, 0.1)
            elif kind < 0.6:  # night
                light, tint = random.uniform(0, 0.22), random.uniform(0, 0.4)
            else:
                light, tint = random.uniform(0.3, 0.95), random.uniform(0, 0.4)
            values = colorsys.hsv_to_rgb(random.random(), tint, light)
            rgb = (round(values[0] * 255), round(values[1] * 255), round(values[2] * 255))
            distance = min((contrast(rgb, other) for other in avoid), default=3.0)
            if distance > 0.55:
                return rgb
            best = max(best, (distance, rgb))
        return best[1]

    first = one()
    return first, one() if random.random() < 0.25 else first


def canvas(width: int, height: int, ends: tuple[Rgb, Rgb], random: Random) -> Image.Image:
    if ends[0] == ends[1]:
        return Image.new("RGB", (width, height), ends[0])
    ramp = np.linspace(0, 1, 8, dtype=np.float32)
    mix = ramp[:, None] if random.random() < 0.5 else ramp[None, :]
    if random.random() < 0.5:
        mix = 1 - mix
    mix = np.broadcast_to(mix, (8, 8))[..., None]
    small = np.asarray(ends[0], np.float32) * (1 - mix) + np.asarray(ends[1], np.float32) * mix
    return Image.fromarray(small.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)


def outline(shape: str, x: float, y: float, radius: float, turn: float) -> list[tuple[float, float]]:
    """The polygon of a shape around (x, y); `turn` in radians."""
    if shape == "circle":
        points = [(math.cos(a), math.sin(a)) for a in (i * math.pi / 18 for i in range(36))]
    elif shape == "square":
        points = [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    elif shape == "triangle":
        points = [(0, -1), (0.95, 0.8), (-0.95, 0.8)]
    elif shape == "star":
        points = []
        for i in range(10):
            reach, angle = (1.0, 0.42)[i % 2], -math.pi / 2 + i * math.pi / 5
            points.append((reach * math.cos(angle), reach * math.sin(angle)))
    elif shape == "heart":
        points = []
        for i in range(30):
            a = i * math.pi / 15
            points.append(
                (
                    math.sin(a) ** 3,
                    -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
                )
            )
    else:
        arm = 0.33
        points = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
        points += [(arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]
    cos, sin = math.cos(turn), math.sin(turn)
    return [(x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos)) for a, b in points]


def places(
    count: int, width: int, height: int, random: Random, least: float, most: float
) -> list[tuple[float, float, float]]:
    """Centres and radii, in pixels, of things that hardly overlap; may be fewer than asked when there is no room."""
    short = min(width, height)
    found: list[tuple[float, float, float]] = []
    for _ in range(count):
        for attempt in range(30):
            radius = short * random.uniform(least, max(least, most * (1 - attempt / 40)))
            x = random.uniform(radius, width - radius)
            y = random.uniform(radius, height - radius)
            if all(math.hypot(x - a, y - b) > (radius + r) * 1.02 for a, b, r in found):
                found.append((x, y, radius))
                break
    return found


def draw_things(
    names: Sequence[tuple[str, str]],
    width: int,
    height: int,
    random: Random,
    *,
    wear: float = 0.5,
) -> Scene:
    """Things of these names, sorted from left to right. `wear` 0..1: how often backgrounds and pixels are spoiled."""
    count = len(names)
    least = 0.2 if count <= 1 else 0.15 if count <= 3 else 0.11
    most = 0.46 if count <= 1 else 0.3 if count <= 3 else 0.2
    spots = places(count, width, height, random, least, most)
    colours = [paint(colour, random) for colour, _ in names[: len(spots)]]
    picture = canvas(width * 2, height * 2, background(random, colours), random)
    draw = ImageDraw.Draw(picture)
    things = []
    border = random.random() < 0.15
    for (colour, shape), rgb, (x, y, radius) in zip(names, colours, spots, strict=False):
        turn = random.uniform(-0.25, 0.25)
        points = outline(shape, x, y, radius, turn)
        draw.polygon([(a * 2, b * 2) for a, b in points], fill=rgb)
        if border:
            edge = tuple(round(v * 0.6) for v in rgb)
            draw.line([(a * 2, b * 2) for a, b in (*points, points[0])], fill=edge, width=2)
        xs, ys = [a for a, _ in points], [b for _, b in points]
        box = (min(xs) / width, min(ys) / height, max(xs) / width, max(ys) / height)
        things.append(Thing(colour, shape, tuple(max(0, min(1000, round(v * 1000))) for v in box)))  # type: ignore[arg-type]
    things.sort(key=lambda one: one.box[0] + one.box[2])
    return Scene(spoil(reduce(picture, width, height), random, wear), tuple(things))


def reduce(picture: Image.Image, width: int, height: int) -> np.ndarray:
    return np.asarray(picture.reduce(2) if picture.size == (2 * width, 2 * height) else picture.resize((width, height)))


def spoil(pixels: np.ndarray, random: Random, wear: float) -> np.ndarray:
    """What cameras and encoders do: light, noise, blocks."""
    if random.random() < wear * 0.5:
        height, width, _ = pixels.shape
        rows, columns = ((np.arange(side) + random.randrange(512)) % 512 for side in (height, width))
        grain = noise_pool()[np.ix_(rows, columns)] * random.uniform(2, 14)
        pixels = np.clip(pixels * np.float32(random.uniform(0.85, 1.08)) + grain, 0, 255).astype(np.uint8)
    if random.random() < wear * 0.5:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=random.randint(30, 90))
        pixels = np.asarray(Image.open(buffer).convert("RGB"))
    return pixels


@functools.cache
def font_paths() -> tuple[str, ...]:
    """Upright Latin text fonts of the machine, or Pillow's own when there is none."""
    found = sorted(
        str(path)
        for folder in FONT_FOLDERS
        for path in Path(folder).glob("*.ttf")
        if not any(word in path.name for word in UNUSED_FONTS)
    )
    return tuple(found) or ("",)


@functools.lru_cache(maxsize=2048)
def font(path: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def letter_size(path: str, text: str, width: int, height: int, random: Random, page: bool = False) -> int:
    """Of a font, at twice the size: text across up to nearly all of the width, in letters of ordinary size."""
    wanted = 2 * width * min(random.uniform(0.5 if len(text) > 4 else 0.3, 0.92), WIDEST_LETTER * len(text))
    return max(8, min(round(40 * wanted / font(path, 40).getlength(text)), round(height * (0.5 if page else 0.9))))


def ink_and_ground(random: Random) -> tuple[Rgb, tuple[Rgb, Rgb]]:
    ink = paint(random.choice(list(COLOURS)), random)
    ends = background(random, [ink, ink])
    if contrast(ink, ends[0]) < 0.9 or contrast(ink, ends[1]) < 0.9:
        ink = (10, 10, 10) if sum(ends[0]) + sum(ends[1]) > 765 else (250, 250, 250)
    return ink, ends


def centres(face: Any, text: str, x: float, y: float) -> list[tuple[float, float]]:
    """Of the letters of a line drawn at (x, y) at twice the size."""
    _, top, _, bottom = face.getbbox(text)
    ends = [face.getlength(text[:end]) for end in range(len(text) + 1)]
    row = (y + (top + bottom) / 2) / 2
    return [((x + (a + b) / 2) / 2, row) for a, b in zip(ends, ends[1:], strict=False)]


def draw_text(text: str, width: int, height: int, random: Random, *, wear: float = 0.5, page: bool = False) -> Scene:
    """One line of text; `page`: dark on white."""
    path = random.choice(font_paths())
    face = font(path, letter_size(path, text, width, height, random, page))
    left, top, right, bottom = face.getbbox(text)
    ink, ends = ((random.randint(0, 60),) * 3, ((255, 255, 255), (255, 255, 255))) if page else ink_and_ground(random)
    picture = canvas(width * 2, height * 2, ends, random)
    x = random.uniform(0, max(0, 2 * width - (right - left))) - left
    y = random.uniform(0, max(0, 2 * height - (bottom - top))) * (0.5 if page and random.random() < 0.7 else 1) - top
    ImageDraw.Draw(picture).text((x, y), text, font=face, fill=ink)
    letters = tuple(centres(face, text, x, y))
    return Scene(spoil(reduce(picture, width, height), random, wear), text=text, letters=letters)


def draw_lines(texts: Sequence[str], width: int, height: int, random: Random, *, wear: float = 0.5) -> Scene:
    """As many of the texts as fit below each other, each in a font and size of its own."""
    ink, ends = ink_and_ground(random)
    picture = canvas(width * 2, height * 2, ends, random)
    draw = ImageDraw.Draw(picture)
    shown: list[str] = []
    letters: list[tuple[float, float]] = []
    down = random.uniform(0, 24)
    for text in texts:
        path = random.choice(font_paths())
        face = font(path, letter_size(path, text, width, height, random))
        left, top, right, bottom = face.getbbox(text)
        if down + bottom - top > 2 * height:
            break
        x = random.uniform(0, max(0, 2 * width - (right - left))) - left
        draw.text((x, down - top), text, font=face, fill=ink)
        letters += [*([(-1.0, -1.0)] if shown else []), *centres(face, text, x, down - top)]  # first a line break's
        shown.append(text)
        down += (bottom - top) * random.uniform(1.05, 1.5) + 4
    return Scene(spoil(reduce(picture, width, height), random, wear), text="\n".join(shown), letters=tuple(letters))


def empty(width: int, height: int, random: Random, *, wear: float = 0.5) -> Scene:
    picture = canvas(width * 2, height * 2, background(random, []), random)
    return Scene(spoil(reduce(picture, width, height), random, wear))


def odd(width: int, height: int, random: Random, *, wear: float = 0.5) -> Scene:
    """What holds nothing that can be named, as most pictures people have: small print, colours as of a photograph, the
    bars and lines of a chart.
    """
    kind = random.random()
    picture = canvas(width * 2, height * 2, background(random, []), random)
    draw = ImageDraw.Draw(picture)
    if kind < 0.4:
        face = font(random.choice(font_paths()), random.randint(11, 17))  # at twice the size
        ink = random.choice(((10, 10, 10), (250, 250, 250), paint(random.choice(list(COLOURS)), random)))
        columns = random.randint(1, 2)
        for down in range(random.randint(0, 60), 2 * height, random.randint(18, 34)):
            for column in range(columns):
                begin = (random.uniform(0, 0.1) + column) * 2 * width / columns
                letters = int(random.uniform(0.2, 0.9) * 2 * width / columns / 8)
                line = "".join(random.choice(string.ascii_lowercase + "     ") for _ in range(letters))
                draw.text((begin, down), line, font=face, fill=ink)
    elif kind < 0.75:
        generator = np.random.default_rng(random.getrandbits(32))
        mixed = np.full((2 * height, 2 * width, 3), random.uniform(60, 190), np.float32)
        for side, most in ((3, 60), (7, 40), (15, 25), (40, 15), (90, 10)):
            grain = generator.normal(0, 1, (side, side, 3)) * 0.6 + generator.normal(0, 1, (side, side, 1))
            layers = [Image.fromarray(grain[..., channel].astype(np.float32)) for channel in range(3)]
            wide = [np.asarray(one.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)) for one in layers]
            mixed += np.stack(wide, axis=-1) * random.uniform(2, most)
        picture = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
    else:
        for _ in range(random.randint(3, 14)):
            x, y = random.uniform(0, 2 * width), random.uniform(0, 2 * height)
            reach, thick = random.uniform(0.3, 2) * min(width, height), random.uniform(1, 14)
            box = (x, y, x + reach, y + thick) if random.random() < 0.5 else (x, y, x + thick, y + reach)
            draw.rectangle(box, fill=paint(random.choice(list(COLOURS)), random))
    return Scene(spoil(reduce(picture, width, height), random, wear))


def any_name(random: Random) -> tuple[str, str]:
    return random.choice(list(COLOURS)), random.choice(list(SHAPES))
