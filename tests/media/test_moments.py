"""Plans that follow what a question or a person points at."""

from pathlib import Path

import numpy as np
import pytest

from qwen3vl_webui.errors import MediaError, TooLong
from qwen3vl_webui.media.moments import plan_chosen, shows, with_moments
from qwen3vl_webui.media.sampling import FrameTimes, plan_frames
from qwen3vl_webui.media.values import Clip

PIXELS = (4_096, 786_432)
HOURS = Clip(Path("film"), "film", 0.0, 7200.0, 1920, 1080)


def times(clip: Clip, fps: float = 25.0) -> FrameTimes:
    shown = np.arange(clip.start, clip.end, 1 / fps)
    return FrameTimes(shown, shown[::250])


def test_a_moment_asked_about_is_shown_for_the_same_price() -> None:
    plan = plan_frames(HOURS, times(HOURS), budget=8_192, frame_pixels=PIXELS)
    assert not shows(plan, 2710.0)
    asked = with_moments(plan, times(HOURS), [2710.0])
    assert shows(asked, 2710.0)
    assert 2710.0 in asked.stamps
    assert (len(asked.patches), asked.tokens) == (len(plan.patches), plan.tokens)
    assert list(asked.seconds) == sorted(asked.seconds)
    assert sum(a != b for a, b in zip(asked.patches, plan.patches, strict=True)) == 1


def test_a_moment_already_near_changes_nothing() -> None:
    clip = Clip(Path("short"), "short", 0.0, 30.0, 640, 360)
    plan = plan_frames(clip, times(clip), budget=100_000, frame_pixels=PIXELS)
    assert with_moments(plan, times(clip), [12.0, 12.3]) == plan
    assert with_moments(plan, times(clip), [31.0, -1.0]) == plan


def test_a_moment_between_two_pictures_of_the_plan_is_shown_itself() -> None:
    clip = Clip(Path("short"), "short", 0.0, 30.0, 640, 360)
    plan = plan_frames(clip, times(clip), budget=100_000, frame_pixels=PIXELS)
    asked = with_moments(plan, times(clip), [6.64])  # between 6.5 and 7.0, where something may change
    assert pytest.approx((6.64, 6.64)) in asked.patches and len(asked.patches) == len(plan.patches)


def test_the_picture_on_screen_is_enough_however_long_it_has_been_there() -> None:
    slow = FrameTimes(np.arange(0.0, 30.0, 2.0), np.array([0.0]))
    clip = Clip(Path("slow"), "slow", 0.0, 30.0, 640, 360)
    plan = plan_frames(clip, slow, budget=100_000, frame_pixels=PIXELS)
    assert with_moments(plan, slow, [7.9]) == plan


def test_two_moments_close_together_are_both_shown() -> None:
    plan = plan_frames(HOURS, times(HOURS), budget=2_000, frame_pixels=PIXELS)
    asked = with_moments(plan, times(HOURS), [2710.0, 2715.0, 2720.0])
    assert all(shows(asked, second) for second in (2710.0, 2715.0, 2720.0))
    assert list(asked.seconds) == sorted(asked.seconds)


def test_a_still_shown_long_is_stamped_with_the_second_asked() -> None:
    slides = FrameTimes(np.array([0.0, 600.0, 1200.0]), np.array([0.0]))
    plan = plan_chosen(HOURS, slides, [(900.0, 900.0)], budget=5_000, label_tokens=12, frame_pixels=PIXELS)
    assert plan.stamps == (900.0,)


def test_chosen_moments_are_kept_at_the_largest_size_that_fits() -> None:
    chosen = [(10.0, 10.5), (5.0, 5.0), (5.0, 5.0), (11.0, 14.0)]
    plan = plan_chosen(HOURS, times(HOURS), chosen, budget=900, label_tokens=12, frame_pixels=PIXELS)
    assert plan.patches == pytest.approx(np.array([(5.0, 5.0), (10.0, 10.52), (11.0, 11.0)]), abs=0.05)
    assert 600 < plan.tokens + 3 * 12 <= 900


def test_chosen_moments_that_cannot_be_shown_are_refused() -> None:
    with pytest.raises(TooLong, match="moments"):
        plan_chosen(
            HOURS, times(HOURS), [(float(t),) * 2 for t in range(500)], budget=900, label_tokens=12, frame_pixels=PIXELS
        )
    with pytest.raises(MediaError):
        plan_chosen(HOURS, times(HOURS), [(9000.0, 9000.0)], budget=900, label_tokens=12, frame_pixels=PIXELS)


def test_a_picture_from_just_before_the_moment_is_not_enough() -> None:
    clip = Clip(Path("minute"), "minute", 0.0, 60.0, 640, 360)
    plan = plan_frames(clip, times(clip), budget=100_000, frame_pixels=PIXELS, most_moments=24)
    assert any(46.0 < stamp < 47.0 for stamp in plan.stamps) and not shows(plan, 47.0)
    asked = with_moments(plan, times(clip), [47.0])
    assert 47.0 in asked.stamps and len(asked.patches) == len(plan.patches)
