"""Which moments of a storyboard a plan shows: finished slides survive, no patch straddles a change, gaps are filled."""

from bisect import bisect_right
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_webui.errors import TooLong
from qwen3vl_webui.media.changes import Packets
from qwen3vl_webui.media.sampling import SHORT, FrameTimes, plan_frames
from qwen3vl_webui.media.segments import Segment, Storyboard, choose_moments, fill, merge, settled
from qwen3vl_webui.media.values import Clip

FRAME_PIXELS = (4_096, 786_432)
LABEL = 12


def board_of(starts: list[float], end: float, *, changes: list[float] | None = None, film: bool = False) -> Storyboard:
    """A segment from each of `starts` to the next, its picture 0.6 s after."""
    ends = [*starts[1:], end]
    changes = changes or [1.0] * len(starts)
    rows = zip(starts, ends, changes, strict=True)
    return Storyboard(
        tuple(Segment(start, end, min(start + 0.6, (start + end) / 2), change) for start, end, change in rows),
        end,
        film,
    )


def clip_of(duration: float) -> tuple[Clip, FrameTimes]:
    shown = np.arange(round(duration * 10)) / 10
    return Clip(Path("film.mp4"), "digest", 0.0, duration, 1920, 1080), FrameTimes(shown, shown[::50])


def test_a_short_clip_is_seen_evenly_and_no_pair_of_frames_straddles_a_change() -> None:
    clip, times = clip_of(12.0)
    board = board_of([0.0, 3.3, 7.0, 7.6, 7.9], 12.0)
    plan = plan_frames(clip, times, budget=100_000, frame_pixels=FRAME_PIXELS, storyboard=board)
    assert [patch for patch in plan.patches if patch[0] < 3] == [(0.0, 0.5), (1.0, 1.5), (2.0, 2.5)]  # as without one
    assert [patch for patch in plan.patches if 3 <= patch[0] < 4] == [(3.0, 3.0), (3.5, 3.5)]  # a change at 3.3
    # something at 7.6 that no pair shows; and the change at 7.6 may have been before 7.5 already
    assert [patch for patch in plan.patches if 7 <= patch[0] < 8] == [(7.0, 7.0), (7.5, 7.5), (7.7, 7.7)]


def test_of_a_short_clip_in_which_nothing_else_moves_little_more_than_its_changes_is_shown() -> None:
    clip, times = clip_of(60.0)  # a keyframe every 5 seconds
    board = replace(board_of([0.0, 13.0, 31.0], 60.0), calm=True)
    plan = plan_frames(clip, times, budget=100_000, frame_pixels=FRAME_PIXELS, storyboard=board)
    moments = [first for first, second in plan.patches if first == second]
    assert len(moments) == len(plan.patches) <= 20 and max(np.diff([0.0, *moments, 60.0])) <= 6
    assert {0.6, 13.6, 31.6} <= set(moments)
    assert sum(moment % 5 == 0 for moment in moments) >= 8  # which are cheap to read


def test_a_segment_is_shown_by_its_first_settled_picture_where_that_is_not_dear() -> None:
    segments = tuple(Segment(20.0 * n, 20.0 * n + 20, 20.0 * n + 15, 0.5, early=20.0 * n + 0.6) for n in range(30))
    board = Storyboard(segments, 600.0, film=False)
    for clip, early in ((clip_of(600.0)[0], False), (replace(clip_of(600.0)[0], width=320, height=180), True)):
        shown = np.arange(600 * 60) / 60  # 36 pictures are decoded for every second segment, 1236 for the others
        times = FrameTimes(shown, shown[:: 40 * 60])
        plan = plan_frames(clip, times, budget=100_000, frame_pixels=FRAME_PIXELS, storyboard=board)
        stamps = [first for first, _ in plan.patches]
        brought = [second for second in stamps if abs(second % 20 - 0.6) < 0.02]
        assert len(brought) + sum(second % 20 == 15 for second in stamps) == 30
        assert len(brought) == (30 if early else 15)


