"""How a whole film is made into one that is broken or hostile: each `Make` writes a file into a folder."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests import clips

STEADY = [n / 30 for n in range(75)]

Make = Callable[[Path], Path]


def boxes(raw: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin, end) of the boxes in raw[start:end]."""
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", raw[start : start + 8])
        if size < 8:
            return
        yield kind, start, start + size
        start += size


def with_box(raw: bytes, path: list[bytes], change: Callable[[bytes], bytes]) -> bytes:
    """`raw` with the first box at `path`, its body changed, and the sizes of all boxes around it."""
    kind = path[0]
    begin, end = next((begin, end) for found, begin, end in boxes(raw, 0, len(raw)) if found == kind)
    body = raw[begin + 8 : end]
    body = with_box(body, path[1:], change) if len(path) > 1 else change(body)
    return raw[:begin] + struct.pack(">I4s", len(body) + 8, kind) + body + raw[end:]


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, kind) + body


TABLES = [b"moov", b"trak", b"mdia", b"minf", b"stbl"]


def patched(path: list[bytes], change: Callable[[bytes], bytes]) -> Make:
    """A film of MP4 whose index comes last, so that no offset moves, with one box changed."""

    def make(folder: Path) -> Path:
        film = clips.bars_clip(folder / "whole.mp4", STEADY, g="20")
        film.write_bytes(with_box(film.read_bytes(), path, change))
        return film

    return make


def written(name: str, raw: bytes | str) -> Make:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass"))
        return path

    return make


def film(name: str, seconds: list[float] | None = None, **settings: Any) -> Make:
    return lambda folder: clips.bars_clip(folder / name, seconds or STEADY, **settings)


def changed(name: str, change: Callable[[bytes], bytes], **settings: Any) -> Make:
    def make(folder: Path) -> Path:
        path = clips.bars_clip(folder / name, STEADY, **settings)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def copied(name: str, source: str = "source.mp4", copy: dict[str, Any] | None = None, **settings: Any) -> Make:
    def make(folder: Path) -> Path:
        return clips.copied(clips.bars_clip(folder / source, STEADY, **settings), folder / name, **(copy or {}))

    return make


def many_streams(raw: bytes) -> bytes:
    def multiply(body: bytes) -> bytes:
        track = next(body[begin:end] for kind, begin, end in boxes(body, 0, len(body)) if kind == b"trak")
        return body + track * 10_000

    return with_box(raw, [b"moov"], multiply)


def compressed_index(folder: Path) -> Path:
    """An index of two gigabytes of zeros, compressed."""
    packer, packed = zlib.compressobj(9), bytearray()
    for _ in range(2048):
        packed += packer.compress(bytes(1 << 20))
    packed += packer.flush()
    moving = box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", 0x7FFFFFFF) + bytes(packed))
    return written("film.mp4", box(b"ftyp", b"isom" + bytes(4) + b"isom") + box(b"moov", box(b"cmov", moving)))(folder)


def nested(folder: Path) -> Path:
    body = b""
    for _ in range(20_000):
        body = box(b"moov", body)
    return written("film.mp4", box(b"ftyp", b"isom" + bytes(4) + b"isom") + body)(folder)


def two_sizes(folder: Path) -> Path:
    small = clips.bars_clip(folder / "small.ts", STEADY, g="20").read_bytes()
    large = clips.colour_clip(folder / "large.ts", 2, size=(640, 480)).read_bytes()
    return written("film.ts", small + large + small)(folder)


def joined(folder: Path) -> Path:
    raw = clips.bars_clip(folder / "part.ts", STEADY, g="20").read_bytes()
    return written("film.ts", raw + raw)(folder)


def fewer_bytes(name: str, part: float, **settings: Any) -> Make:
    def make(folder: Path) -> Path:
        return clips.truncated(clips.bars_clip(folder / f"whole_{name}", STEADY, **settings), folder / name, part)

    return make


def damaged(name: str, **settings: Any) -> Make:
    def make(folder: Path) -> Path:
        return clips.damaged(clips.bars_clip(folder / f"whole_{name}", STEADY, g="20", **settings), folder / name)

    return make


def no_whole_keyframe(folder: Path) -> Path:
    raw = bytearray(clips.bars_clip(folder / "film.mkv", STEADY, g="20").read_bytes())
    with av.open(str(folder / "film.mkv")) as container:
        for packet in container.demux(video=0):
            if packet.size and packet.is_keyframe and packet.pos is not None:
                raw[packet.pos + 24 : packet.pos + packet.size] = bytes(max(0, packet.size - 24))
    return written("film.mkv", bytes(raw))(folder)


def huge_pictures(folder: Path) -> Path:
    """JPEG pictures that say they are 65,500 px a side."""
    raw = clips.bars_clip(
        folder / "film.avi", STEADY[:5], codec="mjpeg", pixels="yuvj420p", clock=Fraction(1, 30)
    ).read_bytes()
    return written(
        "film.avi", re.sub(rb"(\xff\xc0..\x08)....", lambda found: found[1] + b"\xff\xdc" * 2, raw, flags=re.DOTALL)
    )(folder)


def large(width: int, height: int, name: str = "film.mp4") -> Make:
    def make(folder: Path) -> Path:
        return clips.colour_clip(folder / name, 2, fps=2, size=(width, height), preset="ultrafast")

    return make


def long(hours: float, count: int) -> Make:
    """As few pictures as `count` over that many hours."""

    def make(folder: Path) -> Path:
        seconds = [n * hours * 3600 / count for n in range(count)]
        return clips.film(
            folder / "film.mkv",
            seconds,
            lambda number, _: np.full((64, 64, 3), number % 250, np.uint8),
            size=(64, 64),
            fps=1,
            clock=Fraction(1, 1000),
            codec="mpeg4",
        )

    return make


def only_cover(folder: Path) -> Path:
    with av.open(str(folder / "film.mp4"), "w") as container:
        clips._draw_cover(container, clips._cover_stream(container))
    return folder / "film.mp4"


def with_words(words: list[tuple[float, float, str]], chapters: list[tuple[float, float, str]]) -> Make:
    def make(folder: Path) -> Path:
        source = clips.bars_clip(folder / "source.mp4", STEADY, g="20")
        return clips.with_subtitles(source, folder / "film.mkv", [("ass", "eng", words)], chapters)

    return make


def broken(name: str, seed: int, **settings: Any) -> Make:
    def make(folder: Path) -> Path:
        random = np.random.default_rng(seed)
        raw = bytearray(clips.bars_clip(folder / name, STEADY, **settings).read_bytes())
        for position in random.integers(0, len(raw) if seed % 2 else 1500, 1 + 5 * seed):
            raw[position] = random.integers(256)
        return written(name, bytes(raw))(folder)

    return make


def first_after(mark: bytes, at: int, value: bytes) -> Callable[[bytes], bytes]:
    """The bytes `at` after the first `mark` written over."""

    def change(raw: bytes) -> bytes:
        place = raw.index(mark) + at
        return raw[:place] + value + raw[place + len(value) :]

    return change


def cut_gif(path: Path) -> Path:
    from PIL import Image

    frames = [Image.new("RGB", (320, 180), (10 * n, 90, 120)) for n in range(20)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def no_pictures(folder: Path) -> Path:
    path = folder / "film.mp4"
    with av.open(str(path), "w", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        container.start_encoding()
    return path
