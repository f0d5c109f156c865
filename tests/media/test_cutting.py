"""Frames and parts of a video to keep: the right ones, by their colour."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image as Picture

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media.cutting import save_clip, save_picture
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Clip
from tests.clips import colour_at, colour_clip, copied, film


def clip(path: Path) -> Clip:
    opened = open_upload(path)
    assert isinstance(opened, Clip)
    return opened


def pictures(path: Path) -> list[tuple[float, np.ndarray]]:
    """(seconds, colour in the middle) of every picture."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [
            (
                float(frame.pts * stream.time_base),
                frame.to_ndarray(format="rgb24")[frame.height // 2, frame.width // 2],
            )
            for frame in container.decode(stream)
        ]


def close(colour: np.ndarray, seconds: float) -> bool:
    return bool(np.abs(colour.astype(int) - colour_at(seconds)).max() <= 8)


def saved(source: Clip, target: Path) -> list[tuple[float, np.ndarray]]:
    done: list[float] = []
    save_clip(source, target, progress=done.append)
    assert done == sorted(done) and done[-1] == 1.0
    return pictures(target)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_frame_is_the_one_on_screen_at_its_own_size(tmp_path: Path, form: str) -> None:
    source = clip(colour_clip(tmp_path / "a.mp4", 20, size=(320, 180)))
    picture = Picture.open(io.BytesIO(save_picture(source, 13.97, form)))  # type: ignore[arg-type]
    assert (picture.format, picture.size) == (form, (320, 180))
    assert close(np.asarray(picture.convert("RGB"))[90, 160], 13)


def test_a_part_begins_and_ends_with_its_pictures(tmp_path: Path) -> None:
    source = clip(colour_clip(tmp_path / "a.mp4", 20, g="1000", sc_threshold="0"))  # one keyframe
    found = saved(source.between(12.3, 15.0), tmp_path / "part.mp4")
    assert len(found) == 27
    assert found[0][0] == 0
    assert found[-1][0] == pytest.approx(2.6, abs=0.01)
    assert all(close(colour, 12.3 + seconds + 0.01) for seconds, colour in found)


def test_a_part_begins_with_the_still_on_screen(tmp_path: Path) -> None:
    stills = film(tmp_path / "a.mkv", [0.0, 5.0, 9.0, 9.5], lambda _, t: np.full((180, 320, 3), colour_at(t), np.uint8))
    found = saved(clip(stills).between(6.0, 9.2), tmp_path / "part.mp4")
    assert [round(seconds, 2) for seconds, _ in found] == [0.0, 3.0]
    assert close(found[0][1], 5) and close(found[1][1], 9)


def test_sound_comes_with_it_and_the_clock_is_that_of_the_pictures(tmp_path: Path) -> None:
    source = colour_clip(tmp_path / "a.mp4", 12, sound="aac")
    late = clip(copied(source, tmp_path / "late.mkv", shift=1.5))
    target = tmp_path / "part.mp4"
    found = saved(late.between(5.0, 8.0), target)
    assert close(found[0][1], 5) and close(found[-1][1], 7)
    with av.open(str(target)) as container:
        [audio] = container.streams.audio
        heard = [float(frame.pts * audio.time_base) for frame in container.decode(audio)]
    assert heard[0] == pytest.approx(0.0, abs=0.1)
    assert heard[-1] == pytest.approx(3.0, abs=0.2)


def test_a_file_without_pts_is_cut_by_counting(tmp_path: Path) -> None:
    old = clip(colour_clip(tmp_path / "old.avi", 10, codec="mpeg4", clock=Fraction(1, 10)))
    found = saved(old.between(4.0, 6.0), tmp_path / "part.mp4")
    assert len(found) == 20 and close(found[0][1], 4) and close(found[-1][1], 5)


def test_a_turned_film_stays_upright(tmp_path: Path) -> None:
    source = colour_clip(tmp_path / "a.mp4", 4, size=(320, 180))
    turned = clip(copied(source, tmp_path / "turned.mp4", rotation=90))
    assert (turned.width, turned.height) == (180, 320)
    assert Picture.open(io.BytesIO(save_picture(turned, 1.0, "PNG"))).size == (180, 320)
    target = tmp_path / "part.mp4"
    saved(turned.between(1.0, 2.0), target)
    again = clip(target)
    assert (again.width, again.height) == (180, 320)


def test_a_part_without_a_picture_says_so_instead_of_calling_the_film_damaged(tmp_path: Path) -> None:
    late = clip(colour_clip(tmp_path / "late.mp4", 4, sound="aac", late=2.0))
    with pytest.raises(MediaError, match="no picture between these times"):
        save_clip(late.between(0.5, 1.5), tmp_path / "part.mp4", progress=lambda _: None)
    assert close(saved(late.between(1.5, 2.5), tmp_path / "part.mp4")[0][1], 0)


def test_what_cannot_be_saved_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    source = clip(colour_clip(tmp_path / "a.mp4", 4))
    long = Clip(source.path, source.digest, 0.0, 601.0, 320, 180)
    with pytest.raises(MediaError, match="10 minutes"):
        save_clip(long, tmp_path / "long.mp4", progress=lambda _: None)

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_clip(source, tmp_path / "stopped.mp4", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"]
