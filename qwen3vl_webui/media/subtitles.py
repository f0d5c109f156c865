"""What is said in a video, as text: subtitles inside the container and files beside it, and the container's chapters.

One clock with the pictures: seconds from the start of the video. The functions that take an open file run in the
sandbox; the others are called by the house.
"""

from __future__ import annotations

import contextlib
import html
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import av
import pysubs2

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import container as opening
from qwen3vl_webui.media import sandbox
from qwen3vl_webui.media.values import Clip, Cue, Subtitles

LARGEST_FILE = 10 << 20  # bytes; ten hours of dense speech are 2 MB
MOST_CUES = 50_000
LONGEST_CUE = 2_000  # characters
MOST_CHAPTERS = 500
MOST_TRACKS = 32
KEPT = 16  # files whose cues stay in memory
SCAN_LIMITS = sandbox.Limits(cpu_seconds=120, wall_seconds=600.0)
READ_FPS = 25.0  # of a MicroDVD file that counts frames and belongs to no video

TEXT_CODECS = frozenset({"mov_text", "subrip", "ass", "ssa", "webvtt", "text"})
PICTURE_CODECS = {"hdmv_pgs_subtitle": "PGS", "dvd_subtitle": "VobSub", "dvb_subtitle": "DVB", "xsub": "XSUB"}
FORMS = ("srt", "vtt", "ass", "microdvd")

_SIGNS = (  # how a subtitle file begins, its byte order mark gone
    ("vtt", re.compile(r"\s*WEBVTT(?:[ \t\n]|$)")),
    ("ass", re.compile(r"\s*(?:;[^\n]*\n\s*)*\[Script Info\]", re.IGNORECASE)),
    ("microdvd", re.compile(r"\s*\{\d+\}\{\d*\}")),
    ("srt", re.compile(r"\s*(?:\d+[ \t]*\n)?\s*\d+:\d\d:\d\d[,.]\d{1,3}[ \t]*-->")),
)
_TAGS = re.compile(r"\{[^{}]*\}|</?[a-zA-Z][^<>]{0,200}>")


@dataclass(frozen=True)
class Track:
    """The cues of one language, in order; `language` is the container's word for it, often `eng` or `zho`."""

    cues: tuple[Cue, ...]
    language: str = ""
    title: str = ""
    default: bool = False


@dataclass(frozen=True)
class Chapter:
    start: float
    end: float
    title: str


@dataclass(frozen=True)
class Inside:
    """What a container carries beside its pictures. `pictures` names subtitle tracks that are pictures, not text."""

    tracks: tuple[Track, ...] = ()
    chapters: tuple[Chapter, ...] = ()
    pictures: tuple[str, ...] = ()


_inside: OrderedDict[str, Inside] = OrderedDict()
_beside: OrderedDict[tuple[str, float], tuple[Cue, ...]] = OrderedDict()
_lock = Lock()


def read_inside(clip: Clip) -> Inside:
    """Subtitles and chapters in the file of `clip`; of its whole film, whatever its span. Read once, kept for some."""
    with _lock:
        if clip.digest in _inside:
            _inside.move_to_end(clip.digest)
            return _inside[clip.digest]
    found = _checked(sandbox.call(scan, clip.path, limits=SCAN_LIMITS))
    return _keep(_inside, clip.digest, found)


def read_beside(subtitles: Subtitles, fps: float | None = None) -> tuple[Cue, ...]:
    """The cues of a subtitle file; `fps` is the rate of its video, for files that count frames. Raises MediaError."""
    key = (subtitles.digest, fps or READ_FPS)
    with _lock:
        if key in _beside:
            _beside.move_to_end(key)
            return _beside[key]
    _, cues = sandbox.call(parse, subtitles.path, fps or READ_FPS)
    return _keep(_beside, key, checked_cues(cues))


