"""What a browser can play, copies it can play, and thumbnails.

The common denominator of browsers is MP4 with H.264 (8 bit, 4:2:0) and AAC or MP3, its index before the pictures,
starting at 0: browsers do not subtract a start time, and without the index in front nothing can be sought.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image as Picture

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import container as opening
from qwen3vl_webui.media import sandbox, video
from qwen3vl_webui.media.values import Clip, FramePlan
from qwen3vl_webui.media.writing import SOUND_IN_MP4, copy, encode, first_sound

How = Literal["as_is", "remux", "transcode"]

AS_IS_START = 1e-3  # seconds a file may start away from 0 and still be played as it is
IN_MP4 = frozenset({"h264", "vp9", "av1"})  # copied into MP4 without decoding
SOUND_IN_WEBM = {"opus", "vorbis"}
EIGHT_BIT = {"yuv420p", "yuvj420p"}


def how_to_play(clip: Clip) -> How:
    """Whether browsers play the file of `clip` as it is, after its packets are copied to MP4, or only re-encoded."""
    return _how_to_play(clip.path, clip.digest)


@functools.lru_cache(maxsize=256)
def _how_to_play(path: Path, digest: str) -> How:
    how = sandbox.call(judge, path, limits=video.SCAN_LIMITS)
    return how if how in ("as_is", "remux") else "transcode"


def make_playable(clip_path: Path, target: Path, *, progress: Callable[[float], None]) -> None:
    """Writes a copy browsers can play, the pictures at the same seconds as `video.read_times` says.

    `progress` gets the finished part, 0 to 1; whatever it raises ends the work. The target is removed unless the
    copy is whole. Copying packets takes seconds for hours of film, encoding 10 to 16 CPU seconds a minute.
    """
    found = sandbox.call(video.inspect, clip_path, limits=video.SCAN_LIMITS)
    scan = video.checked_scan(found)
    minutes, size = scan.end / 60, clip_path.stat().st_size
    large = max(1.0, int(found["width"]) * int(found["height"]) / (1920 * 1080))
    limits = sandbox.Limits(
        cpu_seconds=round(120 + 20 * minutes * large),
        file_size=2 * size + (64 << 20) + round(minutes * (60 << 20)),
        wall_seconds=3600.0 + 60 * minutes * large,
    )

    def work(function: Callable[..., Any], *arguments: Any) -> None:
        with contextlib.closing(sandbox.stream(function, clip_path, *arguments, limits=limits, target=target)) as steps:
            for done in steps:
                progress(min(max(float(done), 0.0), 1.0))

    if sandbox.call(judge, clip_path, limits=video.SCAN_LIMITS) == "transcode":
        work(encode, scan.shown, scan.seekable)
    else:
        try:
            work(copy, scan.end)
        except MediaError:  # a damaged file whose packets MP4 does not take
            work(encode, scan.shown, scan.seekable)
    progress(1.0)


def thumbnail(clip: Clip, seconds: float, width: int) -> bytes:
    """The picture on screen at that second as WebP, `width` px wide; the nearest one outside the clip."""
    seconds = min(max(seconds, clip.start), clip.end)
    height = max(1, round(width * clip.height / clip.width))
    with contextlib.closing(video.read_frames(FramePlan(clip, ((seconds, seconds),), width, height))) as frames:
        pixels = next(frames).pixels
    written = io.BytesIO()
    Picture.fromarray(pixels).save(written, "WEBP", quality=75, method=2)
    return written.getvalue()


# In the sandbox.


def judge(file: BinaryIO) -> How:
    """The cheapest way to make browsers play this file."""
    head = file.read(64)
    file.seek(0)
    if opening.animated_kind(file):
        return "transcode"
    with opening.open_container(file) as container:
        stream = opening.picture_stream(container)
        codec, form = stream.codec_context.codec.canonical_name, stream.codec_context.pix_fmt
        audio = first_sound(container)
        sound = audio.codec_context.codec.canonical_name if audio else None
        if codec not in IN_MP4 | {"vp8"} or codec == "h264" and form not in EIGHT_BIT:
            return "transcode"
        start, mp4 = opening.start_of(container), "mp4" in container.format.name.split(",")
        quicktime = container.metadata.get("major_brand", "").strip() == "qt"
        at_zero = abs(start) <= AS_IS_START
        if mp4 and not quicktime and at_zero and codec != "vp8" and (sound is None or sound in SOUND_IN_MP4[codec]):
            return "as_is" if index_first(file) else "remux"
        webm = b"\x42\x82" in head and b"webm" in head
        if webm and start <= AS_IS_START and codec != "h264" and (sound is None or sound in SOUND_IN_WEBM):
            return "as_is"
        if codec == "vp8":
            return "transcode"
        return "remux" if video.scan_packets(container, stream)["seekable"] else "transcode"


def index_first(file: BinaryIO) -> bool:
    """Whether the moov box of an MP4 stands before its mdat, and the file is not in fragments."""
    position, end = 0, file.seek(0, 2)
    while position + 8 <= end:
        file.seek(position)
        box = file.read(16)
        length, kind = int.from_bytes(box[:4], "big"), box[4:8]
        if kind in (b"moov", b"mdat", b"moof"):
            return kind == b"moov"
        length = int.from_bytes(box[8:16], "big") if length == 1 else length
        if length < 8:
            return False
        position += length
    return False
