"""Where a video changes: arithmetic on packet sizes and small grey pictures, nothing here opens a file.

A *probe* is a picture as (90, 160) uint8 grey levels. Two probes are compared block by block (9 x 16 blocks), and a
block counts as changed above a threshold of its own, learned from this video: camera noise raises all of them, and
where a speaker or a cursor always moves the block is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

PROBE_WIDTH, PROBE_HEIGHT = 160, 90
ROWS, COLUMNS = 9, 16  # blocks of 10 x 10 grey levels
LEAST_CHANGE = 5.0  # grey levels: mean difference of a block that a reader would see
MOVES = 12.0  # grey levels: a block with a higher threshold always moves and says nothing
FEWEST_BLOCKS = 2  # a line of text covers more, a cursor less
FEWEST_STILL = 0.35  # share of still blocks; below it the picture as a whole is moving: a film
CUT = 0.25  # difference of grey histograms (0 to 1) and of means that makes a cut in a film
SPIKE_WINDOW = 17  # seconds around a packet that say what is usual
SPIKE_DEVIATIONS, SPIKE_RATIO = 2.5, 1.3
CLEAR_RATIO = 2.5  # of a packet to what is usual around it: a line of text has 3 to 9 times, a gesture less
AFTER_KEYFRAME = 0.25  # seconds in which packets are larger anyhow
LONGEST_ONSET, ONSET_GAP = 0.8, 0.2  # seconds: a fade before its largest packet, between two of its packets
LEAST_GAP = 0.6  # seconds: changes closer together are one
REGULAR = 0.97  # of the largest distance: keyframes closer together were set by the encoder for a cut
SHORT_GAP, LONGEST_SHORT = 3.0, 9.0  # seconds between keyframes that are samples enough
LONGEST_GAP = 60.0  # seconds between keyframes beyond which packets alone do not guide
QUIET = 0.15  # largest other packet of a second to a keyframe, below which packet sizes tell of changes
TELLING = 0.08  # the same, below which nothing changes without a larger packet

Mode = Literal["keyframes", "packets", "linear"]


@dataclass(frozen=True, eq=False)
class Packets:
    """One row per picture of a video, in the order shown: seconds, bytes of its packet, whether decoding can start."""

    shown: np.ndarray
    sizes: np.ndarray
    is_key: np.ndarray

    @cached_property
    def keyframes(self) -> np.ndarray:
        return self.shown[self.is_key]


def reading_mode(packets: Packets) -> Mode:
    """The cheapest way to find the changes of this file, judged before anything is decoded.

    `keyframes`: they are dense enough to be the samples. `packets`: sparse, but large packets between them tell where
    something changed. `linear`: every picture others refer to must be decoded.
    """
    keyframes = packets.keyframes
    if len(keyframes) < 2:
        return "linear"
    ends = [packets.shown[0], *keyframes, packets.shown[-1]]
    gaps, longest = np.diff(keyframes), float(np.diff(ends).max())
    if np.median(gaps) <= SHORT_GAP and longest <= LONGEST_SHORT:
        return "keyframes"
    return "packets" if restlessness(packets) < QUIET and longest <= LONGEST_GAP else "linear"


def restlessness(packets: Packets) -> float:
    """How large other packets usually are beside keyframes: 0.01 to 0.1 of a screen, more under camera noise."""
    _, largest, _ = largest_per_second(packets)
    keyframes = packets.sizes[packets.is_key]
    return float(np.median(largest) / max(1.0, np.median(keyframes))) if len(largest) and len(keyframes) else 0.0


def largest_per_second(packets: Packets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(second, bytes, time) of the largest packet that is no keyframe, for each second that has one."""
    others = ~packets.is_key
    times, sizes = packets.shown[others], packets.sizes[others].astype(np.float64)
    if not len(times):
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    seconds = times.astype(np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(seconds)) + 1])
    order = np.lexsort((sizes, seconds))
    last = np.concatenate([starts[1:], [len(times)]]) - 1
    at = order[last]
    return seconds[starts], sizes[at], times[at]


