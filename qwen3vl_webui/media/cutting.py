"""A frame or a part of a video to take away, both exact to the frame."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import av
import numpy as np
from PIL import Image as Picture

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import container as opening
from qwen3vl_webui.media import sandbox, video
from qwen3vl_webui.media.pictures import EXACT, THREADS, Pictures, first_picture, set_threads
from qwen3vl_webui.media.values import Clip, FramePlan
from qwen3vl_webui.media.writing import Film, Report, Sound, first_sound, open_mp4

LONGEST_CUT = 600.0  # seconds; encoding takes 10 to 16 CPU seconds a minute
TALLEST = 1080  # px, the shorter side
QUALITY = "20"  # x264's crf


def save_picture(clip: Clip, seconds: float, form: Literal["PNG", "JPEG"]) -> bytes:
    """The picture on screen at that second, upright, at its own size."""
    plan = FramePlan(clip, ((seconds, seconds),), clip.width, clip.height)
    with contextlib.closing(video.read_frames(plan)) as frames:
        pixels = next(frames).pixels
    written = io.BytesIO()
    Picture.fromarray(pixels).save(written, form, **({"quality": 92} if form == "JPEG" else {"compress_level": 6}))
    return written.getvalue()


def save_clip(clip: Clip, target: Path, *, progress: Callable[[float], None]) -> None:
    """Writes the span of `clip` as MP4 that plays anywhere, its first picture the one on screen at its start.

    `progress` gets the finished part, 0 to 1; whatever it raises ends the work, and nothing is left. Raises MediaError.
    """
    if clip.duration > LONGEST_CUT:
        raise MediaError(f"At most {LONGEST_CUT / 60:.0f} minutes of a video are saved at once; choose a shorter part.")
    scan = video.scan_of(clip)
    if scan.shown[0] >= clip.end - EXACT:  # the sound begins first
        raise MediaError("There is no picture between these times: choose a later part.")
    minutes, large = clip.duration / 60, max(1.0, clip.width * clip.height / (1920 * 1080))
    limits = sandbox.Limits(
        cpu_seconds=round(180 + 60 * minutes * large), file_size=round((64 << 20) + minutes * (120 << 20))
    )
    arguments = (scan.shown, scan.seekable, clip.start, clip.end)
    with contextlib.closing(sandbox.stream(cut, clip.path, *arguments, limits=limits, target=target)) as steps:
        for done in steps:
            progress(min(max(float(done), 0.0), 1.0))


# In the sandbox.


def cut(
    file: BinaryIO, target: BinaryIO, shown: np.ndarray, seekable: bool, start: float, end: float
) -> Iterator[float]:
    """Pictures and sound of [start, end) encoded again; yields the finished part. Where PTS cannot be used (not
    `seekable`) the n-th picture out of the decoder is shown at `shown[n]`."""
    first = first_picture(file)
    inside = shown[(shown >= start) & (shown < end)]
    with opening.open_container(file) as container:
        stream, sound = opening.picture_stream(container), first_sound(container)
        set_threads(stream, THREADS)
        pictures, offset = Pictures(container, stream), opening.start_of(container)
        streams = [stream] if sound is None else [stream, sound]
        packets = landed(container, streams, pictures, start) if seekable else container.demux(streams)
        seconds = times_of(pictures, None if seekable else shown)
        with open_mp4(target, 2 * len(inside) + round((end - start) * 100) + 1000) as written:
            times = inside - start if len(inside) > 1 else np.array([0.0, end - start])
            film = Film(written, times, first, opening.pixel_aspect(stream), tallest=TALLEST, quality=QUALITY)
            heard = Sound(written, sound, offset + start) if sound is not None else None
            report = Report(end - start)
            before, begun, seen, silent = None, False, False, sound is None
            for packet in packets:
                if sound is not None and packet.stream.index == sound.index:
                    if packet.size and packet.pts is not None:
                        at = float(packet.pts * packet.time_base) - offset
                        silent = at >= end
                        if heard is not None and start <= at < end:
                            heard.add(packet)
                else:
                    for frame in pictures.push(packet):
                        at = seconds(frame)
                        if at >= end - EXACT:
                            seen = True
                        elif at < start - EXACT:
                            before = frame
                        else:
                            if not begun and before is not None and at > start + EXACT:
                                film.add(before, 0.0)
                            begun = True
                            film.add(frame, max(0.0, at - start))
                            yield from report.at(at - start)
                if seen and silent:
                    break
            if not begun:
                if before is None:
                    raise MediaError(opening.DAMAGED)
                film.add(before, 0.0)
            film.finish()
            if heard is not None:
                heard.finish()
    yield 1.0


def times_of(pictures: Pictures, shown: np.ndarray | None) -> Callable[[Any], float]:
    """Seconds of the pictures as they come out of the decoder."""
    number = -1

    def seconds(frame: Any) -> float:
        nonlocal number
        number += 1
        if shown is not None:
            return float(shown[min(number, len(shown) - 1)])
        return pictures.seconds(frame.pts) if frame.pts is not None else -1.0

    return seconds


def landed(container: Any, streams: list[Any], pictures: Pictures, start: float) -> Iterator[Any]:
    """Packets from a keyframe that is not later than `start`: a seek goes by DTS and may land after it."""
    stream = streams[0]
    for back in (0.0, 2.0, 10.0, None):
        pictures.decoder.flush_buffers()
        with contextlib.suppress(av.FFmpegError, OSError):
            if back is None:
                container.seek(container.start_time or 0)
            else:
                ticks = round((max(0.0, start - back) + pictures.offset) / pictures.base)
                container.seek(ticks, stream=stream)
        packets, held = container.demux(streams), []
        for packet in packets:
            held.append(packet)
            if packet.stream.index == stream.index and packet.size and packet.is_keyframe and packet.pts is not None:
                if back is None or pictures.seconds(packet.pts) <= start + EXACT:
                    return chain(held, packets)
                break
    raise MediaError(opening.DAMAGED)
