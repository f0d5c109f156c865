"""Which moments of a clip, at what size, for how many tokens: arithmetic on values, nothing here opens a file.

One visual token covers 32 x 32 px. A picture costs its cells; a temporal patch costs its cells and its label,
however alike its two frames are. So the price of a plan is patches x (cells + label), and choosing is a trade of
moments against size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwen3vl_webui.errors import MediaError, TooLong
from qwen3vl_webui.media.segments import Storyboard, choose_moments, split_pairs
from qwen3vl_webui.media.values import PATCH_SIDE, Clip, FramePlan

CELL = PATCH_SIDE * PATCH_SIDE  # pixels under one visual token
DEFAULT_FPS = 2.0  # what the model was trained with: neighbours half a second apart share a patch
WIDEST_PAIR = 0.5  # seconds between the two frames of a patch; further apart they would blend into a false picture
SHORT = 180.0  # seconds of a clip below which there is room for moments between those at which something changes
SHORT_GAP = 2 / DEFAULT_FPS  # seconds between the moments of such a clip, where they all fit
CALM_GAP = 4.0  # the same where nothing moves but what changes
MOST_MOMENTS = 768  # temporal patches chosen when nobody asks for more
LEGIBLE_SIDE = (
    640  # px, the longer one: the body text of a 1080p slide is still read; below it, drop moments rather than size
)
FEW_MOMENTS = 64  # and with this many moments left, drop size rather than moments
SMALLEST_SIDE = 224  # px, the longer one: below it only colours and shapes remain
FEWEST_MOMENTS = 4
FILM_SIDE = 320  # px: a film gives up size down to here before it gives up moments
DEAR_READING = 60.0  # CPU seconds to decode every frame of a clip, above which moments move to keyframes
FRAME_COST = 1.6e-3  # CPU seconds to decode one 1080p frame
KEYFRAME_REACH = 5.0  # seconds a moment of such a clip may move to reach a keyframe

TOO_LATE = 1.0  # seconds after the first settled picture of a segment from which its keyframe names a wrong second
DEAREST_EARLY = 2.0  # CPU seconds of decoding spent on such pictures in one plan

DOCUMENT_SCALE = 2.0  # 144 dpi: pixels per point
DOCUMENT_LONGEST = 1500  # px
DOCUMENT_LEAST_TOKENS = 512  # per page: below it print is no longer read
# around a moment or page: `<7123.4 seconds>` and two vision marks are 11 with Qwen's tokenizer, 15 with a smaller one
LABEL_TOKENS = 16
PAGE_OVERHEAD = 12  # tokens around a page: vision marks and its "Page 12"


@dataclass(frozen=True, eq=False)
class FrameTimes:
    """When pictures of a clip appear, as rising float64 seconds inside [clip.start, clip.end).

    `shown` has one entry per picture, its presentation time; where the clip starts on a picture that appeared
    before, the first entry is `clip.start`. `keyframes` are those that decode without any other.
    """

    shown: np.ndarray
    keyframes: np.ndarray


def fit_image(
    width: int, height: int, least_pixels: int, most_pixels: int, factor: int = PATCH_SIDE
) -> tuple[int, int]:
    """The size the model is shown a picture at: multiples of `factor`, the shape kept, the area within the limits.

    The same arithmetic as the processor the model was trained with, half to even and all; the area may leave the
    limits where a shape longer than them cannot keep it.
    """
    if max(width, height) > 200 * min(width, height):
        raise MediaError(
            f"This picture is {width} x {height} px: crop it, one side may be at most 200 times the other."
        )
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    if wide * high > most_pixels:
        shrink = math.sqrt(width * height / most_pixels)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
        high = max(factor, math.floor(height / shrink / factor) * factor)
    elif wide * high < least_pixels:
        grow = math.sqrt(least_pixels / (width * height))
        wide, high = math.ceil(width * grow / factor) * factor, math.ceil(height * grow / factor) * factor
    return wide, high


def cells(size: tuple[int, int]) -> int:
    return (size[0] // PATCH_SIDE) * (size[1] // PATCH_SIDE)


def frame_sizes(clip: Clip, frame_pixels: tuple[int, int]) -> list[tuple[int, int]]:
    """Every size this clip can be shown at, the largest first: from its own size down to the least allowed."""
    least, most = frame_pixels
    largest = fit_image(clip.width, clip.height, least, most)
    sizes = [largest]
    for tokens in range(cells(largest) - 1, 0, -1):
        if tokens * CELL < least:
            break
        size = fit_image(clip.width, clip.height, 1, tokens * CELL)
        if size != sizes[-1] and least <= size[0] * size[1] and cells(size) < cells(sizes[-1]):
            sizes.append(size)
    return sizes


def plan_frames(
    clip: Clip,
    times: FrameTimes,
    *,
    budget: int,
    label_tokens: int = 12,
    frame_pixels: tuple[int, int],
    fps: float | None = None,
    most_moments: int | None = None,
    storyboard: Storyboard | None = None,
) -> FramePlan:
    """The moments and the size at which `clip` is shown within `budget` tokens (cells and `label_tokens` each).

    Left alone, it takes two frames a second of a short clip and up to `MOST_MOMENTS` moments of a long one, and
    gives up, in this order: size down to `LEGIBLE_SIDE`, moments down to `FEW_MOMENTS`, size down to
    `SMALLEST_SIDE`, moments, size. An `fps` set by hand is kept, only size is given up; `most_moments` is a ceiling.
    With a `storyboard` of the file, and no `fps`, no patch shows two sides of a change, and what comes with one is
    shown: a clip below `SHORT` seconds in which something moves has these moments among its even ones, others these
    alone, each the same picture twice; of a film, size goes down to `FILM_SIDE` before any moment.
    Raises TooLong when the smallest such plan does not fit, MediaError when the clip shows no picture.
    """
    if not len(times.shown):
        raise MediaError(f"This video shows no picture between {clip.start:.1f} and {clip.end:.1f} seconds.")
    sizes = frame_sizes(clip, frame_pixels)
    most = most_moments if most_moments is not None else MOST_MOMENTS if fps is None else len(times.shown)

    def chosen(most: int) -> list[tuple[float, float]]:
        if storyboard is None or fps is not None:
            return choose(clip, times, DEFAULT_FPS if fps is None else fps, most)
        short = clip.duration < SHORT
        whole = clip.duration > storyboard.seen - WIDEST_PAIR  # a part is named to be seen densely
        calm = storyboard.calm and whole
        if short and not calm:
            even = choose(clip, times, DEFAULT_FPS, most)
            apart = split_pairs(even, storyboard, clip.start, clip.end)
            if len(apart) <= most:
                pictures = on_screen_each(times.shown, np.array(apart))
                return sorted({(float(first), float(second)) for first, second in pictures})
        widest = None if not short else CALM_GAP if calm else SHORT_GAP
        moments = np.array(choose_moments(storyboard, clip.start, clip.end, most, widest))
        if short and calm:
            moments = cheap_moments(moments, times, storyboard)
        moments = early_moments(clip, on_screen(times.shown, moments), times, storyboard)
        return [(float(t), float(t)) for t in moments]

    patches = chosen(most)
    legible = FILM_SIDE if storyboard is not None and storyboard.film else LEGIBLE_SIDE

    def count_at(size: tuple[int, int]) -> int:
        return budget // (cells(size) + label_tokens)

    def at_most(side: int) -> tuple[int, int]:
        """The largest size whose sides are no longer than `side`; the smallest of all where none is."""
        return next((size for size in sizes if max(size) <= side), sizes[-1])

    if count_at(sizes[-1]) < (1 if fps is None else len(patches)):
        raise too_long(clip, patches, sizes[-1], budget, label_tokens, count_at(sizes[-1]))
    if fps is None:
        for side, few in ((legible, FEW_MOMENTS), (SMALLEST_SIDE, FEWEST_MOMENTS), (0, 1)):
            room = count_at(at_most(side))
            if room >= min(few, len(patches)):
                if room < len(patches):
                    patches = chosen(room)
                break
            if len(patches) > few:
                patches = chosen(few)
    width, height = next(size for size in sizes if count_at(size) >= len(patches))
    return FramePlan(clip, tuple(patches), width, height)


def choose(clip: Clip, times: FrameTimes, fps: float, most: int) -> list[tuple[float, float]]:
    """At most `most` temporal patches, evenly over the clip, the first and the last picture among them.

    Neighbours share a patch where all of them fit at 2 fps or more; else each moment is its own patch, twice the
    same picture. Pictures that stay on screen longer than the spacing are taken once.
    """
    if fps <= 0 or most < 1:
        raise ValueError(f"{fps} fps and at most {most} moments choose nothing")
    first, last = float(times.shown[0]), float(times.shown[-1])
    step = 1 / fps
    pairs = math.floor((last - first + 1e-6) / (2 * step)) + 1
    if step <= WIDEST_PAIR and pairs <= most:
        starts = on_screen(times.shown, first + np.arange(pairs) * 2 * step)
        patches = [(float(t), float(on_screen(times.shown, t + step))) for t in starts]
        near_end = float(times.shown[np.searchsorted(times.shown, last - step - 1e-6)])
        return [*patches[:-1], (max(patches[-1][0], near_end), last)]
    count = math.floor((last - first + 1e-6) / step) + 1
    if min(count, most) == 1:
        middle = float(on_screen(times.shown, (first + last) / 2))
        return [(middle, middle)]
    if count > most:
        moments: np.ndarray = np.linspace(first, last, most)
    else:
        moments = first + np.arange(count) * step
        beyond = last - moments[-1] > step / 2 and count < most
        moments = np.append(moments if beyond else moments[:-1], last)
    moments = on_screen(times.shown, moments)
    moments[1:-1] = near_keyframes(clip, times, moments[1:-1], max(step, (last - first) / (most - 1)))
    return [(float(t), float(t)) for t in np.unique(moments)]


def cheap_moments(moments: np.ndarray, times: FrameTimes, storyboard: Storyboard) -> np.ndarray:
    """Those that stand for no segment of a calm video moved to a keyframe of their segment, where one is near."""
    keyframes = times.keyframes
    if not len(keyframes):
        return moments
    nearest = keyframes[np.abs(keyframes[None] - moments[:, None]).argmin(axis=1)]
    starts = [segment.start for segment in storyboard.segments]
    together = np.searchsorted(starts, nearest, side="right") == np.searchsorted(starts, moments, side="right")
    free = ~np.isin(moments, [segment.seconds for segment in storyboard.segments])
    return np.where(free & together & (np.abs(nearest - moments) <= CALM_GAP / 2), nearest, moments)


def early_moments(clip: Clip, moments: np.ndarray, times: FrameTimes, storyboard: Storyboard) -> np.ndarray:
    """`moments` that stand for a segment and are late in it moved to its first settled picture, so that an answer names
    the second at which it came; the cheapest to decode first, as long as that is worth it."""
    late = {
        segment.seconds: segment.early
        for segment in storyboard.segments
        if segment.early is not None and segment.early >= clip.start and segment.seconds - segment.early > TOO_LATE
    }
    prices: list[tuple[float, int]] = []
    for number, second in enumerate(moments.tolist()):
        if second in late:
            first, key = np.searchsorted(times.shown, [late[second], key_before(times, late[second])])
            prices.append((decoding_cost(clip, int(first - key)), number))
    moved, spent = moments.copy(), 0.0
    for price, number in sorted(prices):
        spent += price
        if spent > DEAREST_EARLY:
            break
        moved[number] = late[float(moments[number])]
    return np.unique(moved)


def key_before(times: FrameTimes, second: float) -> float:
    """The keyframe from which the picture at a second is decoded."""
    number = int(np.searchsorted(times.keyframes, second + 1e-6, side="right")) - 1
    return float(times.keyframes[number]) if number >= 0 else float(times.shown[0])


def on_screen(shown: np.ndarray, seconds: np.ndarray | float) -> np.ndarray:
    """The start of the picture on screen at `seconds`: the last that is not later; the first where none is. Of several
    seconds each picture once, rising."""
    found = on_screen_each(shown, np.asarray(seconds))
    return np.unique(found) if np.ndim(seconds) else found


def on_screen_each(shown: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The same for every one of `seconds`, in their shape."""
    return shown[np.maximum(np.searchsorted(shown, seconds + 1e-6, side="right") - 1, 0)]


