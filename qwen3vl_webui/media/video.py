"""Reading video: what a file holds, when its pictures appear, and the pictures a plan asks for.

The functions that take an open file run in the sandbox; the others are called by the house. One clock everywhere:
`seconds = pts * time_base - container.start_time`, and the picture on screen at t is the last with seconds <= t.
"""

from __future__ import annotations

import itertools
from array import array
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.ma  # np.unique imports it on first use, when the sandbox allows no import any more

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import container as opening
from qwen3vl_webui.media import sandbox
from qwen3vl_webui.media.ahead import WORKERS, Ahead
from qwen3vl_webui.media.pictures import EXACT, THREADS, count_pictures, first_picture, read_pictures
from qwen3vl_webui.media.sampling import FrameTimes, decoding_cost
from qwen3vl_webui.media.values import Clip, Frame, FramePlan

SCAN_LIMITS = sandbox.Limits(cpu_seconds=120, wall_seconds=600.0)  # 8 GB from a slow disk
MOST_READING = 1800  # CPU seconds for one plan
MISSING = -(1 << 63)
WORTH_HALVING = 0.3  # CPU seconds of decoding from which a plan is read by two processes
MOST_AHEAD = 32 * 2**20  # bytes of pictures the second may be ahead
SCANS_KEPT = 8  # files whose frame times stay in memory; 2 h at 30 fps are 1.7 MB


@dataclass(frozen=True, eq=False)
class Scan:
    """The packets of a whole file, nothing decoded. All arrays but `sizes` are rising float64 seconds.

    `starts` are the packets decoding can start at: the keyframes, and those an edit list hides. In a file that is
    not `seekable` PTS are missing or fall (parts joined together): its times then count on in file order, and it is
    read in one pass in which the n-th picture out of the decoder is `shown[n]`.
    """

    shown: np.ndarray
    sizes: np.ndarray  # bytes of the packet of each picture shown, uint32
    keyframes: np.ndarray
    starts: np.ndarray
    end: float
    seekable: bool


Pictures = Generator[Any, None, None]  # from a child that is not trusted


_scans: OrderedDict[str, Scan] = OrderedDict()
_lock = Lock()


def probe(path: Path, digest: str) -> Clip:
    """The clip in a file of that content digest; raises MediaError with one sentence when there is none."""
    found = sandbox.call(inspect, path, limits=SCAN_LIMITS)
    scan = keep(digest, checked_scan(found))
    return Clip(
        path=path,
        digest=digest,
        start=0.0,
        end=scan.end,
        width=int(found["width"]),
        height=int(found["height"]),
        codec=str(found["codec"]),
        container=str(found["container"]),
        fps=float(found["fps"]),
        audio=bool(found["audio"]),
    )


def read_times(clip: Clip) -> FrameTimes:
    """When the pictures of `clip` appear; read once per file content and kept for the latest few files."""
    scan = scan_of(clip)
    shown = scan.shown[(scan.shown >= clip.start) & (scan.shown < clip.end)]
    keyframes = scan.keyframes[(scan.keyframes >= clip.start) & (scan.keyframes < clip.end)]
    before = len(scan.shown) and scan.shown[0] < clip.start
    if before and (not len(shown) or shown[0] - clip.start > 0.5):  # the span starts on a still picture
        shown = np.concatenate([[clip.start], shown])
    return FrameTimes(shown, keyframes)


