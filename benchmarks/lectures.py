"""Videos whose every change is known: slides with builds, fades, revisits, a moving corner and a cursor; films of cuts.

A `Script` says what is on screen when; `write` encodes it once and repeats its packets with later times, so that two
hours cost the encoding of one minute. Randomness comes from the seed alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CLOCK = Fraction(1, 90_000)
FADE = 0.5  # seconds
WORDS = [
    "model",
    "data",
    "layer",
    "token",
    "video",
    "frame",
    "index",
    "query",
    "value",
    "cache",
    "graph",
    "state",
    "noise",
    "scale",
    "batch",
    "train",
    "loss",
    "step",
]


@dataclass(frozen=True)
class State:
    """What is on screen in [start, end): `lines` of slide `slide` of visit `visit`; settled `FADE` later after a fade.

    `finished` is the last state of one visit of a slide.
    """

    start: float
    end: float
    kind: str  # cut | fade | build | brief | revisit
    slide: int
    visit: int
    lines: int
    finished: bool

    @property
    def settled(self) -> float:
        return self.start + (FADE + 0.1 if self.kind == "fade" else 0.04)


@dataclass(frozen=True)
class Script:
    states: tuple[State, ...]
    seconds: float
    seed: int
    film: bool = False

    def repeated(self, times: int) -> tuple[State, ...]:
        """The states of the packets repeated that many times."""
        return tuple(
            State(
                s.start + n * self.seconds,
                s.end + n * self.seconds,
                s.kind,
                s.slide,
                s.visit + 1000 * n,
                s.lines,
                s.finished,
            )
            for n in range(times)
            for s in self.states
        )


def lecture(seed: int, seconds: float) -> Script:
    """About five changes in a minute: 45 % of the slides are built line by line, some are brief, some come again."""
    random = np.random.default_rng(seed)
    rows: list[tuple[float, str, int, int, int]] = []  # start, kind, slide, visit, lines
    now, slide, visit = 0.0, 0, 0
    while now < seconds - 6:
        kind = str(random.choice(["cut", "fade", "brief", "revisit"], p=[0.5, 0.2, 0.12, 0.18]))
        kind = "cut" if visit == 0 or (kind == "revisit" and slide < 3) else kind
        if kind == "revisit":
            earlier = [number for number in range(slide - 1) if number != rows[-1][2]]
            rows.append((now, kind, int(random.choice(earlier)), visit, 9))
            now += random.uniform(3, 8)
        elif kind == "brief":
            rows.append((now, kind, slide, visit, 9))
            slide, now = slide + 1, now + random.uniform(1.0, 1.8)
        else:
            count = line_count(seed, slide)
            first = 1 if random.random() < 0.45 else 9
            rows.append((now, kind, slide, visit, first))
            for lines in range(first + 1, count + 1) if first == 1 else ():
                now += random.uniform(1.5, 7)
                rows.append((now, "build", slide, visit, lines))
            slide, now = slide + 1, now + random.uniform(4, 25)
        visit += 1
    return _script(rows, seconds, seed)


def shots(seed: int, seconds: float) -> Script:
    """A film: a moving picture per shot, hard cuts every 2 to 8 seconds."""
    random = np.random.default_rng(seed)
    rows, now = [], 0.0
    while now < seconds - 2:
        rows.append((now, "cut", len(rows), len(rows), 9))
        now += random.uniform(2, 8)
    script = _script(rows, seconds, seed)
    return Script(script.states, seconds, seed, film=True)


def _script(rows: list[tuple[float, str, int, int, int]], seconds: float, seed: int) -> Script:
    rows = [(round(start * 30) / 30, *rest) for start, *rest in rows if start < seconds - 1]
    ends = [row[0] for row in rows[1:]] + [seconds]
    visits = [row[3] for row in rows[1:]] + [-1]
    states = tuple(
        State(row[0], end, *row[1:], finished=row[3] != after)
        for row, end, after in zip(rows, ends, visits, strict=True)
    )
    return Script(states, seconds, seed)


def line_count(seed: int, slide: int) -> int:
    return int(np.random.default_rng((seed, slide, 1)).integers(3, 7))


@functools.lru_cache(maxsize=8)
def slide_picture(seed: int, slide: int, lines: int, size: tuple[int, int]) -> np.ndarray:
    """(height, width) uint8 luma: a title, lines of random words at 40 px of 1080, a code in a corner."""
    random = np.random.default_rng((seed, slide))
    width, height = size
    unit = height / 1080
    dark = random.random() < 0.2
    paper, ink = (30, 225) if dark else (int(random.integers(225, 250)), int(random.integers(10, 60)))
    picture = Image.new("L", size, paper)
    draw = ImageDraw.Draw(picture)

    def words(count: int) -> str:
        return " ".join(random.choice(WORDS, count))

    title, text = ImageFont.load_default(size=64 * unit), ImageFont.load_default(size=40 * unit)
    draw.text((120 * unit, 80 * unit), words(4).title(), fill=ink, font=title)
    for line in range(line_count(seed, slide)):
        content = words(int(random.integers(4, 9)))
        if line < lines:
            draw.text((160 * unit, (240 + 110 * line) * unit), "- " + content, fill=ink, font=text)
    draw.text((120 * unit, 1000 * unit), f"{random.integers(1000, 9999)}", fill=ink, font=text)
    return np.asarray(picture)


@functools.lru_cache(maxsize=2)
def shot_texture(seed: int, shot: int, size: tuple[int, int]) -> np.ndarray:
    """A smooth random landscape, larger than the picture, to pan over."""
    random = np.random.default_rng((seed, shot))
    width, height = size
    level = random.uniform(60, 190)
    grid = np.clip(random.normal(level, 45, (9, 14)), 16, 235).astype(np.uint8)
    return np.asarray(Image.fromarray(grid).resize((width * 3 // 2, height * 3 // 2), Image.Resampling.BICUBIC))


def pictures(script: Script, size: tuple[int, int], fps: int, noise: float) -> Iterator[np.ndarray]:
    """Every picture as I420. Slides have a speaker moving in a corner and a cursor; `noise` is in grey levels."""
    random = np.random.default_rng(script.seed + 1)
    width, height = size
    grain = np.clip(np.round(random.normal(0, noise, (8, height, width))), -20, 20).astype(np.int16)
    speaker_w, speaker_h = width // 6, height // 5
    speaker = np.clip(random.normal(120, 50, (12, 16)), 16, 235).astype(np.uint8)
    face = np.asarray(Image.fromarray(speaker).resize((speaker_w * 2, speaker_h * 2), Image.Resampling.BICUBIC))
    numbers = {state: number for number, state in enumerate(script.states)}
    states = iter(script.states)
    state, before = next(states), None
    for number in range(round(script.seconds * fps)):
        time = number / fps
        while time >= state.end - 1e-6 and numbers[state] + 1 < len(script.states):
            before, state = state, next(states)
        picture = _content(script, state, time, size)
        if state.kind == "fade" and before is not None and time < state.start + FADE:
            share = (time - state.start) / FADE
            picture = (share * picture + (1 - share) * _content(script, before, time, size)).astype(np.uint8)
        drawn = np.full((height * 3 // 2, width), 128, np.uint8)
        luma = drawn[:height]
        luma[:] = picture
        if not script.film:
            dx, dy = int(speaker_w / 3 * (1 + np.sin(time * 1.9))), int(speaker_h / 3 * (1 + np.sin(time * 2.7)))
            luma[height - speaker_h :, width - speaker_w :] = face[dy : dy + speaker_h, dx : dx + speaker_w]
            x, y = int(width * (0.4 + 0.3 * np.sin(time / 3))), int(height * (0.5 + 0.3 * np.sin(time / 2.3)))
            side = max(2, height // 60)
            luma[y : y + side, x : x + side // 2] = 20
        luma[:] = np.clip(luma + grain[int(random.integers(8))], 0, 255)
        yield drawn


def _content(script: Script, state: State, time: float, size: tuple[int, int]) -> np.ndarray:
    if not script.film:
        return slide_picture(script.seed, state.slide, state.lines, size)
    width, height = size
    texture = shot_texture(script.seed, state.slide, size)
    way = 1 - abs(1 - (time - state.start) / 8 % 2)
    dx = int(width / 2 * (way if state.slide % 2 else 1 - way))
    dy = int(height / 4 * (1 + np.sin(time + state.slide)))
    return texture[dy : dy + height, dx : dx + width]


def write(
    path: Path,
    script: Script,
    *,
    repeats: int = 1,
    size: tuple[int, int] = (1920, 1080),
    fps: int = 30,
    noise: float = 0.8,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    **options: str,
) -> Path:
    """Encodes the script once and writes its packets `repeats` times; `options` go to the encoder."""
    once = path if repeats == 1 else path.with_name("once_" + path.name)
    with av.open(str(once), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(pictures(script, size, fps, noise)):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if repeats > 1:
        repeat(once, path, script.seconds, repeats)
        once.unlink()
    return path


def repeat(once: Path, path: Path, seconds: float, times: int) -> None:
    """The packets of `once`, of that many seconds, again and again with later times."""
    with av.open(str(path), "w") as target:
        written = None
        for number in range(times):
            with av.open(str(once)) as source:
                read = source.streams.video[0]
                written = written or target.add_stream_from_template(read)
                shift = round(number * Fraction(seconds).limit_denominator(1000) / read.time_base)
                for packet in source.demux(read):
                    if packet.size:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = written
                        target.mux(packet)