def decoding_cost(clip: Clip, pictures: int) -> float:
    """CPU seconds to decode so many pictures of a clip."""
    return pictures * FRAME_COST * clip.width * clip.height / (1920 * 1080)


def near_keyframes(clip: Clip, times: FrameTimes, moments: np.ndarray, spacing: float) -> np.ndarray:
    """`moments` moved to the nearest keyframe where that is near: a keyframe costs one frame to read, any other
    moment every frame since its keyframe."""
    keyframes = times.keyframes
    if len(keyframes) < 2 or not len(moments):
        return moments
    gap = float(np.median(np.diff(keyframes)))
    dear = decoding_cost(clip, len(times.shown)) > DEAR_READING
    reach = max(spacing / 2, KEYFRAME_REACH if dear else 0.0)
    if spacing < gap and not dear:
        return moments
    right = np.clip(np.searchsorted(keyframes, moments), 1, len(keyframes) - 1)
    left = right - 1
    nearest = np.where(moments - keyframes[left] <= keyframes[right] - moments, keyframes[left], keyframes[right])
    return np.where(np.abs(nearest - moments) <= reach, nearest, moments)


def too_long(
    clip: Clip, patches: Sequence[tuple[float, float]], size: tuple[int, int], budget: int, label: int, room: int
) -> TooLong:
    need = len(patches) * (cells(size) + label)
    if room < 1:
        fitting = "free some of the context, or leave this video out"
    else:
        fitting = (
            f"at most {room} moments fit, one every {clip.duration / room:.1f} seconds, or ask about a shorter span"
        )
    return TooLong(
        f"{len(patches)} moments of this video need at least {need} tokens and {max(budget, 0)} are free: {fitting}."
    )


