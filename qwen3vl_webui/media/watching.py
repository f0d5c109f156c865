"""Finding the changes of one video by small grey pictures, as few of them as its packets allow.

Everything here runs in the sandbox. Each generator yields messages in the order of time: ("eye", thresholds), then
("change", seconds, share that changed, probe before it or None) and ("at", seconds) as it goes, and at the end
("last", probe or None). No picture is kept but the last few probes.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from qwen3vl_webui.media import container as opening
from qwen3vl_webui.media.changes import (
    LEAST_GAP,
    LONGEST_ONSET,
    PROBE_HEIGHT,
    PROBE_WIDTH,
    QUIET,
    SHORT_GAP,
    TELLING,
    Eye,
    Packets,
    Watch,
    block_differences,
    restlessness,
    suspects,
)
from qwen3vl_webui.media.pictures import EXACT, Pictures, set_threads

Message = tuple[Any, ...]
Look = tuple[float, np.ndarray]  # seconds, probe
Shot = tuple[float, VideoFrame]

STRIDE = 24.0  # seconds between two keyframes that are always compared
STEP = 0.5  # seconds between probes of a pass over every picture
TRUST = 4  # parts in a row whose changes packets told of, before they are taken at their word
FIRST_AUDIT, LAST_AUDIT = 8, 64  # parts taken at their word before one is looked into again: more as trust grows
FINE_STEP = 0.1  # seconds between probes around a change
PAIRS = 24  # compared to learn what is usual
NEAR = 0.7  # seconds between two pictures of a group that are compared to learn
LONGEST_ROW = 12  # such pairs in one group
FEWEST_PAIRS = 8  # of neighbouring keyframes to learn from
LEARNING = 32  # probes of a pass to learn from before it begins, and after which thresholds are learned anew
LAG = 4  # probes between two that are compared to learn
REMEMBERED = 128  # comparisons of a pass that thresholds are learned from
FILM_SENSITIVITY = 2.0  # with which a cut that packets tell of is looked for
KEPT_PROBES = 64
MOST_DAMAGED = 8  # keyframes in a row
HELD = 3840 * 2160  # pixels of a frame small enough to hold a few
# Pictures that no other refers to are left out: exact for the rest. BIDIR leaves out more where no encoder refers to
# them from outside their group; NONREF is what the format itself marks.
LEFT_OUT: dict[str, Any] = {
    "h264": "BIDIR",
    "mpeg4": "BIDIR",
    "mpeg2video": "BIDIR",
    "mpeg1video": "BIDIR",
    "vc1": "BIDIR",
}
LEFT_OUT |= {"hevc": "NONREF", "av1": "NONREF"}


class Film:
    """One open video as probes: keyframes alone, or the pictures others refer to in a row."""

    def __init__(self, container: Any, packets: Packets, starts: np.ndarray, threads: int = 1) -> None:
        stream = opening.picture_stream(container)
        set_threads(stream, threads)
        self.codec = stream.codec_context.codec.canonical_name
        stream.codec_context.options = dict(stream.codec_context.options or {}) | {"skip_loop_filter": "all"}
        stream.codec_context.skip_frame = LEFT_OUT.get(self.codec, "DEFAULT")
        self.container, self.stream = container, stream
        self.pictures = Pictures(container, stream)
        self.packets, self.starts = packets, starts
        self.grey = VideoReformatter()
        self.probes: OrderedDict[float, np.ndarray | None] = OrderedDict()

    def probe(self, frame: VideoFrame) -> np.ndarray:
        """(90, 160) uint8."""
        small = self.grey.reformat(frame, PROBE_WIDTH, PROBE_HEIGHT, "gray", interpolation="AREA", threads=1)
        return np.ascontiguousarray(small.to_ndarray())

    def keyframe(self, seconds: float) -> np.ndarray | None:
        """The probe of the keyframe at exactly that second; None where it is damaged."""
        if seconds in self.probes:
            self.probes.move_to_end(seconds)
            return self.probes[seconds]
        number = int(np.searchsorted(self.starts, seconds + EXACT, side="right")) - 1
        found = self.pictures.keyframe(float(self.starts[number]), number)
        self.probes[seconds] = self.probe(found[1]) if found else None
        if len(self.probes) > KEPT_PROBES:
            self.probes.popitem(last=False)
        return self.probes[seconds]

    def play(self, start: float, end: float) -> Iterator[tuple[float, VideoFrame]]:
        """(seconds, frame) of the pictures others refer to in [start, end), from the keyframe at or before `start`."""
        number = max(0, int(np.searchsorted(self.starts, start + EXACT, side="right")) - 1)
        if not self.pictures.land(float(self.starts[number]), number):
            return
        assert self.pictures.packets is not None
        for seconds, frame in self.pictures.play(self.pictures.packets):
            if seconds >= end - EXACT:
                return
            if seconds >= start - EXACT:
                yield seconds, frame

    def count(self) -> Iterator[tuple[float, VideoFrame]]:
        """(seconds, frame) of every picture of a file whose own times cannot be used."""
        self.stream.codec_context.skip_frame = "DEFAULT"
        frames = self.pictures.decode(self.container.demux(self.stream))
        yield from zip(self.packets.shown.tolist(), frames, strict=False)

    def every(self, begin: float, end: float, counted: bool) -> Iterator[tuple[float, VideoFrame]]:
        return self.count() if counted else self.play(begin, end)

    def probes_in(self, start: float, end: float, step: float, counted: bool = False) -> Iterator[Look]:
        """Probes at least `step` seconds apart."""
        latest = -np.inf
        for seconds, frame in self.every(start, end, counted):
            if seconds >= latest + step - EXACT:
                latest = seconds
                yield seconds, self.probe(frame)

    def looks(self, start: float, end: float, counted: bool = False) -> Iterator[tuple[float, np.ndarray, list[Shot]]]:
        """(seconds, probe, shots between it and the one before) at least `STEP` apart.

        The shots are not made into probes yet: only where something has changed that tells when.
        """
        latest, held = -np.inf, list[Shot]()
        for seconds, frame in self.every(start, end, counted):
            if seconds >= latest + STEP - EXACT:
                yield seconds, self.probe(frame), held
                latest, held = seconds, []
            elif seconds >= (held[-1][0] if held else latest) + FINE_STEP and frame.width * frame.height <= HELD:
                held.append((seconds, frame))


def learn(film: Film) -> Eye:
    """What is usual: within the groups of some keyframes, and where keyframes are dense, from one to the next."""
    near, far = [], []
    keyframes = film.packets.keyframes
    dense = len(keyframes) > FEWEST_PAIRS and np.median(np.diff(keyframes)) <= SHORT_GAP
    row_length = 1 + min(LONGEST_ROW, -(-PAIRS // max(1, len(keyframes))))
    for number in spread(np.arange(len(keyframes))):
        start = float(keyframes[number])
        row = list(itertools.islice(film.probes_in(start, np.inf, NEAR), row_length))
        near += [block_differences(one, other) for (_, one), (_, other) in itertools.pairwise(row)]
        following = keyframes[number + 1 : number + 2].tolist()
        if following and dense:
            one, other = film.keyframe(start), film.keyframe(following[0])
            if one is not None and other is not None:
                far.append(block_differences(one, other))
    return Eye.learn(near, far)


def spread(values: np.ndarray) -> list[Any]:
    """At most `PAIRS` of them, evenly."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(PAIRS, len(values))).astype(int))].tolist()


