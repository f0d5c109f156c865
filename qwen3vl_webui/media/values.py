"""What people upload and what the model is shown of it, as values: nothing here reads a file.

Sizes are (width, height) in pixels, upright (rotation and EXIF already applied). Times are float seconds of
presentation from the start of the file: `pts * time_base - container.start_time`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

PATCH_SIDE = 32  # one visual token covers 32 x 32 px (patch 16, merged 2 x 2)
SOUND_RATE = 16_000  # samples a second of sound that is listened to, one channel


@dataclass(frozen=True)
class Image:
    """A picture file, or one page of a PDF; pixels are read later by `media.image.read_pixels`.

    `seen` is the size the model is shown, both sides multiples of 32; None until `prompt.py` has planned it.
    """

    path: Path
    digest: str  # sha256 of the file, hex
    width: int
    height: int
    page: int | None = None  # 1-based, when this is a page of a PDF
    seen: tuple[int, int] | None = None

    def at(self, width: int, height: int) -> Image:
        return replace(self, seen=(width, height))

    @property
    def grid(self) -> tuple[int, int]:
        """Merged cells (rows, columns) at the size seen."""
        assert self.seen is not None, "plan the image first: image.at(width, height)"
        return self.seen[1] // PATCH_SIDE, self.seen[0] // PATCH_SIDE

    @property
    def tokens(self) -> int:
        """Visual tokens, without the vision start and end marks."""
        rows, columns = self.grid
        return rows * columns

    @property
    def content_key(self) -> str:
        """Equal keys mean equal pixels at the model's door."""
        return f"image:{self.digest}:{self.page or 0}:{self.seen}"


@dataclass(frozen=True)
class Document:
    """A PDF, unread. `page_sizes` are (width, height) in points (1/72 inch), upright, one per page."""

    path: Path
    digest: str
    page_sizes: tuple[tuple[float, float], ...]

    @property
    def pages(self) -> int:
        return len(self.page_sizes)


@dataclass(frozen=True)
class Clip:
    """A span [start, end) of a video file, probed but not decoded."""

    path: Path
    digest: str
    start: float
    end: float
    width: int
    height: int
    codec: str = ""  # canonical name: h264, hevc, vp9, av1, ...
    container: str = ""  # FFmpeg's format names, comma separated
    fps: float = 0.0  # average rate; for display only, never to compute a time
    audio: bool = False

    @property
    def duration(self) -> float:
        return self.end - self.start

    def between(self, start: float, end: float) -> Clip:
        """The part of this clip inside [start, end); raises ValueError when nothing is left."""
        start, end = max(self.start, start), min(self.end, end)
        if not start < end:
            raise ValueError(f"nothing between {start} and {end}")
        return replace(self, start=start, end=end)


@dataclass(frozen=True)
class Subtitles:
    """A subtitle file beside a video, unread: `form` is srt, vtt, ass or microdvd, `cues` how many lines it has."""

    path: Path
    digest: str
    form: str
    cues: int


@dataclass(frozen=True)
class Cue:
    """Words that are said, or shown, from `start` to `end` seconds."""

    start: float
    end: float
    text: str


Media = Image | Document | Clip | Subtitles


@dataclass(frozen=True)
class Frame:
    """Pixels (height, width, 3) uint8 RGB and the second they are played."""

    seconds: float
    pixels: np.ndarray


def label_of(stamp: float) -> str:
    """What the model reads before the pictures of a moment: the one form of it."""
    return f"<{stamp:.1f} seconds>"


@dataclass(frozen=True)
class FramePlan:
    """A clip as the model will see it: the only place that computes the labels the model reads.

    `patches` holds, per temporal patch, the presentation seconds of its two frames: the same second twice for a
    still moment, or neighbours at most 1 s apart. `width` and `height` are multiples of 32. `captions`, where there are
    some, are texts that stand before each label: what was said since the moment before.
    """

    clip: Clip
    patches: tuple[tuple[float, float], ...]
    width: int
    height: int
    captions: tuple[str, ...] = ()

    @property
    def stamps(self) -> tuple[float, ...]:
        """One second per temporal patch: the mean of its two frames, as the model's own processor computes it."""
        return tuple((first + second) / 2 for first, second in self.patches)

    @property
    def labels(self) -> tuple[str, ...]:
        """The text before each temporal patch, such as `<12.5 seconds>`, behind its caption."""
        captions = self.captions or ("",) * len(self.patches)
        return tuple(caption + label_of(stamp) for caption, stamp in zip(captions, self.stamps, strict=True))

    @property
    def seconds(self) -> Iterator[float]:
        """The seconds of every frame, two per temporal patch, in the order the model reads them."""
        return (second for patch in self.patches for second in patch)

    @property
    def grid(self) -> tuple[int, int]:
        """Merged cells (rows, columns) of one temporal patch."""
        return self.height // PATCH_SIDE, self.width // PATCH_SIDE

    @property
    def tokens_per_patch(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def tokens(self) -> int:
        """Visual tokens of all patches, without labels and vision marks."""
        return len(self.patches) * self.tokens_per_patch

    def patch_key(self, index: int) -> str:
        """Equal keys mean equal pixels of that temporal patch at the model's door."""
        first, second = self.patches[index]
        return f"frames:{self.clip.digest}:{first:.6f}:{second:.6f}:{self.width}x{self.height}"


Part = str | Image | FramePlan  # all an engine ever sees
