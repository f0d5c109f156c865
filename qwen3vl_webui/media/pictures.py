"""Decoding chosen pictures of one video as cheaply as the file allows. Everything here runs in the sandbox."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import container as opening

EXACT = 1e-6  # seconds: PTS are compared within the rounding of container.start_time
NEXT_DOOR = 3  # keyframes ahead that are reached by reading packets on; further ones by seeking
READ_ON = 1.0  # seconds: a start this little ahead of the last picture is reached by decoding on
FAR_OFF = 0.5  # seconds: a picture this far from the wanted one makes a damaged part worth a second try
THREADS = min(4, os.cpu_count() or 1)  # each holds frames, and the address space is limited

Picture = tuple[float, VideoFrame]


class Pictures:
    """A stream that can be asked for pictures by their exact seconds, in rising order.

    A damaged packet costs the pictures up to the next keyframe: later ones would decode, but wrongly.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self.decoder = stream.codec_context
        self.base, self.offset = float(stream.time_base or 1), opening.start_of(container)
        self.packets: Iterator[Packet] | None = None  # where the file is being read
        self.number = -1  # of the start last passed on `packets`
        self.frames: Iterator[Picture] | None = None  # None: the decoder was drained
        self.shown: Picture | None = None  # the latest not after the latest wanted
        self.ahead: Picture | None = None  # the first after it
        self.whole = False  # whether everything the next packet refers to was decoded

    def seconds(self, pts: int) -> float:
        return pts * self.base - self.offset

    def land(self, start: float, number: int) -> bool:
        """Puts `packets` on the keyframe at `start`. A seek goes by DTS and may land after it: step back then."""
        self.frames = self.shown = self.ahead = None
        for back in (0.0, 2.0, 10.0, None):
            self.decoder.flush_buffers()
            try:
                if back is None:
                    self.container.seek(self.container.start_time or 0)
                else:
                    self.container.seek(round((start - back + self.offset) / self.base), stream=self.stream)
            except (av.FFmpegError, OSError):
                continue
            self.packets = self.container.demux(self.stream)
            if self.pass_on(start, number):
                return True
        return False

    def pass_on(self, start: float, number: int) -> bool:
        """Reads packets on until the next of `packets` is the keyframe at `start`; False when it did not come."""
        assert self.packets is not None
        try:
            for packet in self.packets:
                if not packet.size:
                    return False
                if not packet.is_keyframe or packet.pts is None:
                    continue
                if abs(self.seconds(packet.pts) - start) <= EXACT:
                    self.packets = chain([packet], self.packets)
                    self.number = number
                    return True
                if self.seconds(packet.pts) > start:
                    return False
        except (av.FFmpegError, OSError):
            pass
        return False

    def keyframe(self, start: float, number: int) -> Picture | None:
        """The keyframe at `start`, decoded alone; None when it is damaged. `number` counts the starts of the file."""
        near = self.packets is not None and 0 < number - self.number <= NEXT_DOOR
        if not (near and self.pass_on(start, number)) and not self.land(start, number):
            return None
        self.frames = self.shown = self.ahead = None
        self.decoder.flush_buffers()  # a drained decoder takes no packet until it is flushed
        assert self.packets is not None
        try:  # a stream with B-frames holds its keyframe back until it is drained
            frames = self.decoder.decode(next(self.packets)) or self.decoder.decode(None)
        except (av.FFmpegError, OSError):
            frames = []
        pictures = ((self.seconds(frame.pts), frame) for frame in frames if frame.pts is not None)
        return next((picture for picture in pictures if abs(picture[0] - start) <= EXACT), None)

    def at(self, seconds: float, start: float, number: int) -> Picture | None:
        """The picture at `seconds`, decoded from the keyframe at `start`; the nearest one where it is damaged."""
        latest = self.ahead or self.shown
        if self.frames is None or latest is None or start - latest[0] > READ_ON or seconds < latest[0] - EXACT:
            if not self.land(start, number):
                return None
            assert self.packets is not None
            self.frames = self.play(self.packets)
        for picture in chain([self.ahead] if self.ahead else [], self.frames):
            self.ahead = None
            if picture[0] > seconds + EXACT:
                self.ahead = picture
                break
            self.shown = picture
            if picture[0] >= seconds - EXACT:
                break
        found = [picture for picture in (self.shown, self.ahead) if picture is not None]
        return min(found, key=lambda picture: abs(picture[0] - seconds), default=None)

    def play(self, packets: Iterable[Packet]) -> Iterator[Picture]:
        """Every picture that decodes from `packets`, in the order shown."""
        for frame in self.decode(packets):
            if frame.pts is not None:
                yield self.seconds(frame.pts), frame

    def decode(self, packets: Iterable[Packet]) -> Iterator[VideoFrame]:
        self.whole = False
        try:
            for packet in packets:
                yield from self.push(packet)
        except (av.FFmpegError, OSError):  # the file breaks off here
            pass

    def push(self, packet: Packet) -> list[VideoFrame]:
        """The pictures that come out when `packet` goes in; the empty packet at the end brings the last ones."""
        self.whole = self.whole or packet.is_keyframe
        if packet.size and not self.whole:
            return []
        try:
            return self.decoder.decode(packet)
        except av.FFmpegError:
            self.decoder.flush_buffers()
            self.whole = False
            return []


