"""Writing MP4 that browsers play: packets copied, or pictures and sound encoded again. Runs in the sandbox."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.packet import Packet
from av.video.reformatter import VideoReformatter

from qwen3vl_webui.media import container as opening
from qwen3vl_webui.media.pictures import EXACT, THREADS, Pictures, first_picture, set_threads

SOUND_IN_MP4 = {"h264": {"aac", "mp3"}, "vp9": {"aac", "mp3", "opus"}, "av1": {"aac", "mp3", "opus"}}
SOUND_CODECS = ("aac", "mp3", "mp2", "ac3", "eac3", "opus", "vorbis", "flac", "wmav2")  # and every pcm_*
TALLEST = 720  # px, the shorter side of an encoded copy
CLOCK = Fraction(1, 90_000)
STEP = 0.01  # of the whole, between two reports of progress


def first_sound(container: Any) -> Any:
    """The first stream of sound that can be read, or None."""
    for audio in container.streams.audio:
        name = audio.codec_context.codec.canonical_name if audio.codec_context else ""
        if name in SOUND_CODECS or name.startswith("pcm_"):
            return audio
    return None


def copy(file: BinaryIO, target: BinaryIO, end: float) -> Iterator[float]:
    """The packets of `file` as MP4 in `target`, starting at 0, the index in front; yields the finished part."""
    with opening.open_container(file) as container:
        kept = [opening.picture_stream(container), first_sound(container)]
        packets = sum(1 for packet in container.demux([stream for stream in kept if stream is not None]) if packet.size)
    for bytes_each in (20, 48):  # the index does not fit: once more with more room
        file.seek(0)
        target.seek(0)
        target.truncate()
        try:
            with opening.open_container(file) as container, open_mp4(target, packets, bytes_each) as written:
                yield from copy_packets(container, written, end)
            return
        except av.ArgumentError:
            if bytes_each == 48:
                raise


def open_mp4(target: BinaryIO, packets: int, bytes_each: int = 48) -> Any:
    """An MP4 to write into an open file. `faststart` would open the file by name, so room for the index is kept."""
    return av.open(target, "w", format="mp4", options={"moov_size": str(packets * bytes_each + (64 << 10))})


def copy_packets(container: Any, written: Any, end: float) -> Iterator[float]:
    stream, sound = opening.picture_stream(container), first_sound(container)
    codec = stream.codec_context.codec.canonical_name
    start = opening.start_of(container)
    outputs = {stream.index: written.add_stream_from_template(stream, opaque=True)}
    streams, encoder = [stream], None
    if sound is not None:
        streams.append(sound)
        if sound.codec_context.codec.canonical_name in SOUND_IN_MP4[codec]:
            outputs[sound.index] = written.add_stream_from_template(sound, opaque=True)
        else:
            encoder = Sound(written, sound, start)
    queues = {other.index: Rising(other, start) for other in streams if other.index in outputs}
    report = Report(end)
    for packet in container.demux(streams):
        if packet.stream.index not in outputs:
            assert encoder is not None
            encoder.add(packet)
            continue
        for ready in queues[packet.stream.index].add(packet):
            seconds = float((ready.pts or 0) * ready.time_base)
            ready.stream = outputs[ready.stream.index]
            written.mux(ready)
            yield from report.at(seconds)
    if encoder is not None:
        encoder.finish()


class Rising:
    """Packets of one stream with every DTS known and rising, its clock starting at 0.

    A packet without DTS must not be dropped: in MKV with B-frames these are the first, a keyframe among them.
    """

    def __init__(self, stream: Any, start: float) -> None:
        self.shift = round(Fraction(start) / stream.time_base)
        self.held: list[Packet] = []
        self.last: int | None = None
        self.step = 1

    def add(self, packet: Packet) -> Iterator[Packet]:
        """The packets that are ready now; the empty packet that ends a stream brings the last ones."""
        if packet.size and packet.pts is not None:
            self.held.append(packet)
        if not self.held or (packet.size and packet.dts is None):
            return
        times = [(held.pts or 0) - self.shift for held in self.held]
        end = min(times) if packet.dts is None else packet.dts - self.shift
        length = max(1, self.held[0].duration or 1)
        for number, (held, pts) in enumerate(zip(self.held, times, strict=True)):
            missing = min(pts, end - (len(times) - 1 - number) * length)
            dts = missing if held.dts is None else held.dts - self.shift
            if self.last is not None:
                dts = max(dts, self.last + 1)  # the muxer refuses what ffmpeg would repair
                self.step = dts - self.last
            held.pts, held.dts, self.last = max(pts, dts), dts, dts
            held.duration = held.duration or self.step  # FLV has none, and without the last picture is cut off
            yield held
        self.held = []


class Report:
    """Finished parts, 0 to 1, at most one every `STEP`."""

    def __init__(self, end: float) -> None:
        self.end, self.told = max(end, 1e-6), -1.0

    def at(self, seconds: float) -> Iterator[float]:
        done = min(max(seconds / self.end, 0.0), 1.0)
        if done >= self.told + STEP:
            self.told = done
            yield done


class Sound:
    """One stream of sound, decoded and encoded again as AAC, 128 kb/s."""

    def __init__(self, written: Any, source: Any, start: float) -> None:
        self.written, self.source, self.start = written, source, start
        rate = source.codec_context.sample_rate
        rate = rate if rate in (32_000, 44_100, 48_000) else 48_000
        self.output = written.add_stream("aac", rate=rate, layout="stereo")
        self.output.bit_rate = 128_000
        self.resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate)
        self.clock = Fraction(1, rate)
        self.next = 0

    def add(self, packet: Packet) -> None:
        with contextlib.suppress(av.FFmpegError):  # a damaged piece of sound is silence
            for frame in self.source.codec_context.decode(packet):
                self._resample(frame)

    def _resample(self, frame: Any) -> None:
        if frame is not None and frame.pts is not None:
            seconds = float(frame.pts * self.source.time_base) - self.start
            # Sound is counted in samples; where the file leaves a gap the count follows it.
            position = round(seconds / self.clock)
            if abs(position - self.next) > 0.1 / self.clock:
                self.next = max(self.next, position)
        if frame is not None:
            frame.pts = None
        for ready in self.resampler.resample(frame):
            ready.pts, ready.time_base = self.next, self.clock
            self.next += ready.samples
            self.written.mux(self.output.encode(ready))

    def finish(self) -> None:
        self._resample(None)
        self.written.mux(self.output.encode(None))


def encode(file: BinaryIO, target: BinaryIO, shown: np.ndarray, seekable: bool) -> Iterator[float]:
    """The film as H.264 and AAC in `target`; yields the finished part. Where PTS cannot be used (not `seekable`)
    the n-th picture out of the decoder is shown at `shown[n]`."""
    if hasattr(os, "nice"):
        os.nice(10)  # in the background: answers come first
    first = first_picture(file)
    with opening.open_container(file) as container:
        stream, sound = opening.picture_stream(container), first_sound(container)
        set_threads(stream, THREADS)
        report = Report(float(shown[-1]))
        with open_mp4(target, len(shown) + round(shown[-1] * 50) + 1000) as written:
            decoder = Pictures(container, stream)
            pictures = Film(written, shown, first, opening.pixel_aspect(stream))
            encoder = Sound(written, sound, opening.start_of(container)) if sound is not None else None
            number = 0
            for packet in container.demux([one for one in (stream, sound) if one is not None]):
                if encoder is not None and packet.stream.index == sound.index:
                    encoder.add(packet)
                    continue
                for frame in decoder.push(packet):
                    if seekable:
                        seconds = decoder.seconds(frame.pts) if frame.pts is not None else -1.0
                    else:
                        seconds = float(shown[min(number, len(shown) - 1)])
                    number += 1
                    if seconds >= shown[0] - EXACT:
                        pictures.add(frame, seconds)
                        yield from report.at(seconds)
            pictures.finish()
            if encoder is not None:
                encoder.finish()


class Film:
    """Pictures encoded as H.264, a keyframe every 2 seconds; the rotation mark is kept. `tallest` is the most pixels of
    the shorter side, `quality` x264's crf."""

    def __init__(
        self,
        written: Any,
        shown: np.ndarray,
        first: Any,
        aspect: float,
        *,
        tallest: int = TALLEST,
        quality: str = "26",
    ) -> None:
        self.written = written
        self.reformatter = VideoReformatter()
        width, height = opening.upright_size(first.width, first.height, aspect, 0)
        scale = min(1.0, tallest / min(width, height))
        fps = min(60, max(1, round(len(shown) / max(float(shown[-1] - shown[0]), 1.0))))
        self.output = written.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": quality})
        self.output.width, self.output.height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
        self.output.pix_fmt = "yuv420p"
        context = self.output.codec_context
        context.time_base, context.gop_size, context.thread_count = CLOCK, 2 * fps, THREADS
        if first.rotation:
            self.output.set_display_rotation(first.rotation)
        self.last = -1

    def add(self, frame: Any, seconds: float) -> None:
        size = (self.output.width, self.output.height)
        small = self.reformatter.reformat(frame, *size, "yuv420p", interpolation="AREA", threads=1)
        small.pict_type = 0  # else the encoder repeats the source's choice of keyframes
        ticks = round(seconds / CLOCK)
        small.pts = self.last = max(ticks, self.last + 1)
        small.time_base = CLOCK
        self.written.mux(self.output.encode(small))

    def finish(self) -> None:
        self.written.mux(self.output.encode(None))
