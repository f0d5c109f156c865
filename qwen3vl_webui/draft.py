"""A message before it is laid out, and what a person set for it: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwen3vl_webui.engine.contract import Priority, Role, SamplingParams
from qwen3vl_webui.media.values import Media, Part

Pair = tuple[float, float]  # seconds of the two frames of a temporal patch


@dataclass(frozen=True)
class Options:
    """What a person set by hand; None: chosen for them.

    `pages` names pages of every PDF of the new message, such as `1-5, 8`; `start` and `end` a span of its videos in
    seconds; `video_tokens` and `image_tokens` the most one video and one picture may cost. `whole` shows videos whole
    also where the question names a span. `moments` are the temporal patches of a video, by the id it is attached with,
    each the seconds of its two frames. `patience` is how many seconds to wait for the storyboard of a long video.
    `subtitles` shows what is said beside what is seen, where there are some.
    """

    sampling: SamplingParams | None = None
    system: str = ""
    fps: float | None = None
    most_moments: int | None = None
    start: float | None = None
    end: float | None = None
    whole: bool = False
    subtitles: bool = True
    moments: Mapping[str, tuple[Pair, ...]] | None = None
    video_tokens: int | None = None
    image_tokens: int | None = None
    pages: str = ""
    patience: float = 0.0
    priority: Priority = "chat"


@dataclass(frozen=True)
class Attached:
    """A file in a message; `id` is what links in the answer call it."""

    media: Media
    id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Draft:
    """A message before it is laid out; or, with `parts`, as it was shown to the model before (`items` are then its
    files only). What is `left_out` had no room: it is not shown, but its files can still be asked about."""

    role: Role
    items: tuple[str | Attached, ...]
    parts: tuple[Part, ...] | None = None
    left_out: bool = False

    @property
    def words(self) -> str:
        return "\n".join(item for item in self.items if isinstance(item, str))

    @property
    def files(self) -> tuple[Attached, ...]:
        return tuple(item for item in self.items if isinstance(item, Attached))