@pytest.mark.parametrize("film", [False, True])
def test_a_short_clip_with_more_changes_than_room_shows_what_changes(film: bool) -> None:
    clip, times = clip_of(60.0)
    board = board_of([float(second) * 1.5 for second in range(40)], 60.0, film=film)
    plan = plan_frames(clip, times, budget=100_000, frame_pixels=FRAME_PIXELS, most_moments=42, storyboard=board)
    seen = {int(first // 1.5) for first, _ in plan.patches}
    assert seen == set(range(40)) and len(plan.patches) <= 42


@st.composite
def boards(draw):
    gaps = draw(st.lists(st.floats(0.7, 90), min_size=1, max_size=120))
    starts = np.round(np.concatenate([[0.0], np.cumsum(gaps)]), 1)
    changes = draw(st.lists(st.floats(0.01, 1), min_size=len(starts), max_size=len(starts)))
    return board_of(starts.tolist(), float(starts[-1]) + 5, changes=changes, film=draw(st.booleans()))


@settings(max_examples=150, deadline=None)
@given(board=boards(), budget=st.integers(0, 60_000), most=st.one_of(st.none(), st.integers(1, 300)))
def test_a_plan_fits_its_budget_and_never_straddles_a_change(board, budget, most):
    clip, times = clip_of(board.seen)
    arguments = {"budget": budget, "label_tokens": LABEL, "frame_pixels": FRAME_PIXELS, "most_moments": most}
    try:
        plan = plan_frames(clip, times, storyboard=board, **arguments)
    except TooLong:
        assert budget < 1000
        return
    assert len(plan.patches) * (plan.tokens_per_patch + LABEL) <= budget
    assert 1 <= len(plan.patches) <= (most or 768)
    assert all(first == second for first, second in plan.patches) or clip.duration < SHORT
    changes = [segment.start for segment in board.segments]
    assert all(bisect_right(changes, first) == bisect_right(changes, second) for first, second in plan.patches)
    seconds = [first for first, _ in plan.patches]
    assert seconds == sorted(set(seconds)) and set(plan.seconds) <= set(times.shown.tolist())
    assert plan_frames(clip, times, storyboard=board, **arguments) == plan


@given(board=boards(), most=st.integers(1, 400))
@settings(max_examples=150, deadline=None)
def test_moments_rise_and_are_no_more_than_asked(board, most):
    moments = choose_moments(board, 0.0, board.seen, most)
    assert 1 <= len(moments) <= most and moments == sorted(set(moments))
    if most >= len(board.segments):
        assert {segment.seconds for segment in board.segments} <= set(moments)


@given(board=boards(), most=st.integers(1, 200))
@settings(max_examples=150, deadline=None)
def test_merging_loses_no_second(board, most):
    merged = merge(board.segments, most)
    assert len(merged) == min(most, len(board.segments))
    assert merged[0].start == 0 and merged[-1].end == board.seen
    assert all(one.end == other.start for one, other in zip(merged, merged[1:], strict=False))
    assert all(segment.start <= segment.seconds <= segment.end for segment in merged)


def test_builds_fall_into_the_finished_slide_first():
    """Three slides of four lines each; three moments are left."""
    starts = [slide * 60 + line * 5.0 for slide in range(3) for line in range(4)]
    changes = [1.0 if line == 0 else 0.08 for _ in range(3) for line in range(4)]
    board = board_of(starts, 180, changes=changes)
    assert [segment.seconds for segment in merge(board.segments, 3)] == [15.6, 75.6, 135.6]


def test_a_picture_seen_before_goes_before_one_that_is_new():
    segments = [Segment(n * 10, n * 10 + 10, n * 10 + 1, 0.5, 0 if n == 2 else None) for n in range(4)]
    assert [segment.seconds for segment in merge(segments, 3)] == [1, 11, 31]


def test_long_gaps_are_filled_evenly_and_the_widest_first():
    assert fill([0.0], 0.0, 90.0, 10, 30.0) == [0.0, 30.0, 60.0]
    assert fill([0.0, 100.0], 0.0, 130.0, 3, 30.0) == [0.0, 50.0, 100.0]
    assert fill([0.0, 20.0], 0.0, 40.0, 10, 30.0) == [0.0, 20.0]


def test_slides_give_up_moments_and_films_give_up_size():
    starts = [n * 10.0 for n in range(300)]
    clip, times = clip_of(3000)
    slides, film = (
        plan_frames(
            clip, times, storyboard=board_of(starts, 3000, film=is_film), budget=30_000, frame_pixels=FRAME_PIXELS
        )
        for is_film in (False, True)
    )
    assert slides.width >= 600 and len(slides.patches) < 150
    assert film.width <= 352 and len(film.patches) > 290


def test_a_span_shows_its_own_part():
    board = board_of([n * 10.0 for n in range(100)], 1000)
    clip, times = clip_of(1000)
    part = clip.between(300.0, 500.0)
    shown = times.shown[(times.shown >= 300) & (times.shown < 500)]
    plan = plan_frames(part, FrameTimes(shown, shown[:1]), storyboard=board, budget=90_000, frame_pixels=FRAME_PIXELS)
    assert len(plan.patches) == 20 and all(300 <= second < 500 for second in plan.seconds)


def test_frames_a_second_set_by_hand_are_kept():
    board = board_of([n * 10.0 for n in range(40)], 400)
    clip, times = clip_of(400)
    by_hand = {"budget": 300_000, "frame_pixels": FRAME_PIXELS, "fps": 1.0}
    assert plan_frames(clip, times, storyboard=board, **by_hand) == plan_frames(clip, times, **by_hand)


def packets_of(seconds: float, keyframes: list[float], large: dict[float, int]) -> Packets:
    shown = np.arange(round(seconds * 10)) / 10
    sizes = np.full(len(shown), 300, np.uint32)
    for second, size in large.items():
        sizes[round(second * 10)] = size
    return Packets(shown, sizes, np.isin(shown, keyframes))


def test_a_keyframe_stands_for_its_segment():
    packets = packets_of(40, [0.0, 8.0, 16.0, 24.0, 32.0], {})
    assert settled(packets, 10.0, 30.0) == (16.0, 10.6)
    assert settled(packets, 15.9, 30.0) == (24.0, 16.5)  # the first may still be a fade


def test_without_a_keyframe_it_is_the_first_settled_picture():
    packets = packets_of(40, [0.0], {})
    assert settled(packets, 10.0, 14.0) == (10.6, 10.6)
    assert settled(packets, 10.0, 10.4) == (10.2, 10.2)  # a short one: its middle
    slow = packets_of(40, [0.0], {second / 10: 4000 for second in range(100, 118)})
    assert 11.7 < settled(slow, 10.0, 20.0)[0] < 12.1  # a slow fade is waited for


def test_of_a_film_of_equal_shots_every_part_keeps_a_moment() -> None:
    shots = tuple(Segment(5.0 * n, 5.0 * n + 5, 5.0 * n + 1, 0.9) for n in range(1440))
    chosen = choose_moments(Storyboard(shots, 7200.0, film=True), 0.0, 7200.0, 40)
    assert len(chosen) == 40
    assert (
        max(after - before for before, after in zip([0.0, *chosen], [*chosen, 7200.0], strict=True)) < 2.5 * 7200 / 40
    )