def open_subtitles(path: Path, digest: str, form: str, cues: int) -> Subtitles:
    sandbox.check(form in FORMS and 0 < cues <= MOST_CUES)
    return Subtitles(path, digest, form, cues)


def as_vtt(cues: tuple[Cue, ...]) -> str:
    """For the player: WebVTT with nothing but times and plain text."""
    blocks = ["WEBVTT"]
    for cue in cues:
        text = "\n".join(line for line in html.escape(cue.text, quote=False).split("\n") if line.strip())
        blocks.append(f"{_clock(cue.start)} --> {_clock(cue.end)}\n{text}")
    return "\n\n".join(blocks) + "\n"


def _clock(seconds: float) -> str:
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any) -> Any:
    with _lock:
        kept[key] = value
        while len(kept) > KEPT:
            kept.popitem(last=False)
    return value


def _checked(found: Any) -> Inside:
    """The child is not trusted: raises MediaError where it sent something else."""
    sandbox.check(isinstance(found, dict))
    try:
        tracks = tuple(
            Track(checked_cues(cues), str(language)[:40], str(title)[:80], bool(default))
            for language, title, default, cues in found["tracks"][:MOST_TRACKS]
        )
        chapters = tuple(
            Chapter(float(start), float(end), str(title)[:200])
            for start, end, title in found["chapters"][:MOST_CHAPTERS]
            if 0 <= start <= end < 1e7
        )
        pictures = tuple(str(name)[:60] for name in found["pictures"][:MOST_TRACKS])
    except (KeyError, TypeError, ValueError) as error:
        raise MediaError(opening.DAMAGED) from error
    return Inside(tracks, chapters, pictures)


def checked_cues(cues: Any) -> tuple[Cue, ...]:
    sandbox.check(isinstance(cues, list) and len(cues) <= MOST_CUES)
    try:
        checked = [Cue(float(start), float(end), str(text)[:LONGEST_CUE]) for start, end, text in cues]
    except (TypeError, ValueError) as error:
        raise MediaError(opening.DAMAGED) from error
    return tuple(sorted((cue for cue in checked if 0 <= cue.start <= cue.end < 1e7), key=lambda cue: cue.start))


# In the sandbox.


def scan(file: BinaryIO) -> dict[str, Any]:
    """The text subtitles and chapters of a container; one pass over its packets where it has such subtitles."""
    with opening.open_container(file) as container:
        start = opening.start_of(container)
        chapters = []
        for chapter in container.chapters()[:MOST_CHAPTERS]:
            base = chapter["time_base"] or 0
            begin, end = float(chapter["start"] * base) - start, float(chapter["end"] * base) - start
            chapters.append([max(0.0, begin), max(0.0, end), plain(chapter["metadata"].get("title", ""))])
        texts, pictures = [], []
        for stream in container.streams.subtitles[:MOST_TRACKS]:
            name = stream.codec_context.codec.canonical_name if stream.codec_context else ""
            language = stream.metadata.get("language", "")
            if name in TEXT_CODECS:
                texts.append(stream)
            else:
                pictures.append(" ".join(filter(None, (PICTURE_CODECS.get(name, name or "?"), language))))
        cues: dict[int, list[Any]] = {stream.index: [] for stream in texts}
        if texts:
            with contextlib.suppress(av.FFmpegError, OSError):  # a file that breaks off has the cues it has
                for packet in container.demux(texts):
                    if packet.size and packet.pts is not None and len(cues[packet.stream.index]) < MOST_CUES:
                        cues[packet.stream.index] += decoded(packet, start)
        tracks = []
        for stream in texts:
            metadata, default = stream.metadata, bool(stream.disposition & av.stream.Disposition.default)
            if cues[stream.index]:
                language, title = metadata.get("language", ""), metadata.get("title", "")
                tracks.append([language, title, default, cues[stream.index]])
    return {"tracks": tracks, "chapters": chapters, "pictures": pictures}