def watch_keyframes(
    file: BinaryIO,
    shown: np.ndarray,
    sizes: np.ndarray,
    is_key: np.ndarray,
    starts: np.ndarray,
    begin: float,
    end: float,
    refine: bool,
) -> Iterator[Message]:
    """Changes in [begin, end): keyframes are compared far apart and closer where they differ or packets tell.

    `begin` and `end` are keyframes, or the ends of the film. `refine` allows to decode between two keyframes.
    """
    with opening.open_container(file) as container:
        film = Film(container, Packets(shown, sizes, is_key), starts)
        eye = learn(film)
        yield "eye", eye.thresholds
        keyframes = film.packets.keyframes
        keyframes = keyframes[(keyframes >= begin - EXACT) & (keyframes <= end + EXACT)]
        yield from Leap(film, eye, keyframes, refine).changes(end)


class Leap:
    """The search between keyframes."""

    def __init__(self, film: Film, eye: Eye, keyframes: np.ndarray, refine: bool) -> None:
        self.film, self.eye, self.refine = film, eye, refine
        self.untold = restlessness(film.packets) >= TELLING  # packets may not tell of a change
        self.quiet = restlessness(film.packets) < QUIET  # they tell of what comes and goes
        self.agreed = self.trusted = 0  # parts looked into in a row whose packets told the truth; and not looked into
        self.audit = FIRST_AUDIT
        self.seen, self.clear = suspects(film.packets)
        self.keyframes = keyframes

    def changes(self, end: float) -> Iterator[Message]:
        keyframes, first = self.keyframes, 0
        while first < len(keyframes) - 1:
            stride = STRIDE if self.quiet and self.agreed >= TRUST else 0.0
            beyond = int(np.searchsorted(keyframes, keyframes[first] + stride, side="right"))
            last = min(max(first + 1, beyond - 1), len(keyframes) - 1)
            yield from self.between(first, last)
            yield "at", float(keyframes[last])
            first = last
        probe = self.film.keyframe(float(keyframes[-1])) if len(keyframes) else None
        after_last = probe is not None and end > keyframes[-1] + STEP and self.refine
        if after_last and (self.agreed < TRUST or self.told(keyframes[-1], end)):
            probe = yield from self.decode(float(keyframes[-1]), end, None, False)
        yield "last", probe

    def told(self, after: float, until: float) -> list[tuple[float, bool]]:
        """(seconds, clear) of what packets tell of."""
        chosen = (self.seen > after + EXACT) & (self.seen <= until + EXACT)
        return list(zip(self.seen[chosen].tolist(), self.clear[chosen].tolist(), strict=True))

    def between(self, first: int, last: int) -> Iterator[Message]:
        start, end = float(self.keyframes[first]), float(self.keyframes[last])
        told = self.told(start, end)
        one, other = self.film.keyframe(start), self.film.keyframe(end)
        if last == first + 1:
            if one is not None and other is None:  # damaged: what follows it is compared instead
                end, other = self.following(last)
                told = self.told(start, end)
            if one is not None and other is not None:
                yield from self.within(start, end, told, one, other)
            return
        if not told and one is not None and other is not None and not self.eye.change(one, other):
            return
        if told:  # the keyframe before it, and the one after
            before = int(np.searchsorted(self.keyframes, told[0][0] - EXACT)) - 1
            stops = sorted({first, min(max(before, first), last - 1), min(max(before, first), last - 1) + 1, last})
        else:
            stops = [first, (first + last) // 2, last]
        for one_stop, next_stop in zip(stops, stops[1:], strict=False):
            yield from self.between(one_stop, next_stop)

    def following(self, damaged: int) -> tuple[float, np.ndarray | None]:
        """(seconds, probe) of the first keyframe after a damaged one that can be read."""
        for seconds in self.keyframes[damaged + 1 : damaged + 1 + MOST_DAMAGED].tolist():
            if (probe := self.film.keyframe(seconds)) is not None:
                return seconds, probe
        return float(self.keyframes[damaged]), None

    def within(
        self,
        start: float,
        end: float,
        told: list[tuple[float, bool]],
        one: np.ndarray,
        other: np.ndarray,
    ) -> Iterator[Message]:
        """Changes between neighbouring keyframes."""
        changed = self.eye.change(one, other, FILM_SENSITIVITY if self.eye.is_film else 1.0)
        clear = [seconds for seconds, is_clear in told if is_clear]
        if not changed and len(clear) < 2 or not self.refine and not clear:
            if changed:
                yield "change", end, changed, one
        elif changed and (clear or not told) and self.trusts_packets() or not self.refine:
            told_of = clear or [end]
            sizes = [self.largest_from(seconds) for seconds in told_of]
            for number, (seconds, size) in enumerate(zip(told_of, sizes, strict=True)):  # between them it is not looked
                yield "change", seconds, changed * size / sum(sizes), None if number else one
        else:
            found = []
            for message in self.decode(start, end, other, bool(changed)):
                found.append(message[1])
                yield message
            foretold = clear or [end]
            agree = len(found) == len(foretold) and np.abs(np.subtract(found, foretold)).max() <= LEAST_GAP
            self.agreed = self.agreed + 1 if agree else 0
            self.audit = min(2 * self.audit, LAST_AUDIT) if self.agreed > TRUST else FIRST_AUDIT

    def largest_from(self, seconds: float) -> float:
        """Bytes of the largest packet of a change that begins then: how much it is beside others."""
        shown = self.film.packets.shown
        first, last = np.searchsorted(shown, [seconds - EXACT, seconds + LONGEST_ONSET])
        return float(self.film.packets.sizes[first : max(last, first + 1)].max(initial=1))

    def trusts_packets(self) -> bool:
        """Whether packets have told of every change that was looked into; now and then it is looked into again."""
        if self.untold or self.agreed < TRUST:
            return False
        self.trusted = (self.trusted + 1) % self.audit
        return self.trusted > 0

    def decode(
        self, start: float, end: float, last: np.ndarray | None, changed: bool
    ) -> Generator[Message, None, np.ndarray | None]:
        """Changes found by decoding on from the keyframe at `start`, up to `last`, the picture at `end`.

        Returns the picture shown at the end.
        """
        looks = self.film.looks(start, end)
        _, first, _ = next(looks, (start, None, []))
        if first is None:
            return last
        watch, found = Watch(self.eye, first), False
        at_end: list[tuple[float, np.ndarray, list[Shot]]] = [(end, last, [])] * 2 if last is not None else []
        for seconds, probe, shots in itertools.chain(looks, at_end):
            before = watch.shown
            began = watch.look(seconds, probe, ((second, self.film.probe(frame)) for second, frame in shots))
            if began is not None:
                found = True
                yield "change", began, self.eye.change(before, watch.shown), before
        if changed and not found and last is not None and not self.eye.is_film:  # in a film they differ without a cut
            yield "change", end, self.eye.change(first, last), first
        return watch.shown


def watch_all(
    file: BinaryIO,
    shown: np.ndarray,
    sizes: np.ndarray,
    is_key: np.ndarray,
    starts: np.ndarray,
    begin: float,
    end: float,
    counted: bool,
    threads: int,
) -> Iterator[Message]:
    """Changes in [begin, end) by one pass over the pictures others refer to.

    `counted` where the file's own times cannot be used: then all of them, in file order.
    """
    packets = Packets(shown, sizes, is_key)
    with opening.open_container(file) as container:
        looks = Film(container, packets, starts, threads).probes_in(begin, end, STEP, counted)
        first = [probe for _, probe in itertools.islice(looks, LEARNING)]
    near, far = (deque(lagging(first, lag), maxlen=REMEMBERED) for lag in (1, LAG))
    eye = Eye.learn(near, far)
    yield "eye", eye.thresholds
    if not first:
        yield "last", None
        return
    with opening.open_container(file) as container:
        film = Film(container, packets, starts, threads)
        watch, row = Watch(eye, first[0]), deque(first[:1], maxlen=LAG)
        for number, (seconds, probe, shots) in enumerate(film.looks(begin, end, counted), 1):
            before = watch.shown
            began = watch.look(seconds, probe, ((second, film.probe(frame)) for second, frame in shots))
            if began is not None:
                yield "change", began, watch.eye.change(before, watch.shown), before
            near.append(block_differences(row[-1], probe))
            if len(row) == LAG:
                far.append(block_differences(row[0], probe))
            row.append(probe)
            if number % LEARNING == 0:
                yield "at", watch.began or seconds
                watch.eye = Eye.learn(near, far)
        if watch.began is not None and (share := watch.eye.change(watch.shown, row[-1])):
            yield "change", watch.began, share, watch.shown
        yield "last", row[-1]


def lagging(probes: Sequence[np.ndarray], lag: int) -> list[np.ndarray]:
    return [block_differences(one, other) for one, other in zip(probes, probes[lag:], strict=False)]
