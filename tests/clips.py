"""Makers of small pictures, PDFs and videos with known content, for tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pymupdf
from av.stream import Disposition
from PIL import Image

# Videos. Picture n of a bars clip shows n as 16 bars, so that a test proves the picture, not the clock.

CLOCK = Fraction(1, 90_000)


def film(
    path: Path,
    seconds: Iterable[float],
    picture: Callable[[int, float], np.ndarray],
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (320, 180),
    pixels: str = "yuv420p",
    fps: int = 30,
    clock: Fraction = CLOCK,
    sound: str | None = None,
    late: float = 0.0,
    aspect: Fraction | None = None,
    cover: bool = False,
    container_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """A video whose picture n appears at `seconds[n] + late`, drawn by `picture(n, seconds)` as rgb24 or I420.

    `sound` names an audio codec for a tone from 0 to the end, `aspect` is the shape of a pixel, `cover` puts a still
    picture beside the film; `options` go to the video encoder.
    """
    times = list(seconds)
    with _own_priority(), av.open(str(path), "w", options=container_options or {}) as container:
        video = container.add_stream(codec, rate=fps, options=options)
        video.width, video.height, video.pix_fmt = *size, pixels
        video.codec_context.time_base = clock
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
        still = _cover_stream(container) if cover else None
        audio = container.add_stream(sound, rate=48_000) if sound else None
        if still is not None:
            _draw_cover(container, still)
        if audio is not None:
            _tone(container, audio, times[-1] + late + 1 / fps)
        for number, time in enumerate(times):
            drawn = picture(number, time)
            form = "rgb24" if drawn.ndim == 3 else "yuv420p"
            frame = av.VideoFrame.from_ndarray(drawn, format=form)
            if pixels != form:
                frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = round((time + late) / clock), clock
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


@contextmanager
def _own_priority() -> Iterator[None]:
    """What runs inside leaves this thread's priority as it was: SVT-AV1 lifts its caller to real time where it may."""
    if not hasattr(os, "sched_getscheduler"):  # not on Linux
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def _tone(container: Any, audio: Any, seconds: float) -> None:
    resampler = av.AudioResampler(format=audio.format, layout=audio.layout, rate=48_000)
    for block in range(int(seconds * 48_000) // 1024):
        wave = np.sin(np.arange(block * 1024, block * 1024 + 1024) * 2 * np.pi * 440 / 48_000) * 8000
        frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48_000, block * 1024
        for small in resampler.resample(frame):
            container.mux(audio.encode(small))
    container.mux(audio.encode(None))


def _cover_stream(container: Any) -> Any:
    still = container.add_stream("mjpeg", rate=1)
    still.width, still.height, still.pix_fmt = 64, 64, "yuvj420p"
    still.disposition = Disposition.attached_pic
    return still


def _draw_cover(container: Any, still: Any) -> None:
    frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
    frame.pts = 0
    container.mux([*still.encode(frame), *still.encode(None)])


def sound_clip(path: Path, seconds: float = 1.0, codec: str = "aac", cover: bool = False) -> Path:
    """A file with a tone and no film, and where asked a cover picture."""
    with av.open(str(path), "w") as container:
        still = _cover_stream(container) if cover else None
        audio = container.add_stream(codec, rate=48_000)
        if still is not None:
            _draw_cover(container, still)
        _tone(container, audio, seconds)
    return path


def colour_at(seconds: float) -> tuple[int, int, int]:
    """The colour a colour clip shows in that second."""
    return 3 * int(seconds) % 256, 7 * int(seconds) % 256, 120


def colour_clip(path: Path, seconds: float, fps: int = 10, size: tuple[int, int] = (320, 180), **settings: Any) -> Path:
    """A clip in one solid colour a second: `colour_at(t)`."""

    def picture(number: int, time: float) -> np.ndarray:
        return np.full((size[1], size[0], 3), colour_at(time + 1e-6), np.uint8)

    return film(path, (n / fps for n in range(round(seconds * fps))), picture, size=size, fps=fps, **settings)


def bars(number: int) -> np.ndarray:
    """The I420 picture, 320 x 180, that shows `number` as 16 bars, the lowest bit on the left."""
    drawn = np.full((270, 320), 128, np.uint8)
    drawn[:180] = np.repeat([235 if number >> bit & 1 else 16 for bit in range(16)], 20)
    return drawn


def bars_clip(path: Path, seconds: Iterable[float], **settings: Any) -> Path:
    """A clip of 320 x 180 whose n-th picture shows n as 16 bars."""
    return film(path, seconds, lambda number, _: bars(number), **settings)


def read_bars(pixels: np.ndarray) -> int:
    """The number a picture of a bars clip shows, at any size, upright: landscape, or turned left to portrait."""
    if pixels.shape[0] > pixels.shape[1]:
        pixels = np.rot90(pixels, -1)
    middle = pixels[pixels.shape[0] // 2].astype(float)
    grey = middle.mean(axis=-1) if middle.ndim == 2 else middle
    centres = [round((bit + 0.5) * len(grey) / 16) for bit in range(16)]
    return sum(int(grey[centre] > 125) << bit for bit, centre in enumerate(centres))


def copied(
    source: Path,
    target: Path,
    *,
    shift: float = 0.0,
    sound_shift: float = 0.0,
    rotation: int | None = None,
    **options: str,
) -> Path:
    """The packets of `source` in another file, all `shift` seconds later (sound more), with a display rotation."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as write:
        streams = {stream.index: write.add_stream_from_template(stream) for stream in read.streams}
        if rotation is not None:
            streams[read.streams.video[0].index].set_display_rotation(rotation)
        for packet in read.demux():
            if not packet.size:
                continue
            later = shift + sound_shift if packet.stream.type == "audio" else shift
            ticks = round(Fraction(later).limit_denominator(1000) / packet.time_base)
            packet.pts = packet.pts if packet.pts is None else packet.pts + ticks
            packet.dts = packet.dts if packet.dts is None else packet.dts + ticks
            packet.stream = streams[packet.stream.index]
            write.mux(packet)
    return target


def with_extras(source: Path, target: Path) -> Path:
    """The film of `source` in an MKV beside subtitles and an attached font."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        film = write.add_stream_from_template(read.streams.video[0])
        subtitles = write.add_stream("ass")
        write.add_attachment("font.ttf", "application/x-truetype-font", bytes(100))
        write.start_encoding()
        line = av.Packet(b"0,0,Default,,0,0,0,,Hello")
        line.pts = line.dts = 0
        line.duration, line.stream = 1000, subtitles
        write.mux(line)
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = film
                write.mux(packet)
    return target


def truncated(source: Path, target: Path, part: float = 0.5) -> Path:
    raw = source.read_bytes()
    target.write_bytes(raw[: int(len(raw) * part)])
    return target


def damaged(source: Path, target: Path, keyframe: int = 1, part: float = 0.3) -> Path:
    """`source` with the middle of its n-th keyframe overwritten."""
    raw = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size and packet.is_keyframe]
        position, size = packets[keyframe].pos, packets[keyframe].size
    middle, length = position + size // 2, max(8, int(size * part))
    raw[middle : middle + length] = bytes((37 * n + 91) % 256 for n in range(length))
    target.write_bytes(raw)
    return target


# Pictures and PDFs. The quarters of a picture are red, green, blue and yellow, so that a turn or a flip shows.

RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 180, 30), (30, 30, 220), (230, 220, 40)