def decoded(packet: Any, start: float) -> list[list[Any]]:
    try:
        lines = [line.ass.split(b",", 8)[-1] for line in packet.stream.decode(packet) if getattr(line, "ass", None)]
    except (av.FFmpegError, ValueError):
        return []
    text = plain("\n".join(line.decode("utf-8", "replace") for line in lines))
    begin = float(packet.pts * packet.time_base) - start
    end = begin + float((packet.duration or 0) * packet.time_base)
    return [[max(0.0, begin), max(0.0, end), text]] if text else []


def judge(file: BinaryIO, head: bytes, size: int) -> tuple[str, int] | None:
    """(form, number of cues) of a subtitle file; None where `head` does not begin like one. Raises MediaError."""
    if form_of(as_text(head)) is None:
        return None
    if size > LARGEST_FILE:
        raise MediaError(f"This subtitle file is larger than {LARGEST_FILE >> 20} MB; cut it into parts.")
    form, cues = parse(file, READ_FPS)
    return form, len(cues)


def parse(file: BinaryIO, fps: float) -> tuple[str, list[list[Any]]]:
    """(form, [[start, end, text]]) of a subtitle file in whatever encoding it is."""
    file.seek(0)
    text = as_text(file.read(LARGEST_FILE))
    form = form_of(text)
    try:
        lines = pysubs2.SSAFile.from_string(text, format_=form, fps=None if first_rate(text) else fps)
    except (pysubs2.Pysubs2Error, ValueError, OverflowError, IndexError) as error:
        raise MediaError("This subtitle file cannot be read; save it again as SRT or WebVTT in UTF-8.") from error
    cues: list[list[Any]] = []
    for line in lines:
        words = plain(line.text)
        if not line.is_comment and words and 0 <= line.start <= line.end:
            cues.append([line.start / 1000, line.end / 1000, words])
    if not cues:
        raise MediaError("This subtitle file has no lines in it; choose another one.")
    if len(cues) > MOST_CUES:
        raise MediaError(f"This subtitle file has more than {MOST_CUES:,} lines; cut it into parts.")
    return form or "srt", cues


def form_of(text: str) -> str | None:
    text = text[:4096].replace("\r\n", "\n").replace("\r", "\n")
    return next((form for form, sign in _SIGNS if sign.match(text)), None)


def first_rate(text: str) -> bool:
    """Whether a MicroDVD file says its own frame rate: `{1}{1}23.976`."""
    return bool(re.match(r"\s*\{[01]\}\{[01]\}\s*\d+(?:\.\d+)?\s*$", text[:200].partition("\n")[0]))


def plain(text: str) -> str:
    """The words of a cue: no styles, no markup, at most a few lines."""
    text = _TAGS.sub("", text.replace("\\N", "\n").replace("\\n", "\n").replace("\\h", " "))
    lines = (" ".join(line.split()) for line in html.unescape(text).split("\n"))
    return "\n".join(line for line in lines if line)[:LONGEST_CUE]


def as_text(raw: bytes) -> str:
    """Bytes in UTF-8, UTF-16, GB 18030 or Windows-1252 as text; an unfinished last character is left out."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw[: len(raw) // 2 * 2].decode("utf-16", "replace")
    if raw[:2000].count(0) * 3 > len(raw[:2000]):  # UTF-16 that lost its mark
        little = raw[1:2000:2].count(0) > raw[0:2000:2].count(0)
        return raw[: len(raw) // 2 * 2].decode("utf-16-le" if little else "utf-16-be", "replace")
    for cut in range(4):
        with contextlib.suppress(UnicodeDecodeError):
            return raw[: len(raw) - cut].decode("utf-8-sig")
    if is_chinese(raw):
        return raw.decode("gb18030", "replace")
    return raw.decode("cp1252", "replace")


def is_chinese(raw: bytes) -> bool:
    """GBK text has its high bytes in pairs and longer runs, European text one by one among letters."""
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", raw[:200_000])]
    return sum(length > 1 for length in runs) * 2 > len(runs)