class Resize:
    """Upright RGB at the wanted size, scaled while converting so that a full-size copy is never made."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        turns = int(frame.rotation) % 360 // 90
        width, height = (self.height, self.width) if turns % 2 else (self.width, self.height)
        small = self.reformatter.reformat(frame, width, height, "rgb24", interpolation="AREA", threads=1)
        return np.ascontiguousarray(np.rot90(small.to_ndarray(), turns))


def first_picture(file: BinaryIO) -> VideoFrame:
    """The first picture that decodes: proof that the file can be shown, its size and its rotation."""
    with opening.open_container(file) as container:
        stream = opening.picture_stream(container)
        frame = next(Pictures(container, stream).decode(container.demux(stream)), None)
    if frame is None:
        raise MediaError(opening.DAMAGED)
    return frame


def read_pictures(
    file: BinaryIO, wanted: np.ndarray, starts: np.ndarray, width: int, height: int, threads: int
) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, pixels) for each picture of `wanted`, exact seconds of pictures of this file, rising.

    `starts` are the seconds decoding can start at. A keyframe is decoded alone; anything else is decoded from the
    keyframe before it, or on from the last picture where that is no further.
    """
    numbers = np.maximum(np.searchsorted(starts, wanted + EXACT, side="right") - 1, 0)
    with opening.open_container(file) as container:
        stream = opening.picture_stream(container)
        set_threads(stream, 1 if (starts[numbers] == wanted).all() else threads)
        pictures, resize = Pictures(container, stream), Resize(width, height)
        for seconds, number in zip(wanted.tolist(), numbers.tolist(), strict=True):
            start = float(starts[number])
            found = pictures.keyframe(start, number) if seconds == start else None
            found = found or pictures.at(seconds, start, number)
            if number and (found is None or abs(found[0] - seconds) > FAR_OFF):
                before = pictures.at(seconds, float(starts[number - 1]), number - 1)
                options = [picture for picture in (found, before) if picture is not None]
                found = min(options, key=lambda picture: abs(picture[0] - seconds), default=None)
            if found is None:
                return
            yield found[0], resize(found[1])


def count_pictures(
    file: BinaryIO, wanted: np.ndarray, seconds: np.ndarray, width: int, height: int
) -> Iterator[tuple[float, np.ndarray]]:
    """The `wanted[n]`-th picture out of the decoder as (`seconds[n]`, pixels), in one pass; the last where it ends."""
    with opening.open_container(file) as container:
        stream = opening.picture_stream(container)
        set_threads(stream, THREADS)
        resize = Resize(width, height)
        frames = enumerate(Pictures(container, stream).decode(container.demux(stream)))
        number, frame = next(frames, (0, None))
        for want, time in zip(wanted.tolist(), seconds.tolist(), strict=True):
            while number < want and (following := next(frames, None)) is not None:
                number, frame = following
            if frame is None:
                return
            yield time, resize(frame)


def set_threads(stream: Any, count: int) -> None:
    """Frame threads hold pictures back; a stream read keyframe by keyframe goes without."""
    stream.codec_context.thread_type = "AUTO" if count > 1 else "NONE"
    stream.codec_context.thread_count = count