def suspects(packets: Packets) -> tuple[np.ndarray, np.ndarray]:
    """(seconds, clear) at which packets tell of a change: unusually large ones, and keyframes set out of turn.

    `clear` are those that hardly anything else explains.
    """
    seconds, sizes, times = largest_per_second(packets)
    found, strengths = [np.zeros(0)], [np.zeros(0)]
    if len(seconds):
        level = np.full(int(seconds[-1]) + 1 + 2 * (SPIKE_WINDOW // 2), np.nan)
        level[seconds + SPIKE_WINDOW // 2] = np.log(np.maximum(sizes, 1))
        around = np.lib.stride_tricks.sliding_window_view(level, SPIKE_WINDOW)[seconds]
        usual = np.nanmedian(around, axis=1)
        below = np.where(around <= usual[:, None], usual[:, None] - around, np.nan)  # changes only make packets larger
        spread = np.nanmedian(below, axis=1) * 1.4826
        above = np.log(np.maximum(sizes, 1)) - usual
        after = times - packets.keyframes[np.searchsorted(packets.keyframes, times) - 1] if packets.is_key[0] else 9.0
        least = np.where(after < AFTER_KEYFRAME, CLEAR_RATIO, SPIKE_RATIO)
        spike = (above > SPIKE_DEVIATIONS * np.maximum(spread, 0.08)) & (above > np.log(least))
        found.append(np.array([onset(packets, *row) for row in zip(times[spike], np.exp(usual[spike]), strict=True)]))
        strengths.append(np.exp(above[spike]))
    keyframes = packets.keyframes
    if len(keyframes) > 1:
        gaps = np.diff(keyframes)
        early = gaps < REGULAR * gaps.max()
        if early.mean() <= 0.8:
            found.append(keyframes[1:][early])
            strengths.append(np.full(int(early.sum()), np.inf))
    merged, strength = np.concatenate(found), np.concatenate(strengths)
    if not len(merged):
        return merged, merged > 0
    order = np.argsort(merged)
    merged, strength = merged[order], strength[order]
    first = np.flatnonzero(np.concatenate([[True], np.diff(merged) > LEAST_GAP]))
    clear = np.maximum.reduceat(strength, first) >= CLEAR_RATIO
    return merged[first], clear & (restlessness(packets) < QUIET)


def onset(packets: Packets, largest: float, usual: float) -> float:
    """When what made the packet at `largest` so large began: a fade has several, one after another."""
    began = largest
    first, last = np.searchsorted(packets.shown, [largest - LONGEST_ONSET, largest])
    for second, size, is_key in zip(
        packets.shown[first:last][::-1].tolist(),
        packets.sizes[first:last][::-1].tolist(),
        packets.is_key[first:last][::-1].tolist(),
        strict=True,
    ):
        if began - second > ONSET_GAP:
            break
        if size > SPIKE_RATIO * usual and not is_key:
            began = second
    return began


def block_differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(9, 16) float: the mean absolute difference of two probes in each block, in grey levels."""
    apart = np.abs(one.astype(np.int16) - other)
    return apart.reshape(ROWS, PROBE_HEIGHT // ROWS, COLUMNS, PROBE_WIDTH // COLUMNS).mean(axis=(1, 3))


@dataclass(frozen=True, eq=False)
class Eye:
    """Tells whether two probes of one video show the same. `thresholds` are (9, 16) grey levels."""

    thresholds: np.ndarray

    @classmethod
    def learn(cls, near: Iterable[np.ndarray], far: Iterable[np.ndarray] = ()) -> Eye:
        """From block differences of pictures a second apart, in which little happens, and of some further apart."""
        thresholds = np.full((ROWS, COLUMNS), LEAST_CHANGE)
        if seen := list(near):
            high = np.percentile(seen, 80, axis=0)
            thresholds = np.maximum(thresholds, np.maximum(4 * np.median(seen, axis=0), 1.6 * high + 0.8))
        if seen := list(far):
            thresholds = np.maximum(thresholds, 4 * np.median(seen, axis=0))
        return cls(thresholds)

    @property
    def still(self) -> np.ndarray:
        return self.thresholds <= MOVES

    @property
    def is_film(self) -> bool:
        """Whether the whole picture moves, so that only cuts can be told."""
        return float(self.still.mean()) < FEWEST_STILL

    @property
    def is_calm(self) -> bool:
        """Whether nothing moves anywhere but what changes: a screen, slides, a drawing."""
        return bool((self.thresholds <= LEAST_CHANGE).all())

    def change(self, one: np.ndarray, other: np.ndarray, sensitivity: float = 1.0) -> float:
        """The share of the picture that changed, 0 where nothing did; thresholds are divided by `sensitivity`."""
        if self.is_film:
            apart = difference_of_levels(one, other)
            return apart if apart > CUT / sensitivity else 0.0
        changed = (block_differences(one, other) * sensitivity > self.thresholds) & self.still
        count = int(changed.sum())
        return count / int(self.still.sum()) if count >= FEWEST_BLOCKS else 0.0


def difference_of_levels(one: np.ndarray, other: np.ndarray) -> float:
    """0 to about 2: how differently grey levels are spread, and how far the pictures are apart on the whole."""
    histograms = [np.bincount(probe.ravel() >> 4, minlength=16) / probe.size for probe in (one, other)]
    moved = float(np.abs(histograms[0] - histograms[1]).sum()) / 2
    return moved + float(np.abs(one.astype(np.int16) - other).mean()) / 255


class Watch:
    """Probes in rising order in, changes out: a change counts when what it led to stays for a moment."""

    LONGEST_UNREST = 3.0  # seconds: what moves for longer counts as it is

    def __init__(self, eye: Eye, probe: np.ndarray) -> None:
        self.eye = eye
        self.shown = self.before = probe  # the settled picture before the next change, and the latest
        self.began: float | None = None  # the first second of a change under way

    def look(self, seconds: float, probe: np.ndarray, between: Iterable[tuple[float, np.ndarray]] = ()) -> float | None:
        """The second at which a change began that has settled by now, or None.

        `between` are pictures since the last look, in order: read only to find the first that differs.
        """
        earlier, self.before = self.before, probe
        if self.eye.is_film:
            self.shown = probe
            return self.cut(earlier, [*between, (seconds, probe)])
        if self.began is None:
            if not self.eye.change(self.shown, probe):
                return None
            self.began = next((second for second, other in between if self.eye.change(self.shown, other)), seconds)
            return None
        if self.eye.change(earlier, probe) and seconds - self.began < self.LONGEST_UNREST:
            return None
        began, self.began = self.began, None
        if not self.eye.change(self.shown, probe):
            return None
        self.shown = probe
        return began

    def cut(self, earlier: np.ndarray, looks: list[tuple[float, np.ndarray]]) -> float | None:
        """The second of a cut among `looks`. A film drifts: only what changes from one to the next is a cut, or what
        no motion would change so much, a dissolve."""
        last_second, last = looks[-1]
        whole = self.eye.change(earlier, last)
        if not whole:
            return None
        previous = earlier
        for seconds, probe in looks:
            if self.eye.change(previous, probe):
                return seconds
            previous = probe
        return last_second if whole > 2 * CUT else None
