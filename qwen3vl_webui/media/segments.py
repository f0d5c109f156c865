"""The storyboard of a video, and which of its moments a plan shows: arithmetic on values, nothing here opens a file."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qwen3vl_webui.media.changes import Eye, Packets

SETTLE = 0.6  # seconds after a change from which a picture counts as settled: a fade takes half a second
LONGEST_SETTLE = 3.0  # seconds
BEFORE_CHANGE = 0.25  # seconds kept to the next change
RESTLESS = 2.5  # times the usual packet, above which a picture is still on its way
WIDEST_GAP = 30.0  # seconds without a moment, where nothing changes
WIDEST_FILM_GAP = 5.0  # the same in a film, where something always does
Pair = tuple[float, float]  # seconds of the two frames of a temporal patch
LATE = 0.45  # seconds a change may have been before the picture from which it is known: some are passed over
COMPARED = 1000  # latest different pictures that a new one is compared with


@dataclass(frozen=True)
class Segment:
    """Nothing changes in [start, end). `seconds` is the picture that shows it: its keyframe where it has a settled
    one, which is cheap to read, else the first settled picture.

    `change` is the share of the picture, 0 to 1, that changed at `start`; `like` the number of an earlier segment
    that showed the same; `early` the first settled picture, where `seconds` is a later keyframe.
    """

    start: float
    end: float
    seconds: float
    change: float
    like: int | None = None
    early: float | None = None


@dataclass(frozen=True)
class Storyboard:
    """What happens in a video, as far as it is read: segments one after another, from 0 to `seen` seconds.

    In a `film` the whole picture moves, and segments are its shots; in a `calm` video nothing moves but what changes.
    """

    segments: tuple[Segment, ...]
    seen: float
    film: bool
    calm: bool = False


@dataclass(frozen=True, eq=False)
class Change:
    """The first second of something new, the share that changed, and a probe of what was there before, if known."""

    seconds: float
    share: float
    before: np.ndarray | None


def settled(packets: Packets, start: float, end: float) -> tuple[float, float]:
    """The second of the picture that stands for [start, end), and of the first one that could."""
    latest = max(end - BEFORE_CHANGE, (start + end) / 2)
    near = slice(*np.searchsorted(packets.shown, [start - 8, start + LONGEST_SETTLE + 8]))
    times, sizes, is_key = packets.shown[near], packets.sizes[near], packets.is_key[near]
    calm = start
    if (~is_key).any():
        usual = float(np.percentile(sizes[~is_key], 90))
        moving = times[~is_key & (sizes > RESTLESS * usual) & (times >= start) & (times < start + LONGEST_SETTLE)]
        for second in moving.tolist():  # one after another: a later change is none of this one's
            if second > calm + SETTLE:
                break
            calm = second
    earliest = min(max(start + SETTLE, calm + 0.1), latest)
    keyframes = packets.keyframes
    number = int(np.searchsorted(keyframes, earliest - 1e-6))
    at = int(np.searchsorted(packets.shown, earliest + 1e-6, side="right")) - 1
    first = float(packets.shown[max(at, 0)])
    if number < len(keyframes) and keyframes[number] <= latest:
        return float(keyframes[number]), first
    return first, first


class Assembly:
    """Segments out of changes in rising order."""

    def __init__(self, packets: Packets, eye: Eye) -> None:
        self.packets, self.eye = packets, eye
        self.segments: list[Segment] = []
        self.start, self.share = 0.0, 1.0
        self.seen_before: list[tuple[int, np.ndarray]] = []  # number of a segment, its probe; no two alike

    def add(self, change: Change) -> None:
        """Closes the segment before `change`; one too short to be seen joins the next."""
        if change.seconds - self.start < 2 / 30 and self.segments:
            self.share = max(self.share, change.share)
            return
        self.close(change.seconds, change.before)
        self.start, self.share = change.seconds, change.share

    def close(self, end: float, probe: np.ndarray | None) -> None:
        if end <= self.start:
            return
        number, like = len(self.segments), None
        if probe is not None:
            like = next((earlier for earlier, other in self.seen_before if not self.eye.change(other, probe)), None)
            if like is None and not self.eye.is_film:
                self.seen_before = [*self.seen_before[-COMPARED + 1 :], (number, probe)]
        moment, first = settled(self.packets, self.start, end)
        self.segments.append(Segment(self.start, end, moment, self.share, None if self.eye.is_film else like, first))

    def storyboard(self, seen: float) -> Storyboard:
        """Up to now; what is not closed yet ends at `seen`."""
        open_end = self.start < seen
        last = [Segment(self.start, seen, settled(self.packets, self.start, seen)[0], self.share)] if open_end else []
        return Storyboard((*self.segments, *last), seen, self.eye.is_film, self.eye.is_calm)


def within(storyboard: Storyboard, start: float, end: float) -> list[Segment]:
    """The segments in [start, end), those at its ends cut there."""
    cut = []
    for segment in storyboard.segments:
        first, last = max(segment.start, start), min(segment.end, end)
        if first < last:
            seconds = min(max(segment.seconds, first), last)
            early = None if segment.early is None else min(max(segment.early, first), seconds)
            cut.append(Segment(first, last, seconds, segment.change, segment.like, early))
    return cut


def choose_moments(
    storyboard: Storyboard, start: float, end: float, most: int, widest: float | None = None
) -> list[float]:
    """At most `most` seconds in [start, end), rising: one for each segment, the least of them merged where they are
    too many; and more where nothing changes for `widest` seconds, as far as there is room."""
    segments = merge(within(storyboard, start, end), most)
    chosen = sorted({segment.seconds for segment in segments})
    return fill(chosen, start, end, most, widest or (WIDEST_FILM_GAP if storyboard.film else WIDEST_GAP))


def split_pairs(patches: Sequence[Pair], storyboard: Storyboard, start: float, end: float) -> list[Pair]:
    """Temporal patches of [start, end) of which none shows two segments: those that did become two, each the same
    picture twice; and a segment that none shows has one of its own."""
    segments = within(storyboard, start, end)
    changes = np.array([segment.start for segment in segments])

    def number(second: float) -> int:
        return int(np.searchsorted(changes, second + 1e-6, side="right")) - 1

    parted = [
        patch
        for first, second in patches
        for patch in (
            ((first, first), (second, second)) if number(first) < number(second + LATE) else ((first, second),)
        )
    ]
    shown = {number(first) for first, _ in parted}
    alone = [(one.seconds, one.seconds) for place, one in enumerate(segments) if place not in shown]
    return sorted([*parted, *alone])


def merge(segments: Sequence[Segment], most: int) -> list[Segment]:
    """At most `most` segments: again and again the least change is given up, and the later picture kept.

    So the lines of a slide fall into the finished slide first, and what was seen before goes before what is new. The
    longer what is left without a picture of its own, beyond a fair share of the whole, the dearer: no part of a film
    of equal shots goes unseen.
    """
    fair = (segments[-1].end - segments[0].start) / max(most, 1) if segments else 0.0
    kept: list[Segment | None] = list(segments)
    before, after = list(range(-1, len(kept) - 1)), list(range(1, len(kept) + 1))

    def price(number: int) -> float:
        """Of giving up this segment's picture for the next one's."""
        segment, following = kept[number], kept[after[number]]
        assert segment is not None and following is not None
        worth = following.change * (0.5 + min(1.0, (segment.end - segment.start) / 10))
        worth *= max(1.0, (following.end - segment.start) / fair)
        return worth / 2 if segment.like is not None else worth

    prices = [(price(number), number) for number in range(len(kept) - 1)]
    heapq.heapify(prices)
    left = len(kept)
    while left > max(most, 1) and prices:
        cost, number = heapq.heappop(prices)
        segment, follower = kept[number], after[number]
        if segment is None or follower >= len(kept) or cost != price(number):
            continue  # said before something beside it changed
        following = kept[follower]
        assert following is not None
        change = max(segment.change, following.change)
        kept[follower] = Segment(segment.start, following.end, following.seconds, change, following.like)
        kept[number] = None
        before[follower] = before[number]
        if before[number] >= 0:
            after[before[number]] = follower
            heapq.heappush(prices, (price(before[number]), before[number]))
        if after[follower] < len(kept):
            heapq.heappush(prices, (price(follower), follower))
        left -= 1
    return [segment for segment in kept if segment is not None]


def fill(chosen: Iterable[float], start: float, end: float, most: int, widest: float) -> list[float]:
    """`chosen` and evenly spaced seconds between them, the widest gaps first, until none is wider than `widest`."""
    moments = list(chosen)
    ends = [start, *moments, end]
    gaps = [(-(after - before), before, after, 1) for before, after in zip(ends, ends[1:], strict=False)]
    heapq.heapify(gaps)
    room = most - len(moments)
    while room > 0 and gaps and -gaps[0][0] > widest:
        _, before, after, parts = heapq.heappop(gaps)
        heapq.heappush(gaps, (-(after - before) / (parts + 1), before, after, parts + 1))
        room -= 1
    for _, before, after, parts in gaps:
        moments += [before + (after - before) * part / parts for part in range(1, parts)]
    return sorted(moments)