def read_frames(plan: FramePlan) -> Generator[Frame, None, None]:
    """The pictures on screen at the plan's seconds, two per temporal patch, in order, (height, width, 3) uint8 RGB.

    Streamed: one picture is held at a time, and closing the generator ends the reading process. Where a damaged
    part of the file hides a picture, the nearest one that can be shown takes its place, and its Frame carries its
    own second instead of the plan's. Raises ValueError for a plan out of order, MediaError when nothing can be read.
    """
    wanted = list(plan.seconds)
    if any(later < earlier for earlier, later in itertools.pairwise(wanted)):
        raise ValueError("the seconds of a plan rise")
    scan = scan_of(plan.clip)
    index = np.maximum(np.searchsorted(scan.shown, np.array(wanted) + EXACT, side="right") - 1, 0)
    unique = np.unique(index)
    seconds = scan.shown[unique]
    path, size, limits = plan.clip.path, (plan.width, plan.height), reading_limits(plan.clip)
    if scan.seekable:
        parts = side_by_side(plan, scan, unique)
        threads = 1 if len(parts) > 1 else THREADS
        streams = [
            sandbox.stream(read_pictures, path, seconds[part], scan.starts, *size, threads, limits=limits)
            for part in parts
        ]
        pictures = joined(streams, parts, room=max(1, MOST_AHEAD // (3 * plan.width * plan.height)))
    else:
        pictures = sandbox.stream(count_pictures, path, unique, seconds, *size, limits=limits)
    position = -1
    try:
        for seconds, picture in zip(wanted, index, strict=True):
            while position < 0 or unique[position] < picture:
                own, pixels = checked(next(pictures), plan)
                position += 1
            exact = abs(own - scan.shown[picture]) <= EXACT
            yield Frame(seconds if exact else own, pixels)
    except StopIteration:
        raise MediaError(opening.DAMAGED) from None
    finally:
        pictures.close()


def side_by_side(plan: FramePlan, scan: Scan, pictures: np.ndarray) -> list[slice]:
    """The pictures of a plan, as rising indexes into `scan.shown`, in two parts of like work where that saves time: two
    processes of one thread do nearly twice as much as one of two."""
    groups = np.maximum(np.searchsorted(scan.starts, scan.shown[pictures] + EXACT, side="right") - 1, 0)
    begins = np.searchsorted(scan.shown, scan.starts[groups] - EXACT)
    reached = np.concatenate([[-1], pictures[:-1]])
    work = np.cumsum(pictures - np.maximum(begins, reached))  # pictures that are decoded on the way
    cost = decoding_cost(plan.clip, int(work[-1]))
    borders = np.flatnonzero(np.diff(groups)) + 1
    if WORKERS < 2 or cost < WORTH_HALVING or not len(borders):
        return [slice(0, len(pictures))]
    middle = int(borders[np.abs(work[borders - 1] - work[-1] / 2).argmin()])
    return [slice(0, middle), slice(middle, len(pictures))]


def joined(streams: Sequence[Pictures], parts: Sequence[slice], room: int) -> Pictures:
    """What the streams yield, one after another, the later ones read ahead meanwhile; it ends where a part is short."""
    sources: list[Pictures | Ahead[Any]] = [streams[0], *(Ahead(stream, room) for stream in streams[1:])]
    try:
        for source, part in zip(sources, parts, strict=True):
            left = part.stop - part.start
            for picture in source:
                yield picture
                left -= 1
            if left:
                return
    finally:
        for source in sources:
            source.close()


def checked(picture: Any, plan: FramePlan) -> tuple[float, np.ndarray]:
    """The child is not trusted: what it sends must be a second and pixels of the plan's size."""
    seconds, pixels = picture if isinstance(picture, tuple) and len(picture) == 2 else (None, None)
    if not isinstance(seconds, float) or not isinstance(pixels, np.ndarray):
        raise MediaError(opening.DAMAGED)
    if pixels.shape != (plan.height, plan.width, 3) or pixels.dtype != np.uint8:
        raise MediaError(opening.DAMAGED)
    return seconds, pixels


def reading_limits(clip: Clip) -> sandbox.Limits:
    """Decoding every picture of 1080p takes 0.05 to 0.13 CPU seconds per second."""
    full_hd = clip.width * clip.height / (1920 * 1080)
    return sandbox.Limits(cpu_seconds=min(MOST_READING, round(120 + 0.2 * clip.duration * full_hd)))


def scan_of(clip: Clip) -> Scan:
    with _lock:
        if clip.digest in _scans:
            _scans.move_to_end(clip.digest)
            return _scans[clip.digest]
    return keep(clip.digest, checked_scan(sandbox.call(inspect, clip.path, limits=SCAN_LIMITS)))


def checked_scan(found: dict[str, Any]) -> Scan:
    """What `inspect` found. The child is not trusted: raises MediaError where that is no list of times."""
    try:
        shown, keyframes, starts = (np.asarray(found[name], np.float64) for name in ("shown", "keyframes", "starts"))
        sizes = np.asarray(found["sizes"], np.uint32)
        scan = Scan(shown, sizes, keyframes, starts, float(found["end"]), bool(found["seekable"]))
    except (KeyError, TypeError, ValueError) as error:
        raise MediaError(opening.DAMAGED) from error
    for times in (shown, keyframes, starts):
        if times.ndim != 1 or not (np.isfinite(times).all() and (np.diff(times) > 0).all()):
            raise MediaError(opening.DAMAGED)
        times.setflags(write=False)
    if not (len(shown) and len(starts) and shown[-1] < scan.end < np.inf and sizes.shape == shown.shape):
        raise MediaError(opening.DAMAGED)
    return scan


def keep(digest: str, scan: Scan) -> Scan:
    with _lock:
        _scans[digest] = scan
        while len(_scans) > SCANS_KEPT:
            _scans.popitem(last=False)
    return scan


# In the sandbox.


def inspect(file: BinaryIO) -> dict[str, Any]:
    """What the file holds and when its pictures appear. Decodes no more than the first picture."""
    with opening.open_container(file) as container:
        stream = opening.picture_stream(container)
        found = scan_packets(container, stream)
        if not len(found["shown"]):
            raise MediaError("This video has no frames in it: upload the whole file again.")
        if found["end"] > opening.LONGEST_CLIP:
            raise MediaError(f"This video is {found['end'] / 3600:.1f} hours long: at most 12 hours are read.")
        found["codec"], found["container"] = stream.codec_context.codec.canonical_name, container.format.name
        if kind := opening.animated_kind(file):  # what the film in memory is made of
            found["codec"] = found["container"] = kind
        found["fps"] = len(found["shown"]) / (found["end"] - found["shown"][0])  # headers say 30,000 at times
        found["audio"] = any(other.type == "audio" for other in container.streams)
        aspect = opening.pixel_aspect(stream)
    first = first_picture(file)
    width, height = opening.upright_size(first.width, first.height, aspect, first.rotation)
    return found | {"width": width, "height": height}


def scan_packets(container: Any, stream: Any) -> dict[str, Any]:
    """One pass over the packets of a stream, as the fields of Scan. A file that breaks off ends where it does."""
    base, offset = float(stream.time_base), opening.start_of(container)
    rows = array("q")  # pts, dts, duration, bytes, keyframe, hidden by an edit list
    try:
        for packet in container.demux(stream):
            if packet.size and (rows or packet.is_keyframe):  # what comes before the first keyframe is never shown
                pts = MISSING if packet.pts is None else packet.pts
                dts = MISSING if packet.dts is None else packet.dts
                rows.extend((pts, dts, packet.duration or 0, packet.size, packet.is_keyframe, packet.is_discard))
    except (av.FFmpegError, OSError):
        pass
    pts, dts, lengths, sizes, is_key, is_hidden = np.frombuffer(rows, np.int64).reshape(-1, 6).T
    is_key, is_hidden = is_key.astype(bool), is_hidden.astype(bool)
    seekable = MISSING not in pts and not falls(dts) and not is_guessed(container, stream, pts, dts)
    if seekable:
        seconds = pts * base - offset
    else:
        seconds, is_hidden = counted_times(dts, lengths, base, float(stream.average_rate or 25)), is_hidden & False
    first = seconds[is_key].min() if len(seconds) else 0.0
    visible = ~is_hidden & (seconds >= max(first, 0.0) - EXACT)  # an open GOP's first pictures need one before it
    seconds[visible] = np.maximum(seconds[visible], 0.0)  # the start is rounded to microseconds
    shown, packet_of = np.unique(seconds[visible], return_index=True)
    end = 0.0
    if len(shown):
        length = lengths[np.argmax(seconds)] * base
        end = float(shown[-1] + (length if length > 0 else np.diff(shown).mean() if len(shown) > 1 else 0.04))
    return {
        "shown": shown,
        "sizes": sizes[visible][packet_of].astype(np.uint32),
        "keyframes": np.unique(seconds[visible & is_key]),
        "starts": np.unique(seconds[is_key]),
        "end": end,
        "seekable": seekable,
    }


def falls(dts: np.ndarray) -> bool:
    """Whether the file's clock falls back: parts were joined without making one time line of them."""
    return bool((np.diff(dts[dts != MISSING]) < 0).any())


def is_guessed(container: Any, stream: Any, pts: np.ndarray, dts: np.ndarray) -> bool:
    """Whether the PTS of a stream with B-frames are only its DTS: AVI stores none, and H.264 gives no hint."""
    context = stream.codec_context
    if container.format.name != "avi" or context.codec.canonical_name not in ("h264", "hevc"):
        return False
    return bool(context.has_b_frames and (np.diff(pts - dts) == 0).all())


def counted_times(dts: np.ndarray, lengths: np.ndarray, base: float, rate: float) -> np.ndarray:
    """Seconds of pictures in the order they are shown, where PTS cannot be used, starting at 0.

    The spacing of DTS is kept, for pictures are shown in the rhythm they are decoded in; where DTS are missing or
    fall, the packet's own duration or else the average rate takes its place.
    """
    known = (dts[1:] != MISSING) & (dts[:-1] != MISSING) & (dts[1:] > dts[:-1])
    lasting = np.where(lengths > 0, lengths * base, 1 / rate)[:-1]
    return np.cumsum(np.concatenate([np.zeros(min(1, len(dts))), np.where(known, np.diff(dts) * base, lasting)]))