def quarters(width: int = 64, height: int = 48) -> np.ndarray:
    """(height, width, 3) uint8: red top left, green top right, blue bottom left, yellow bottom right."""
    pixels = np.empty((height, width, 3), np.uint8)
    middle, centre = height // 2, width // 2
    pixels[:middle, :centre], pixels[:middle, centre:] = RED, GREEN
    pixels[middle:, :centre], pixels[middle:, centre:] = BLUE, YELLOW
    return pixels


def picture(path: Path, form: str, width: int = 64, height: int = 48, **options: Any) -> Path:
    """The quarters as a file of Pillow's format `form`; `options` go to Pillow's save."""
    Image.fromarray(quarters(width, height)).save(path, form, **options)
    return path


def png(path: Path, width: int = 64, height: int = 48) -> Path:
    return picture(path, "PNG", width, height)


def pdf(path: Path, texts: Sequence[str], *, size: tuple[float, float] = (595.0, 842.0), **options: Any) -> Path:
    """A PDF with one page per text, its first line at (72, 72) points in 16 points; `options` go to PyMuPDF's save."""
    document = pymupdf.open()
    for text in texts:
        font = "helv" if text.isascii() else "china-s"
        page = document.new_page(width=size[0], height=size[1])
        page.insert_text((72, 72), text.split("\n"), fontsize=16, fontname=font)
    document.save(str(path), **options)
    document.close()
    return path


# Subtitles

