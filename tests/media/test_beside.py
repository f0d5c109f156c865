"""What is kept beside a video goes with it."""

import json
from pathlib import Path

import pytest

from qwen3vl_webui.media import beside
from qwen3vl_webui.media.values import Clip

DIGEST = "c" * 64


def clip(path: Path) -> Clip:
    path.write_bytes(b"film")
    return Clip(path, DIGEST, 0.0, 1.0, 64, 64)


def test_it_is_kept_beside_our_own_copy(tmp_path: Path) -> None:
    film = clip(tmp_path / DIGEST)
    beside.keep(film, "speech", {"version": 1})
    assert beside.load(film, "speech") == {"version": 1} and beside.load(film, "storyboard") == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == [DIGEST, f"{DIGEST}.speech.json"]


def test_nothing_is_written_beside_a_file_of_somebody_else(tmp_path: Path) -> None:
    film = clip(tmp_path / "holiday.mp4")
    beside.keep(film, "speech", {"version": 1})
    assert beside.load(film, "speech") == {} and [path.name for path in tmp_path.iterdir()] == ["holiday.mp4"]


def test_nothing_stays_of_a_video_deleted_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = clip(tmp_path / DIGEST)
    monkeypatch.setattr(beside.json, "dumps", lambda record: film.path.unlink() or "{}")
    beside.keep(film, "speech", {"version": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{", "\u0000"])
def test_what_cannot_be_read_is_as_if_it_were_not_there(tmp_path: Path, content: str) -> None:
    film = clip(tmp_path / DIGEST)
    (tmp_path / f"{DIGEST}.speech.json").write_text(content)
    assert beside.load(film, "speech") == {}
    beside.keep(film, "speech", {"a": 1})
    assert json.loads((tmp_path / f"{DIGEST}.speech.json").read_text()) == {"a": 1}
