"""Animated GIF and WebP are films; with one picture they stay pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import animation, playback, video
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Clip, FramePlan, Image
from tests import clips

LASTING = [100, 200, 50, 70, 500, 100, 100, 900]  # ms
STARTS = np.cumsum([0, *LASTING[:-1]]) / 1000


def animated(path: Path, form: str, lasting: list[int] | int = LASTING, count: int = 8) -> Path:
    """Picture n shows n as bars."""
    pictures = [Pillow.fromarray(np.repeat(clips.bars(n)[:180, :, None], 3, 2)) for n in range(count)]
    pictures[0].save(path, form, save_all=True, append_images=pictures[1:], duration=lasting, loop=0)
    return path


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_every_picture_of_an_animation_is_found_at_its_own_second(form: str, tmp_path: Path) -> None:
    clip = open_upload(animated(tmp_path / "a", form))
    assert isinstance(clip, Clip)
    assert (clip.width, clip.height, clip.container, clip.audio) == (320, 180, form.lower(), False)
    assert clip.end == pytest.approx(sum(LASTING) / 1000, abs=1e-3)
    times = video.read_times(clip)
    assert times.shown == pytest.approx(STARTS, abs=1e-3)
    plan = FramePlan(clip, tuple((float(t), float(t)) for t in times.shown), 320, 192)
    assert [clips.read_bars(frame.pixels) for frame in video.read_frames(plan)][::2] == list(range(8))


def test_a_hasty_animation_plays_as_browsers_play_it(tmp_path: Path) -> None:
    clip = open_upload(animated(tmp_path / "a", "GIF", lasting=0))
    assert isinstance(clip, Clip) and clip.end == pytest.approx(0.8, abs=1e-3)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    clear = Pillow.new("RGBA", (64, 64), (0, 0, 0, 0))
    red = Pillow.new("RGBA", (64, 64), (200, 0, 0, 255))
    clear.save(tmp_path / "a", "WEBP", save_all=True, append_images=[red], duration=100, lossless=True)
    clip = open_upload(tmp_path / "a")
    assert isinstance(clip, Clip)
    frames = list(video.read_frames(FramePlan(clip, ((0.0, 0.0), (0.1, 0.1)), 64, 64)))
    assert frames[0].pixels.min() > 250 and np.abs(frames[2].pixels[32, 32].astype(int) - (200, 0, 0)).max() < 8


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_one_picture_is_a_picture(form: str, tmp_path: Path) -> None:
    assert isinstance(open_upload(clips.picture(tmp_path / "a", form)), Image)


def test_an_animation_is_played_as_a_copy(tmp_path: Path) -> None:
    clip = open_upload(animated(tmp_path / "a", "GIF"))
    assert isinstance(clip, Clip) and playback.how_to_play(clip) == "transcode"
    playback.make_playable(clip.path, tmp_path / "copy.mp4", progress=lambda done: None)
    copy = open_upload(tmp_path / "copy.mp4")
    assert isinstance(copy, Clip) and playback.how_to_play(copy) == "as_is"
    assert video.read_times(copy).shown == pytest.approx(STARTS, abs=2e-3)


def test_an_animation_that_breaks_off_is_read_as_far_as_it_goes_or_refused(tmp_path: Path) -> None:
    whole = animated(tmp_path / "a", "GIF", lasting=100)
    read = 0
    for part in (0.1, 0.4, 0.7, 0.95):
        try:
            media = open_upload(clips.truncated(whole, tmp_path / f"{part}", part))
        except MediaError as error:
            assert error.sentence.endswith(".")
            continue
        read += 1
        assert isinstance(media, Image) or media.duration <= 0.8  # type: ignore[union-attr]
    assert read >= 2


def test_an_animation_of_too_many_pictures_is_refused_with_its_numbers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(animation, "MOST_PIXELS", 100_000)
    with (
        animated(tmp_path / "a", "GIF", lasting=100).open("rb") as file,
        pytest.raises(MediaError, match="more than 1 pictures of 320 x 180 px"),
    ):
        animation.as_film(file)