ASS_HEADER = (
    "[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize, PrimaryColour, "
    "SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, "
    "BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding\n"
    "Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0\n\n"
    "[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)

Line = tuple[float, float, str]


def with_subtitles(
    source: Path,
    target: Path,
    tracks: Sequence[tuple[str, str, Sequence[Line]]],
    chapters: Sequence[tuple[float, float, str]] = (),
) -> Path:
    """The film of `source` beside text tracks (codec, language, lines) and chapters."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        film_stream = write.add_stream_from_template(read.streams.video[0])
        streams: list[Any] = []
        for codec, language, _ in tracks:
            stream = write.add_stream(codec)
            stream.metadata["language"] = language
            stream.codec_context.subtitle_header = ASS_HEADER.encode()  # type: ignore[attr-defined]
            streams.append(stream)
        thousandth = Fraction(1, 1000)
        write.set_chapters(
            [
                {
                    "id": number,
                    "start": round(start * 1000),
                    "end": round(end * 1000),
                    "time_base": thousandth,
                    "metadata": {"title": title},
                }
                for number, (start, end, title) in enumerate(chapters, 1)
            ]
        )
        write.start_encoding()
        for stream, (codec, _, lines) in zip(streams, tracks, strict=True):
            for start, end, text in lines:
                raw = text.encode()
                if codec == "mov_text":
                    raw = len(raw).to_bytes(2, "big") + raw
                elif codec == "ass":
                    raw = b"0,0,Default,,0,0,0,," + raw
                packet = av.Packet(raw)
                packet.time_base = thousandth
                packet.pts = packet.dts = round(start * 1000)
                packet.duration, packet.stream = round((end - start) * 1000), stream
                write.mux(packet)
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = film_stream
                write.mux(packet)
    return target


def vobsub(width: int = 64, height: int = 16) -> bytes:
    """One subtitle of a DVD: a box of one colour, on screen for a second, at (8, 8)."""
    row = b"\x00\x01"  # colour 1 to the end of the line
    half = row * (height // 2)
    control = 4 + 2 * len(half)
    right, bottom = 8 + width - 1, 8 + height - 1
    place = (8 << 36 | right << 24 | 8 << 12 | bottom).to_bytes(6, "big")
    after = control + 4 + 1 + 3 + 3 + 7 + 5 + 1
    show = b"\x01" + b"\x03\x32\x10" + b"\x04\xff\xff" + b"\x05" + place
    show += b"\x06" + (4).to_bytes(2, "big") + (4 + len(half)).to_bytes(2, "big") + b"\xff"
    hide = (90).to_bytes(2, "big") + after.to_bytes(2, "big") + b"\x02\xff"
    body = half + half + bytes(2) + after.to_bytes(2, "big") + show + hide
    return (4 + len(body)).to_bytes(2, "big") + control.to_bytes(2, "big") + body


def with_picture_subtitles(
    source: Path, target: Path, kind: str = "VobSub", language: str = "eng", lines: Sequence[Line] = ()
) -> Path:
    """The film of `source` in an MKV beside subtitles that are pictures, VobSub, DVB or PGS, and `lines` of text."""
    codec = {"VobSub": "dvdsub", "DVB": "dvbsub", "PGS": "ass"}[kind]
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        film_stream = write.add_stream_from_template(read.streams.video[0])
        stream: Any = write.add_stream(codec)
        stream.metadata["language"] = language
        text: Any = write.add_stream("subrip") if lines else None
        for each in (stream if kind == "PGS" else None, text):
            if each is not None:
                each.codec_context.subtitle_header = ASS_HEADER.encode()
        write.start_encoding()
        shown = [(stream, second, second + 1.0, vobsub()) for second in (1.0, 3.0)]
        for to, start, end, raw in [*shown, *((text, start, end, words.encode()) for start, end, words in lines)]:
            packet = av.Packet(raw)
            packet.time_base, packet.stream = Fraction(1, 1000), to
            packet.pts = packet.dts = round(start * 1000)
            packet.duration = round((end - start) * 1000)
            write.mux(packet)
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = film_stream
                write.mux(packet)
    if kind == "PGS":  # nothing here encodes them
        target.write_bytes(target.read_bytes().replace(b"S_TEXT/ASS", b"S_HDMV/PGS"))
    return target


def srt(lines: Sequence[Line]) -> str:
    def clock(seconds: float) -> str:
        whole = round(seconds * 1000)
        return f"{whole // 3_600_000:02d}:{whole // 60_000 % 60:02d}:{whole // 1000 % 60:02d},{whole % 1000:03d}"

    return "\n".join(f"{n}\n{clock(start)} --> {clock(end)}\n{text}\n" for n, (start, end, text) in enumerate(lines, 1))
