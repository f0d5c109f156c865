"""The sound of a video as samples for a recogniser of speech: decoded in the sandbox, streamed, on the clock of the
pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO

import av
import numpy as np

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import container as opening
from qwen3vl_webui.media import sandbox
from qwen3vl_webui.media.values import SOUND_RATE, Clip
from qwen3vl_webui.media.writing import first_sound

BLOCK = 30 * SOUND_RATE  # samples; the most that is held at once
LARGEST_GAP = 0.1  # seconds between pieces of sound that are filled with silence
NO_SOUND = "There is no sound in this video that can be read."


def read_sound(clip: Clip) -> Generator[np.ndarray, None, None]:
    """The sound of the whole film of `clip` from its second 0, without gaps: int16 at `SOUND_RATE`, at most `BLOCK` at
    once.

    Closing the generator ends the reading. Raises MediaError where there is no sound that can be read.
    """
    limits = sandbox.Limits(cpu_seconds=round(120 + 0.1 * clip.end), wall_seconds=600.0 + clip.end)
    left = round((clip.end + 60.0) * SOUND_RATE)
    with contextlib.closing(sandbox.stream(samples, clip.path, clip.end, limits=limits)) as blocks:
        for block in blocks:
            sandbox.check(isinstance(block, np.ndarray) and block.dtype == np.int16 and block.ndim == 1)
            sandbox.check(0 < len(block) <= min(BLOCK, left))
            left -= len(block)
            yield block


# In the sandbox.


def samples(file: BinaryIO, end: float) -> Iterator[np.ndarray]:
    with opening.open_container(file) as container:
        audio = first_sound(container)
        if audio is None:
            raise MediaError(NO_SOUND)
        start, line = opening.start_of(container), Line(round(end * SOUND_RATE))
        packets = container.demux(audio)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError, OSError):  # a file that breaks off is heard as far as it goes
                break
            with contextlib.suppress(av.FFmpegError, ValueError):  # a damaged piece of sound is silence
                for frame in audio.codec_context.decode(packet):
                    at = None if frame.pts is None else float(frame.pts * audio.time_base) - start
                    yield from line.add(frame, at)
        yield from line.finish()


class Line:
    """Pieces of sound laid one after the other, at most `most` samples in all."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0  # samples laid so far
        self.held: list[np.ndarray] = []
        self.size = 0
        self.resampler = self._new_resampler()

    @staticmethod
    def _new_resampler() -> Any:
        return av.AudioResampler(format="s16", layout="mono", rate=SOUND_RATE)

    def add(self, frame: Any, at: float | None) -> Iterator[np.ndarray]:
        """Lays a decoded frame that is heard from second `at` on, behind silence where the file leaves a gap."""
        length = frame.samples / (frame.sample_rate or SOUND_RATE)
        if at is not None and at + length <= 0:  # cut off by an edit list
            return
        if at is not None and at * SOUND_RATE - self.count > LARGEST_GAP * SOUND_RATE:
            yield from self._silence(round(at * SOUND_RATE) - self.count)
        frame.pts = None
        try:
            heard = self.resampler.resample(frame)
        except ValueError:  # another rate or layout from here on
            self.resampler = self._new_resampler()
            heard = self.resampler.resample(frame)
        for piece in heard:
            yield from self._lay(piece.to_ndarray().reshape(-1))

    def _silence(self, count: int) -> Iterator[np.ndarray]:
        while count > 0 and self.count < self.most:
            piece = min(count, BLOCK)
            yield from self._lay(np.zeros(piece, np.int16))
            count -= piece

    def _lay(self, piece: np.ndarray) -> Iterator[np.ndarray]:
        piece = piece[: self.most - self.count]
        self.count += len(piece)
        while len(piece):
            part, piece = piece[: BLOCK - self.size], piece[BLOCK - self.size :]
            self.held.append(part)
            self.size += len(part)
            if self.size == BLOCK:
                yield from self._flush()

    def _flush(self) -> Iterator[np.ndarray]:
        if self.size:
            yield np.concatenate(self.held).astype(np.int16)
        self.held, self.size = [], 0

    def finish(self) -> Iterator[np.ndarray]:
        with contextlib.suppress(av.FFmpegError, ValueError):
            for piece in self.resampler.resample(None):
                yield from self._lay(piece.to_ndarray().reshape(-1))
        yield from self._flush()
