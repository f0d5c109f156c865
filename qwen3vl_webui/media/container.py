"""Opening a media file that may be hostile: which containers and codecs are read, and the clock all rooms share.

Everything here runs in the sandbox, for `av.open` itself may already decode.
"""

from __future__ import annotations

import math
from typing import BinaryIO

import av
import av.subtitles.codeccontext  # PyAV imports these when a file has subtitles, when the sandbox allows no import
import av.subtitles.stream
import av.subtitles.subtitle
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import animation

# Without a list of formats, text files that name other files are followed (ffconcat, m3u8), and text is "played".
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
READ = "MP4, MOV, MKV, WebM, AVI, MPEG-TS, MPEG, FLV, OGG and ASF"
OPTIONS = {
    "format_whitelist": FORMATS,
    "protocol_whitelist": "none",
    "probesize": str(16 << 20),  # bytes
    "analyzeduration": str(20_000_000),  # microseconds
}
PICTURE_CODECS = frozenset(
    ["h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "theora", "prores", "vc1"]
    + ["wmv1", "wmv2", "wmv3", "h263", "flv1"]
)
MOST_PIXELS = 8192 * 8192
LONGEST_SIDE = 8192
LARGEST_FILE = 8 << 30  # bytes
LONGEST_CLIP = 12 * 3600.0  # seconds
STARTS = {  # how the containers above begin: offset, bytes
    4: (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"),
    8: (b"AVI ",),
    0: (b"\x1a\x45\xdf\xa3", b"\x47", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"FLV", b"OggS", b"\x30\x26\xb2\x75"),
}
SOUND_STARTS = (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf1", b"\xff\xf9", b"fLaC")
NO_PICTURE = "This file has sound but no picture: upload a video, or its transcript as text."
REFUSED = f"This kind of file is not read as video: {READ} are."
CUT_OFF = "This video is cut off, or its index is damaged: upload the whole file again."
DAMAGED = "This video is damaged and cannot be read: try to play it elsewhere and save it again as MP4."


def open_container(file: BinaryIO) -> InputContainer:
    """The container in `file`, nothing else: no other file, no address. Raises MediaError with one sentence."""
    file.seek(0)
    head = file.read(12)
    size = file.seek(0, 2)
    file.seek(0)
    if not size:
        raise MediaError("This file is empty.")
    if size > LARGEST_FILE:
        raise MediaError(f"This video is {size / (1 << 30):.1f} GB: at most {LARGEST_FILE >> 30} GB are read.")
    if animation.may_be(head):
        file = animation.as_film(file)
    if head.startswith(SOUND_STARTS) or head[8:] == b"WAVE":
        raise MediaError(NO_PICTURE)
    try:
        return av.open(file, "r", options=OPTIONS, timeout=20)
    except av.ArgumentError as error:  # "Format not on whitelist"
        raise MediaError(REFUSED) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        known = any(head[at:].startswith(starts) for at, starts in STARTS.items())
        raise MediaError(CUT_OFF if head[4:8] == b"ftyp" else DAMAGED if known else REFUSED) from error


def animated_kind(file: BinaryIO) -> str:
    """`gif` or `webp` where the file is an animation of that kind, else nothing."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    return "" if not animation.may_be(head) else "gif" if head.startswith(b"GIF8") else "webp"


def picture_stream(container: InputContainer) -> VideoStream:
    """The first stream of moving pictures, its codec on the list; raises MediaError with one sentence."""
    pictures = container.streams.video
    streams = [stream for stream in pictures if not stream.disposition & Disposition.attached_pic]
    if not streams:
        if any(stream.type == "audio" for stream in container.streams):
            raise MediaError(NO_PICTURE)
        if pictures:
            raise MediaError("This file has only a cover picture and no video: upload the picture itself.")
        raise MediaError("This file has no picture in it: upload a video.")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise MediaError("The codec of this video is not known here: save it as H.264 in MP4.")
    name = context.codec.canonical_name
    if name not in PICTURE_CODECS:
        raise MediaError(f"The video codec {name} is not read here: save the video as H.264 in MP4.")
    if max(context.width, context.height) > LONGEST_SIDE or context.width * context.height > MOST_PIXELS:
        raise MediaError(f"This video is {context.width} x {context.height} px: at most 8192 px a side are read.")
    if name == "hevc":  # else its decoder hides damage, and shows wrong pictures under true times
        context.options = {"err_detect": "explode"}
    return stream


def start_of(container: InputContainer) -> float:
    """What is subtracted from every time in the file, of any stream, so that it starts at 0."""
    return (container.start_time or 0) / av.time_base


def upright_size(width: int, height: int, aspect: float, rotation: int) -> tuple[int, int]:
    """The size people see: `aspect` is the shape of one stored pixel, `rotation` in degrees."""
    if aspect > 1:
        width = round(width * aspect)
    elif aspect > 0:
        height = round(height / aspect)
    return (height, width) if rotation % 180 else (width, height)


def pixel_aspect(stream: VideoStream) -> float:
    """Width over height of one stored pixel; 1 where the file says nothing or nonsense."""
    ratio = stream.sample_aspect_ratio
    return float(ratio) if ratio and 1 / 8 <= ratio <= 8 and math.isfinite(ratio) else 1.0
