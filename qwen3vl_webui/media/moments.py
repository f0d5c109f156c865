"""Plans changed by what a question or a person points at: arithmetic on values, nothing here opens a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media.sampling import FrameTimes, cells, frame_sizes, on_screen, too_long
from qwen3vl_webui.media.values import Clip, FramePlan

WIDEST = 1.0  # seconds between two frames of a patch that a person chose
STILL = 1.0  # seconds from which on a picture is called by the second that was asked for
NEAR = 0.25  # seconds: "at 0:47" is a picture from 47 on; that of 46.8 or 47.8 may be from before or after a change
SEEN = 0.5  # the same for what was shown in an earlier turn: nearer is not worth showing it again
EXACT = 0.02  # seconds: half a picture, for a clock that is written with two digits
Pair = tuple[float, float]


def shows(plan: FramePlan, second: float) -> bool:
    """Whether the model sees a picture of about that second."""
    return any(map(_has(second, second, SEEN), plan.patches))


def _has(picture: float, second: float, near: float) -> Callable[[Pair], bool]:
    """Whether a patch shows the `picture` that is on screen at a second, or one that comes soon after."""
    return lambda patch: any(abs(shown - picture) < EXACT or 0 <= shown - second < near for shown in patch)


def with_moments(plan: FramePlan, times: FrameTimes, seconds: Sequence[float]) -> FramePlan:
    """The plan with every one of `seconds` among its moments: where none is in it, the nearest moment moves there, so
    the plan costs what it did and keeps the rest of the clip in view."""
    patches = list(plan.patches)
    kept: set[int] = set()
    for second in seconds:
        if not plan.clip.start <= second < plan.clip.end:
            continue
        picture = float(on_screen(times.shown, second))
        there = [index for index, patch in enumerate(patches) if _has(picture, second, NEAR)(patch)]
        free = [index for index in range(len(patches)) if index not in kept]
        if not there and free:
            nearest = min(free, key=lambda index: abs(sum(patches[index]) / 2 - second))
            patches[nearest] = (_stamp(times, second),) * 2
            there = [nearest]
        kept.update(there[:1])
    return replace(plan, patches=tuple(_rising(patches)))


def plan_chosen(
    clip: Clip,
    times: FrameTimes,
    chosen: Sequence[Pair],
    *,
    budget: int,
    label_tokens: int,
    frame_pixels: tuple[int, int],
) -> FramePlan:
    """A plan of the moments a person chose, at the largest size that fits `budget` tokens.

    Each of `chosen` is the seconds of a temporal patch's two frames; further apart than a second they become one.
    Raises TooLong when they do not fit at the smallest size, MediaError when none lies in the clip.
    """
    inside = [pair for pair in chosen if clip.start <= pair[0] < clip.end]
    if not inside or not len(times.shown):
        raise MediaError("None of the chosen moments lies in this video. Add some, or let them be chosen for you.")
    patches = _rising([(_stamp(times, first), _stamp(times, max(first, second))) for first, second in inside])
    sizes = frame_sizes(clip, frame_pixels)
    for width, height in sizes:
        if len(patches) * (cells((width, height)) + label_tokens) <= budget:
            return FramePlan(clip, tuple(patches), width, height)
    raise too_long(clip, patches, sizes[-1], budget, label_tokens, budget // (cells(sizes[-1]) + label_tokens))


def _stamp(times: FrameTimes, second: float) -> float:
    """The start of the picture on screen; of a still that began long before, the second itself."""
    start = float(on_screen(times.shown, second))
    return start if second - start <= STILL else second


def _rising(patches: Sequence[Pair]) -> list[Pair]:
    """In order, no moment twice, and no patch reaching into the next or over more than a second."""
    rising: list[Pair] = []
    for first, second in sorted(set(patches)):
        if rising and first <= rising[-1][0] + 1e-6:
            continue
        if rising and rising[-1][1] > first:
            rising[-1] = (rising[-1][0],) * 2
        rising.append((first, second if second - first <= WIDEST else first))
    return rising
