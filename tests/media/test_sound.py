"""The sound of a video as samples: which ones, and when."""

from pathlib import Path

import numpy as np
import pytest

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import sandbox, sound
from qwen3vl_webui.media.sound import BLOCK, read_sound
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import SOUND_RATE, Clip
from tests.clips import colour_clip, copied, truncated
from tests.whisper import spoken_clip, tones


def opened(path: Path) -> Clip:
    clip = open_upload(path)
    assert isinstance(clip, Clip)
    return clip


def loudness(blocks: list[np.ndarray]) -> list[float]:
    """The height of each second."""
    whole = np.concatenate(blocks) / 32768
    return [
        round(float(np.abs(whole[at : at + SOUND_RATE]).max()), 1)
        for at in range(0, len(whole) - SOUND_RATE // 2, SOUND_RATE)
    ]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.mov", "pcm_s16le")])
def test_sound_is_heard_at_its_second(tmp_path: Path, name: str, codec: str) -> None:
    clip = opened(spoken_clip(tmp_path / name, tones(6, {1: 0.3, 4: 0.6}), codec=codec))
    blocks = list(read_sound(clip))
    assert all(block.dtype == np.int16 and len(block) <= BLOCK for block in blocks)
    found = loudness(blocks)
    assert len(found) == 6
    assert found[1] == pytest.approx(0.3, abs=0.11) and found[4] == pytest.approx(0.6, abs=0.11)
    assert found[2] < 0.1 and found[5] < 0.1


def test_hours_are_not_gathered(tmp_path: Path) -> None:
    clip = opened(spoken_clip(tmp_path / "a.mkv", tones(70, {65: 0.5}), codec="libmp3lame"))
    blocks = list(read_sound(clip))
    assert [len(block) for block in blocks[:2]] == [BLOCK, BLOCK]
    assert loudness(blocks)[65] == pytest.approx(0.5, abs=0.11)


def test_one_clock_with_the_pictures(tmp_path: Path) -> None:
    """A file that starts late starts at 0; sound that starts late is behind silence."""
    source = spoken_clip(tmp_path / "a.mkv", tones(4, {1: 0.5}))
    assert loudness(list(read_sound(opened(copied(source, tmp_path / "late.mkv", shift=1.5)))))[1] > 0.4
    later = loudness(list(read_sound(opened(copied(source, tmp_path / "later.mkv", sound_shift=2.0)))))
    assert later[3] > 0.4 and max(later[:2]) < 0.1


def test_a_file_that_breaks_off_is_heard_as_far_as_it_goes(tmp_path: Path) -> None:
    source = spoken_clip(tmp_path / "a.mkv", tones(20, {1: 0.5, 18: 0.5}))
    clip = opened(truncated(source, tmp_path / "half.mkv"))
    found = loudness(list(read_sound(clip)))
    assert found[1] > 0.4 and len(found) < 18


def test_a_silent_film_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no sound"):
        list(read_sound(opened(colour_clip(tmp_path / "a.mp4", 2))))


@pytest.mark.parametrize(
    "lie", [None, b"", np.zeros(0, np.int16), np.zeros(9), np.zeros((2, 2), np.int16), np.zeros(BLOCK + 1, np.int16)]
)
def test_a_child_that_lies_about_sound_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: object
) -> None:
    clip = opened(spoken_clip(tmp_path / "a.mp4", tones(2, {})))
    monkeypatch.setattr(sandbox, "stream", lambda *arguments, **named: (block for block in [lie]))
    with pytest.raises(MediaError, match="crashed"):
        list(read_sound(clip))
    assert sound.BLOCK == BLOCK


def test_an_endless_child_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = opened(spoken_clip(tmp_path / "a.mp4", tones(2, {})))
    monkeypatch.setattr(sandbox, "stream", lambda *arguments, **named: (np.zeros(BLOCK, np.int16) for _ in range(1000)))
    with pytest.raises(MediaError, match="crashed"):
        list(read_sound(clip))


def test_broken_bytes_are_heard_or_one_sentence(tmp_path: Path) -> None:
    sources = [
        spoken_clip(tmp_path / name, tones(4, {1: 0.5}), codec=codec)
        for name, codec in (("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.mov", "pcm_s16le"), ("b.mkv", "libmp3lame"))
    ]
    heard = 0
    for seed in range(24):
        random = np.random.default_rng(seed)
        raw = bytearray(sources[seed % len(sources)].read_bytes())
        for position in random.integers(0, len(raw) if seed % 2 else 1500, 1 + 2 * seed):
            raw[position] = random.integers(256)
        path = tmp_path / "broken"
        path.write_bytes(raw)
        clip = Clip(path, f"broken {seed}", 0.0, 4.0, 64, 64, audio=True)
        try:
            heard += sum(len(block) for block in read_sound(clip)) > 0
        except MediaError as error:
            assert error.sentence.endswith(".")
    assert heard > 5
