"""Writing down what is said: a real process and real sound; the recogniser is a stand-in that says how loud each second
is, and where it is installed the real library with a tiny model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import recogniser, speech
from qwen3vl_webui.media.speech import Hearing
from qwen3vl_webui.media.upload import digest_of, open_upload
from qwen3vl_webui.media.values import SOUND_RATE, Clip, Cue
from tests.clips import colour_clip
from tests.served import wait_until
from tests.whisper import spoken_clip, stand_in, tiny_whisper, tones, vowels

REAL = importlib.util.find_spec("faster_whisper") is not None


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoken_clip(tmp_path_factory.mktemp("films") / "film.mp4", tones(8, {2: 0.3, 6: 0.6}))


@pytest.fixture
def recognising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(stand_in(tmp_path / "libraries"))
    yield
    speech.hearings.close()


def kept(film: Path, folder: Path) -> Clip:
    """The film as the store keeps it: under its digest."""
    folder.mkdir()
    digest = digest_of(film)
    path = folder / digest
    path.write_bytes(film.read_bytes())
    clip = open_upload(path, digest)
    assert isinstance(clip, Clip)
    return clip


def done(clip: Clip) -> Hearing:
    wait_until(lambda: speech.hearing(clip).state != "making", 60)
    return speech.hearing(clip)


def lines(told: Hearing) -> list[tuple[float, float, str]]:
    assert told.track is not None, told.sentence
    return [(cue.start, cue.end, cue.text) for cue in told.track.cues]


def test_it_is_off_until_installed(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    clip = kept(film, tmp_path / "media")
    assert not speech.installed() and speech.hearing(clip) == Hearing("none")
    with pytest.raises(MediaError, match="pip install faster-whisper"):
        speech.begin(clip, "small")


def test_what_is_said_is_written_down_once_and_kept(recognising: None, film: Path, tmp_path: Path) -> None:
    clip = kept(film, tmp_path / "media")
    speech.begin(clip, "small")
    told = done(clip)
    assert lines(told) == [(2.0, 3.0, "tone 0.3"), (6.0, 7.0, "tone 0.6")]
    assert told.track is not None and told.track.language == "de"
    record = json.loads((clip.path.parent / f"{clip.digest}.speech.json").read_text())
    assert record["model"] == "small" and sorted(path.name for path in clip.path.parent.iterdir()) == [
        clip.digest,
        f"{clip.digest}.speech.json",
    ]
    speech.hearings.close()  # a new start of the server
    assert lines(speech.hearing(clip)) == lines(told)
    speech.begin(clip, "small")
    assert speech.hearing(clip).state == "ready"
    speech.begin(clip, "base")  # another model writes it down anew
    assert speech.hearing(clip).state == "making" and lines(done(clip)) == lines(told)
    assert json.loads((clip.path.parent / f"{clip.digest}.speech.json").read_text())["model"] == "base"


def test_an_offer_says_whether_something_is_fetched_first(recognising: None, film: Path, tmp_path: Path) -> None:
    clip = kept(film, tmp_path / "media")
    assert speech.offer(clip, "small").megabytes == 0
    offer = speech.offer(clip, "large-v3")
    assert offer.megabytes == 3090 and offer.seconds == pytest.approx(2.5 * clip.end)
    assert speech.offer(clip, str(tmp_path)).megabytes == 0
    turbo = speech.offer(clip, "mobiuslabsgmbh/faster-whisper-large-v3-turbo")
    assert turbo.megabytes == 1620 and turbo.seconds < offer.seconds
    assert speech.hearing(clip).state == "none"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("absent", "absent could not be downloaded"),
        ("odd", "no speech model odd"),
        ("huge", "not enough memory"),
        ("crash", "stopped; please try again"),
    ],
)
def test_what_fails_is_one_sentence(recognising: None, film: Path, tmp_path: Path, model: str, says: str) -> None:
    clip = kept(film, tmp_path / "media")
    speech.begin(clip, model)
    told = done(clip)
    assert told.state == "failed" and says in told.sentence and told.sentence.endswith(".")
    speech.begin(clip, "small")  # and it can be tried again
    assert len(lines(done(clip))) == 2


def test_a_folder_without_a_model_is_one_sentence(recognising: None, film: Path, tmp_path: Path) -> None:
    clip = kept(film, tmp_path / "media")
    speech.begin(clip, str(tmp_path))
    assert "cannot be opened" in done(clip).sentence


def test_sound_that_cannot_be_read_is_one_sentence(recognising: None, tmp_path: Path) -> None:
    clip = kept(colour_clip(tmp_path / "silent.mp4", 2), tmp_path / "media")
    speech.begin(clip, "small")
    assert "no sound" in done(clip).sentence


def test_it_tells_how_far_it_is_and_is_cancelled(
    recognising: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes, start = list[subprocess.Popen[bytes]](), speech._recogniser

    @contextmanager
    def watched(wanted: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
        with start(wanted) as process:
            processes.append(process)
            yield process

    monkeypatch.setattr(speech, "_recogniser", watched)
    long = spoken_clip(tmp_path / "long.mp4", tones(40, dict.fromkeys(range(40), 0.5)))
    clip, other = (
        kept(long, tmp_path / "media"),
        kept(spoken_clip(tmp_path / "b.mp4", tones(3, {1: 0.5})), tmp_path / "b"),
    )
    speech.begin(clip, "slow")
    speech.begin(other, "small")
    assert speech.hearing(other).stage == "waiting"
    wait_until(lambda: speech.hearing(clip).done > 0, 60)
    now = speech.hearing(clip)
    assert now.stage == "listening" and 0 < now.done < 1 and now.left is not None and now.left > 0
    (process,) = processes
    assert process.poll() is None
    speech.cancel(clip)
    wait_until(lambda: process.poll() is not None)
    assert speech.hearing(clip).state == "none" and not list(clip.path.parent.glob("*.json"))
    assert len(lines(done(other))) == 1  # the next one goes on


def test_a_video_that_is_deleted_is_not_listened_to_any_more(recognising: None, tmp_path: Path) -> None:
    clip = kept(spoken_clip(tmp_path / "long.mp4", tones(40, dict.fromkeys(range(40), 0.5))), tmp_path / "media")
    speech.begin(clip, "slow")
    wait_until(lambda: speech.hearing(clip).done > 0, 60)
    clip.path.unlink()
    wait_until(lambda: speech.hearing(clip).state != "making", 60)
    assert speech.hearing(clip).state == "none" and list(clip.path.parent.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", '{"version": 0}', '{"version": 1, "model": "small", "cues": [[1]]}'])
def test_kept_lines_that_cannot_be_read_are_written_again(
    recognising: None, film: Path, tmp_path: Path, content: str
) -> None:
    clip = kept(film, tmp_path / "media")
    (clip.path.parent / f"{clip.digest}.speech.json").write_text(content)
    assert speech.hearing(clip).state == "none"
    speech.begin(clip, "small")
    assert len(lines(done(clip))) == 2


def test_the_recogniser_gets_no_keys_of_the_server(recognising: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3VL_API_KEY", "secret")
    with speech._recogniser({"model": "small", "threads": 1}) as process:
        assert json.loads(process.stdout.readline()) == {"stage": "opening"}
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"secret" not in environment and b"PYTHONPATH" in environment
    assert process.returncode is not None


def test_lines_are_plain_words_inside_the_film() -> None:
    assert speech._cue([1.0, 2.0, " Hello  there\x1f "], 9.0) == (Cue(1.0, 2.0, "Hello there"),)
    assert speech._cue([8.0, 12.0, "end"], 9.0) == (Cue(8.0, 9.0, "end"),)
    assert speech._cue([1.0, 2.0, " \x1f\n "], 9.0) == ()


def test_long_sound_is_parted_where_it_is_quiet() -> None:
    """Hours need no more memory than minutes, and no word is cut."""
    rate, seconds = SOUND_RATE, 700
    sound = np.full(seconds * rate, 5000, np.int16)
    for quiet in (291, 590):
        sound[quiet * rate : quiet * rate + rate // 2] = 3
    pieces = (sound[at : at + 30 * rate] for at in range(0, len(sound), 30 * rate))
    windows = list(recogniser.windows(pieces))
    assert np.array_equal(np.concatenate(windows), sound)
    seams = np.cumsum([len(window) for window in windows])[:-1] / rate
    assert len(seams) == 2 and 291 <= seams[0] <= 291.5 and 590 <= seams[1] <= 590.5


def test_times_go_on_over_the_seams() -> None:
    said: list[dict[str, Any]] = []

    class Model:
        def transcribe(self, samples: np.ndarray, language: str | None, **_: Any) -> tuple[list[Any], Any]:
            told = type("Told", (), {"language": "zh" if language is None else language, "language_probability": 0.9})
            return [type("Segment", (), {"start": 1.0, "end": 2.0, "text": f" {language} "})], told

    parts = [np.ones(10 * SOUND_RATE, np.int16), np.zeros(5 * SOUND_RATE, np.int16), np.ones(100, np.int16)]
    recogniser.listen(Model(), iter(parts), said.append)
    assert [message["cue"] for message in said if "cue" in message] == [[1.0, 2.0, "None"], [16.0, 17.0, "zh"]]
    assert said[-1]["at"] == pytest.approx(15.0, abs=0.01)


@pytest.mark.skipif(not REAL, reason="faster-whisper, an extra, is not installed")
def test_the_real_library_hears_voices_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights: the words are nonsense, the times are those at which somebody speaks."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sound = np.zeros(20 * 16_000)
    sound[6 * 16_000 : 12 * 16_000] = vowels(6)
    clip = kept(spoken_clip(tmp_path / "talk.mp4", sound, rate=16_000), tmp_path / "media")
    model = tiny_whisper(tmp_path / "whisper")
    try:
        assert speech.offer(clip, str(model)).megabytes == 0
        assert speech.offer(clip, "base").megabytes == 150
        speech.begin(clip, str(model))
        told = done(clip)
        assert told.state == "ready" and lines(told), told.sentence
        assert all(5 <= start <= end <= 20 for start, end, _ in lines(told))
        speech.begin(clip, "base")  # offline: nothing is fetched
        began = time.monotonic()
        assert "could not be downloaded" in done(clip).sentence and time.monotonic() - began < 50
    finally:
        speech.hearings.close()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
