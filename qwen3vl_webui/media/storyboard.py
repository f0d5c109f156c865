"""The storyboard of a video: read once per file content in the background, kept in memory and beside the file.

`read_storyboard` is the work; `begin`, `reading` and `wait` are what the rest of the house uses.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import beside, sandbox, video
from qwen3vl_webui.media import container as opening
from qwen3vl_webui.media.ahead import WORKERS, Ahead
from qwen3vl_webui.media.background import Background, State, Task
from qwen3vl_webui.media.changes import (
    COLUMNS,
    LONGEST_GAP,
    PROBE_HEIGHT,
    PROBE_WIDTH,
    ROWS,
    Eye,
    Packets,
    reading_mode,
)
from qwen3vl_webui.media.pictures import THREADS
from qwen3vl_webui.media.sampling import SHORT, decoding_cost
from qwen3vl_webui.media.segments import Assembly, Change, Segment, Storyboard
from qwen3vl_webui.media.values import Clip
from qwen3vl_webui.media.watching import watch_all, watch_keyframes

RULES = 2  # a storyboard written by other rules is read anew
KEPT = 32  # storyboards in memory; two hours of slides are 700 segments
SOON = 2.0  # seconds in which a clip shorter than that is looked through, mostly in a fraction of one
WORTH_HALVING = 1500.0  # seconds of film from which two workers help; each learns anew what is usual
AWAITED = 30.0  # seconds of a short clip from which they do: an answer waits for it
MESSAGES_AHEAD = 1000  # of the second worker
WORTH_SHOWING = 64  # messages after which the segments so far are given out
BYTE_COST = 1.1e-7  # CPU seconds to decode a byte of a video, beside its pictures


@dataclass(frozen=True)
class Reading:
    """How far the storyboard of a video is; `done` 0 to 1, `sentence` of a failure."""

    state: State
    done: float = 0.0
    storyboard: Storyboard | None = None
    sentence: str = ""


def read_storyboard(clip: Clip) -> Generator[Storyboard, None, None]:
    """The storyboard of the whole file of `clip`, again and again as it grows; the last one is complete.

    Streamed: first segments come within seconds, and closing the generator ends the reading processes. Raises
    MediaError when no picture can be read.
    """
    scan = video.scan_of(clip)
    clip = replace(clip, start=0.0, end=scan.end)
    packets = Packets(scan.shown, scan.sizes, np.isin(scan.shown, scan.keyframes))
    seams, *parts = split(clip, scan, packets)
    ahead = [Ahead(part, MESSAGES_AHEAD) for part in parts[1:]]
    assembly: Assembly | None = None
    last: np.ndarray | None = None
    messages = 0
    try:
        for number, part in enumerate([parts[0], *ahead]):
            seam = seams[number]
            for message in part:
                match message:
                    case ("eye", np.ndarray() as thresholds):
                        assembly = assembly or Assembly(packets, Eye(checked_thresholds(thresholds)))
                        continue
                    case ("change", float(seconds), float(share), probe) if assembly:
                        before = checked_probe(probe)
                        sandbox.check(assembly.start <= seconds <= scan.end and 0 <= share <= 2)
                        if seam and last is not None and before is not None:
                            if crossing := assembly.eye.change(last, before):
                                assembly.add(Change(seam, crossing, last))
                            seam = 0.0
                        assembly.add(Change(seconds, min(share, 1.0), before))
                    case ("last", probe) if assembly:
                        last = checked_probe(probe)
                        continue
                    case ("at", float(seconds)) if assembly:
                        sandbox.check(0 <= seconds <= scan.end)
                    case _:
                        sandbox.check(False)
                assert assembly is not None  # `check` saw to it
                messages += 1
                if messages % WORTH_SHOWING == 1:
                    yield assembly.storyboard(max(assembly.start, seconds))
        if assembly is None or last is None:
            raise MediaError(opening.DAMAGED)
        assembly.close(scan.end, last)
        yield Storyboard(tuple(assembly.segments), scan.end, assembly.eye.is_film, assembly.eye.is_calm)
    finally:
        parts[0].close()
        for part in ahead:
            part.close()


def checked_probe(probe: Any) -> np.ndarray | None:
    """The child is not trusted: what it sends must be a small grey picture."""
    if probe is None:
        return None
    sandbox.check(isinstance(probe, np.ndarray) and probe.dtype == np.uint8)
    sandbox.check(probe.shape == (PROBE_HEIGHT, PROBE_WIDTH))
    return probe.copy()  # else the whole message stays in memory with it


def checked_thresholds(thresholds: np.ndarray) -> np.ndarray:
    sandbox.check(thresholds.shape == (ROWS, COLUMNS) and thresholds.dtype == np.float64)
    sandbox.check(bool(np.isfinite(thresholds).all()))
    return thresholds.copy()


Messages = Generator[Any, None, None]


def split(clip: Clip, scan: video.Scan, packets: Packets) -> tuple[list[float], *tuple[Messages, ...]]:
    """The seconds at which the parts that are read side by side begin, and their messages. Nothing is read yet."""
    mode, limits = reading_mode(packets), video.reading_limits(clip)
    every_picture = decoding_cost(clip, len(scan.shown)) + scan.sizes.sum() * BYTE_COST
    refine = every_picture < limits.cpu_seconds
    if not scan.seekable:
        mode = "linear"
    elif mode == "linear" and not refine:
        gaps = np.diff(scan.keyframes)
        if not len(gaps) or gaps.max() > LONGEST_GAP:
            raise MediaError("This video takes too long to look through: its moments are chosen evenly.")
        mode = "keyframes"
    ends = [0.0, scan.end]
    middle = int(np.searchsorted(scan.keyframes, scan.end / 2))
    worth = scan.end > WORTH_HALVING or AWAITED < scan.end < SHORT
    if worth and WORKERS > 1 and scan.seekable and 0 < middle < len(scan.keyframes):
        ends.insert(1, float(scan.keyframes[middle]))
    table = (packets.shown, packets.sizes, packets.is_key, scan.starts)
    parts: list[Messages] = []
    for begin, end in zip(ends, ends[1:], strict=False):
        if mode == "linear":
            threads = THREADS if len(ends) == 2 else 1  # two parts are read side by side
            part = sandbox.stream(watch_all, clip.path, *table, begin, end, not scan.seekable, threads, limits=limits)
        else:
            part = sandbox.stream(watch_keyframes, clip.path, *table, begin, end, refine, limits=limits)
        parts.append(part)
    return (ends[:-1], *parts)


# Kept for the house.

readings = Background("storyboard", KEPT, lambda sentence: Reading("failed", sentence=sentence))


def pays(clip: Clip) -> bool:
    """Whether a clip is so long that its moments are chosen by its storyboard alone."""
    return clip.duration >= SHORT


def begin(clip: Clip) -> None:
    """Has the storyboard of the whole file read in the background, unless it is there already or cannot be read: one
    long file at a time, and beside it one short one, for which an answer waits."""
    if find(clip) is None and reading(clip).state == "none":
        lane = "" if pays(clip) else "short"
        readings.begin(clip.digest, Reading("making"), partial(_read, clip), lane)


def find(clip: Clip) -> Storyboard | None:
    """The complete storyboard of the whole file, where it has been read."""
    reading_now = reading(clip)
    if reading_now.state == "ready":
        return reading_now.storyboard
    if reading_now.state != "none" or (kept := load(clip)) is None:
        return None
    readings.settle(clip.digest, Reading("ready", 1.0, kept))
    return kept


def reading(clip: Clip) -> Reading:
    """How far the background is with this file; `none` where nobody asked."""
    return readings.known(clip.digest) or Reading("none")


def wait(clip: Clip, seconds: float) -> Storyboard | None:
    """The storyboard as soon as it is there, at most `seconds` later; None when it is not."""
    begin(clip)
    readings.wait(clip.digest, seconds)
    return find(clip)


def at_hand(clip: Clip, patience: float) -> Storyboard | None:
    """The storyboard by which a plan of `clip` is made: of a long video after `patience` seconds at most, of a short
    one soon, of a short part of a long one where it has been read."""
    if pays(clip):
        return wait(clip, patience)
    if video.scan_of(clip).end < SHORT:
        return wait(clip, max(patience, SOON))
    return find(clip)


def _read(clip: Clip, task: Task[Reading]) -> Reading:
    whole: Storyboard | None = None
    with closing(read_storyboard(clip)) as growing:
        for whole in growing:
            readings.tell(task, Reading("making", whole.seen / video.scan_of(clip).end, whole))
    assert whole is not None
    keep(clip, whole)
    return Reading("ready", 1.0, whole)


def keep(clip: Clip, whole: Storyboard) -> None:
    segments = [astuple(segment) for segment in whole.segments]
    record = {"rules": RULES, "seen": whole.seen, "film": whole.film, "calm": whole.calm, "segments": segments}
    beside.keep(clip, "storyboard", record)


def load(clip: Clip) -> Storyboard | None:
    record = beside.load(clip, "storyboard")
    if record.get("rules") != RULES:
        return None
    try:
        segments = tuple(Segment(*row) for row in record["segments"])
        return Storyboard(segments, float(record["seen"]), bool(record["film"]), bool(record["calm"]))
    except (ValueError, KeyError, TypeError):
        return None