def page_size(points: tuple[float, float], tokens: int, image_pixels: tuple[int, int]) -> tuple[int, int]:
    """The pixels of a page within `tokens`: at most 144 dpi and 1500 px on the longest side."""
    scale = min(DOCUMENT_SCALE, DOCUMENT_LONGEST / max(points))
    width, height = (max(1, round(side * scale)) for side in points)
    least, most = image_pixels
    return fit_image(width, height, min(least, tokens * CELL), min(most, tokens * CELL))


def fit_document(
    page_sizes: Sequence[tuple[float, float]],
    budget: int,
    *,
    image_pixels: tuple[int, int] = (65_536, 16_777_216),
    page_overhead: int = PAGE_OVERHEAD,
) -> list[tuple[int, int]]:
    """The (width, height) each page is shown at, all within `budget` tokens: `page_overhead` and its cells each.

    `page_sizes` are in points. Pages shrink together, down to 512 tokens (or what `image_pixels` allows); raises
    TooLong, naming how many pages would fit, when even that is too much.
    """

    def plan(tokens: int) -> list[tuple[int, int]]:
        return [page_size(points, tokens, image_pixels) for points in page_sizes]

    def cost(sizes: Sequence[tuple[int, int]]) -> int:
        return sum(cells(size) + page_overhead for size in sizes)

    low, high = DOCUMENT_LEAST_TOKENS, math.ceil(DOCUMENT_LONGEST / PATCH_SIDE) ** 2
    smallest = plan(low)
    if cost(smallest) > budget:
        free, fitting = budget, 0
        for size in smallest:
            free -= cells(size) + page_overhead
            if free < 0:
                break
            fitting += 1
        advice = f"ask about at most {fitting} pages at once" if fitting else "free some of the context"
        raise TooLong(
            f"{len(smallest)} pages need at least {cost(smallest)} tokens and {max(budget, 0)} are free: {advice}."
        )
    while low < high:  # the most tokens per page that fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(plan(middle)) <= budget else (low, middle - 1)
    return plan(low)
