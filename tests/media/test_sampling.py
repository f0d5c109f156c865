"""Planning moments and sizes: never over budget, always true, the same every time."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_webui.errors import MediaError, TooLong
from qwen3vl_webui.media.sampling import FrameTimes, cells, fit_document, fit_image, plan_frames
from qwen3vl_webui.media.values import Clip, FramePlan

FRAME_PIXELS = (4_096, 786_432)
LABEL = 12


def clip_of(duration: float, width: int = 1920, height: int = 1080) -> Clip:
    return Clip(Path("film.mp4"), "digest", 0.0, duration, width, height)


def steady(duration: float, fps: float = 30.0, gop: int = 250) -> FrameTimes:
    shown = np.arange(round(duration * fps)) / fps
    return FrameTimes(shown, shown[::gop])


def cost(plan: FramePlan) -> int:
    return len(plan.patches) * (plan.tokens_per_patch + LABEL)


@settings(deadline=None)
@given(
    width=st.integers(1, 9000),
    height=st.integers(1, 9000),
    limits=st.tuples(st.integers(1, 300), st.integers(1, 20_000)),
)
def test_a_picture_gets_the_size_the_models_own_processor_gives_it(width, height, limits):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    least, most = min(limits) * 1024, max(limits) * 1024
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(MediaError):
            fit_image(width, height, least, most)
        return
    theirs = smart_resize(height, width, factor=32, min_pixels=least, max_pixels=most)
    assert fit_image(width, height, least, most) == (theirs[1], theirs[0])


def test_sizes_of_the_note():
    assert cells(fit_image(1280, 720, 65_536, 16_777_216)) == 880
    assert cells(fit_image(1920, 1080, 65_536, 16_777_216)) == 2040


@st.composite
def films(draw):
    """A clip and its times: steady or uneven, many keyframes or one, any part of the file."""
    duration = draw(st.floats(0.04, 9000))
    count = draw(st.integers(1, 400))
    gaps = np.array(draw(st.lists(st.floats(0.001, 1), min_size=count, max_size=count)))
    shown = np.cumsum(gaps) - gaps[0]
    shown = np.unique(shown * duration / (shown[-1] + 0.04))
    gop = draw(st.integers(1, 300))
    size = draw(st.tuples(st.integers(64, 4000), st.integers(64, 4000)))
    return Clip(Path("film.mp4"), "d", 0.0, duration, *size), FrameTimes(shown, shown[::gop])


@settings(max_examples=300, deadline=None)
@given(
    film=films(),
    budget=st.integers(0, 200_000),
    label=st.integers(0, 20),
    fps=st.one_of(st.none(), st.floats(0.05, 30)),
    most=st.one_of(st.none(), st.integers(1, 900)),
    pixels=st.sampled_from([FRAME_PIXELS, (1_024, 16_384), (4_096, 100_000)]),
)
def test_a_plan_fits_its_budget_and_shows_true_moments_in_order(film, budget, label, fps, most, pixels):
    clip, times = film
    settings = {"budget": budget, "label_tokens": label, "frame_pixels": pixels, "fps": fps, "most_moments": most}
    try:
        plan = plan_frames(clip, times, **settings)
    except TooLong as error:
        assert str(max(budget, 0)) in error.sentence
        return
    assert len(plan.patches) * (plan.tokens_per_patch + label) <= budget
    assert plan.width % 32 == 0 and plan.height % 32 == 0
    assert plan.width * plan.height <= max(pixels[1], 1024 * max(plan.grid))
    seconds = list(plan.seconds)
    assert seconds == sorted(seconds)
    assert set(seconds) <= set(times.shown.tolist())
    assert all(0 <= later - first <= 0.5 + 1e-5 for first, later in plan.patches)
    assert len(set(plan.patches)) == len(plan.patches)
    assert len(plan.patches) <= (most or (768 if fps is None else len(times.shown)))
    if len(plan.patches) > 1:
        assert seconds[0] == times.shown[0] and seconds[-1] == times.shown[-1]
    assert plan_frames(clip, times, **settings) == plan


@given(budgets=st.tuples(st.integers(100, 200_000), st.integers(100, 200_000)), duration=st.floats(1, 8000))
@settings(max_examples=60, deadline=None)
def test_more_tokens_never_show_less(budgets, duration):
    clip, times = clip_of(duration), steady(duration, fps=5, gop=20)
    small, large = (plan_frames(clip, times, budget=budget, frame_pixels=FRAME_PIXELS) for budget in sorted(budgets))
    assert len(small.patches) <= len(large.patches) or small.tokens_per_patch <= large.tokens_per_patch
    assert cost(small) <= cost(large) or len(large.patches) >= len(small.patches)


def test_a_short_clip_is_read_at_two_frames_a_second_in_pairs():
    plan = plan_frames(clip_of(10), steady(10), budget=100_000, frame_pixels=FRAME_PIXELS)
    assert len(plan.patches) == 10
    assert plan.patches[0] == (0.0, 0.5) and plan.patches[1] == (1.0, 1.5)
    assert plan.patches[-1][1] == pytest.approx(10 - 1 / 30)
    assert plan.labels[:2] == ("<0.2 seconds>", "<1.2 seconds>")
    assert plan.tokens_per_patch <= 768 and plan.width > 1000


def test_moments_further_apart_are_each_shown_twice():
    plan = plan_frames(clip_of(3000), steady(3000), budget=100_000, frame_pixels=FRAME_PIXELS)
    assert all(first == later for first, later in plan.patches)


def test_a_picture_that_stays_is_shown_once():
    shown = np.array([0.0, 2.0, 32.0, 33.0, 60.0])
    plan = plan_frames(clip_of(90), FrameTimes(shown, shown[:1]), budget=50_000, frame_pixels=FRAME_PIXELS)
    assert [first for first, _ in plan.patches] == shown.tolist()


def test_two_hours_are_read_by_their_keyframes():
    times = steady(7200)
    plan = plan_frames(clip_of(7200), times, budget=200_000, frame_pixels=FRAME_PIXELS)
    keyframes = set(times.keyframes.tolist())
    moments = [first for first, _ in plan.patches]
    assert len(moments) > 600
    assert sum(moment not in keyframes for moment in moments) <= 1  # the very last picture
    assert max(np.diff(moments)) < 20


def test_moments_do_not_move_to_keyframes_that_are_far():
    times = steady(60, gop=1800)
    plan = plan_frames(clip_of(60), times, budget=50_000, frame_pixels=FRAME_PIXELS, fps=1)
    assert [first for first, _ in plan.patches][:5] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_slides_stay_legible_until_few_moments_are_left():
    clip, times = clip_of(7200), steady(7200)
    wide = plan_frames(clip, times, budget=100_000, frame_pixels=FRAME_PIXELS)
    assert wide.width >= 608 and 300 < len(wide.patches) < 768  # moments were given up, not the size
    few = plan_frames(clip, times, budget=8_000, frame_pixels=FRAME_PIXELS)
    assert 60 <= len(few.patches) <= 64 and 400 <= few.width < 640  # then size
    tiny = plan_frames(clip, times, budget=600, frame_pixels=FRAME_PIXELS)
    assert 4 <= len(tiny.patches) < 64 and tiny.width <= 224  # then moments again


def test_the_demo_models_small_pictures_are_kept():
    plan = plan_frames(clip_of(60), steady(60), budget=4_000, frame_pixels=(1_024, 12_288))
    assert plan.width * plan.height <= 12_288 and len(plan.patches) == 60


def test_settings_by_hand_are_kept_or_refused_with_what_would_fit():
    clip, times = clip_of(600), steady(600)
    plan = plan_frames(clip, times, budget=30_000, frame_pixels=FRAME_PIXELS, fps=1)
    assert len(plan.patches) == 601  # 0, 1, ... 599 and the last picture
    with pytest.raises(TooLong, match="at most 111 moments fit, one every 5.4 seconds") as caught:
        plan_frames(clip, times, budget=2_000, frame_pixels=FRAME_PIXELS, fps=1)
    assert "601 moments" in caught.value.sentence and "2000 are free" in caught.value.sentence
    plan = plan_frames(clip, times, budget=2_000, frame_pixels=FRAME_PIXELS, fps=1, most_moments=111)
    assert len(plan.patches) == 111


def test_a_ceiling_of_moments_is_no_demand():
    plan = plan_frames(clip_of(600), steady(600), budget=3_000, frame_pixels=FRAME_PIXELS, most_moments=500)
    assert cost(plan) <= 3_000


def test_no_room_at_all_is_refused():
    with pytest.raises(TooLong, match="free some of the context"):
        plan_frames(clip_of(600), steady(600), budget=10, frame_pixels=FRAME_PIXELS)


def test_a_span_without_pictures_is_refused():
    with pytest.raises(MediaError, match="shows no picture between 5.0 and 6.0"):
        plan_frames(
            clip_of(9).between(5, 6), FrameTimes(np.zeros(0), np.zeros(0)), budget=1000, frame_pixels=FRAME_PIXELS
        )


A4 = (595.0, 842.0)


@given(
    pages=st.lists(st.tuples(st.floats(20, 3000), st.floats(20, 3000)), min_size=1, max_size=60),
    budget=st.integers(0, 60_000),
)
@settings(max_examples=100, deadline=None)
def test_pages_fit_their_budget_in_multiples_of_32(pages, budget):
    pages = [(width, max(height, width / 150)) for width, height in pages]
    try:
        sizes = fit_document(pages, budget)
    except TooLong as error:
        assert f"{len(pages)} pages" in error.sentence
        return
    assert len(sizes) == len(pages)
    assert sum(cells(size) + 12 for size in sizes) <= budget
    assert all(width % 32 == 0 and height % 32 == 0 for width, height in sizes)


def test_a_page_with_room_is_read_at_144_dpi():
    assert fit_document([A4], 10_000) == [(1056, 1504)]
    assert fit_document([(300.0, 200.0)], 10_000) == [(608, 384)]


def test_pages_shrink_together_to_512_tokens_and_then_are_refused():
    sizes = fit_document([A4] * 20, 20 * 600)
    assert len(set(sizes)) == 1 and 512 <= cells(sizes[0]) <= 588
    with pytest.raises(TooLong, match=r"at most \d+ pages") as caught:
        fit_document([A4] * 100, 20_000)
    fitting = int(caught.value.sentence.split("at most ")[1].split()[0])
    assert len(fit_document([A4] * fitting, 20_000)) == fitting


def test_a_model_of_small_pictures_gets_small_pages():
    sizes = fit_document([A4] * 50, 50 * 80, image_pixels=(4_096, 65_536))
    assert all(width * height <= 65_536 for width, height in sizes)


def test_where_keyframes_are_missing_moments_stay_where_they_were_meant():
    shown = np.arange(6000) / 10
    times = FrameTimes(shown, np.arange(300.0))  # one a second, and none in the second half
    plan = plan_frames(clip_of(600), times, budget=50_000, frame_pixels=FRAME_PIXELS, most_moments=61)
    moments = [first for first, _ in plan.patches]
    assert set(moments[:25]) <= set(times.keyframes.tolist())
    assert max(np.diff(moments)) < 16


def test_moments_closer_than_keyframes_stay_even():
    plan = plan_frames(clip_of(400), steady(400), budget=50_000, frame_pixels=FRAME_PIXELS, most_moments=101)
    moments = [first for first, _ in plan.patches]
    assert np.diff(moments) == pytest.approx([4.0] * 100, abs=0.07)
