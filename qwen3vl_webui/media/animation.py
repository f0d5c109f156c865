"""Animated GIF and WebP as films. Pillow draws their pictures, and a film in memory is made of them, so that all that
reads video reads these too. Everything here runs in the sandbox."""

from __future__ import annotations

import functools
import io
import itertools
import os
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import image

MOST_PIXELS = 600_000_000  # of all pictures together: 290 of full HD, some seconds of work
CLOCK = Fraction(1, 1000)  # both formats count milliseconds
HASTY = 10  # ms: browsers give a picture that is shown this briefly a tenth of a second
USUAL = 100  # ms
ENCODER = {"preset": "ultrafast", "crf": "6", "bf": "0", "g": "30"}  # nothing is lost that a reader would see


def may_be(head: bytes) -> bool:
    """Whether a file that begins so may be an animation."""
    return head.startswith(b"GIF8") or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def is_animated(file: BinaryIO) -> bool:
    """Whether it is a GIF or WebP with more than one picture. Raises what `image.open_picture` raises."""
    file.seek(0)
    if not may_be(file.read(12)):
        return False
    file.seek(0)
    return bool(getattr(image.open_picture(file), "is_animated", False))


def as_film(file: BinaryIO) -> io.BytesIO:
    """The animation in `file` as H.264 in MP4, each picture at its own time, on white where it is transparent."""
    status = os.fstat(file.fileno())
    return io.BytesIO(_film(file, status.st_ino, status.st_size))


@functools.lru_cache(maxsize=1)  # a child reads one file, and may open it several times
def _film(file: BinaryIO, node: int, size: int) -> bytes:
    file.seek(0)
    picture = image.open_picture(file)
    most, written = MOST_PIXELS // (picture.width * picture.height), io.BytesIO()
    lasting: dict[int, int] = {}  # by PTS, in ms
    now = 0
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv444p"
        stream.codec_context.time_base, stream.codec_context.thread_count = CLOCK, 1
        for number in itertools.count():
            try:
                picture.seek(number)
                drawn = np.ascontiguousarray(np.asarray(image.rgb(picture)))
            except MemoryError:
                raise
            except Exception:  # the end, or it breaks off here: decoders raise a dozen types
                break
            if number >= most:
                raise MediaError(
                    f"This animation has more than {most} pictures of {picture.width} x {picture.height} px, too many "
                    "to read: save it as MP4 and upload that."
                )
            frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
            frame.pts, frame.time_base = now, CLOCK
            shown = round(picture.info.get("duration") or 0)
            lasting[now] = shown if shown > HASTY else USUAL
            now += lasting[now]
            for packet in stream.encode(frame):
                container.mux(timed(packet, lasting))
        for packet in stream.encode(None):
            container.mux(timed(packet, lasting))
    if not lasting:
        raise MediaError(image.CUT_OFF)
    return written.getvalue()


def timed(packet: av.Packet, lasting: dict[int, int]) -> av.Packet:
    assert packet.pts is not None and packet.time_base is not None
    packet.duration = round(lasting[round(packet.pts * packet.time_base / CLOCK)] * CLOCK / packet.time_base)
    return packet
