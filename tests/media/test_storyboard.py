"""The storyboard of generated lectures and films whose every change is known (benchmarks/lectures.py)."""

import contextlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import lectures
from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import sandbox, storyboard, video
from qwen3vl_webui.media.changes import Packets, reading_mode
from qwen3vl_webui.media.segments import Storyboard
from qwen3vl_webui.media.values import Clip
from tests import clips

SMALL = {"size": (320, 180), "fps": 10}
FIXED = {"sc_threshold": "0"}

LECTURES = {  # name: (seed, mode it is read in, settings)
    "screen.mp4": (31, "packets", {"g": "100"}),
    "dense.mp4": (32, "keyframes", {"g": "20", **FIXED}),
    "camera.mp4": (31, "linear", {"g": "100", "noise": 2.5}),
    "dense_camera.mp4": (33, "keyframes", {"g": "20", "noise": 2.5, **FIXED}),
    "one_keyframe.mp4": (32, "linear", {"g": "100000", **FIXED}),
    "open_gop.mp4": (34, "packets", {"x264-params": "open-gop=1:keyint=100"}),
    "low_delay.mp4": (35, "packets", {"g": "100", "preset": "ultrafast", "tune": "zerolatency"}),
    "hevc.mkv": (36, "packets", {"codec": "libx265", "x265-params": "keyint=80:log-level=none", "preset": "ultrafast"}),
    "vp9.webm": (37, None, {"codec": "libvpx-vp9", "g": "60", "deadline": "realtime", "cpu-used": "8"}),
    "broadcast.ts": (38, "keyframes", {"g": "20", **FIXED}),
    "flash.flv": (39, "packets", {"g": "100"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lectures")


@pytest.fixture(scope="module")
def lecture(folder):
    """(script, clip) of the lecture of that name from `LECTURES`, made once."""

    def make(name: str) -> tuple[lectures.Script, Clip]:
        seed, _, settings = LECTURES[name]
        script, path = lectures.lecture(seed, 60), folder / name
        if not path.exists():
            lectures.write(path, script, **(SMALL | {"preset": "veryfast"} | settings))
        return script, video.probe(path, f"digest of {name}")

    return make


def read(clip: Clip) -> Storyboard:
    *_, whole = storyboard.read_storyboard(clip)
    return whole


def seen(script: lectures.Script, board: Storyboard) -> list[bool]:
    moments = np.array([segment.seconds for segment in board.segments])
    return [bool(((moments >= s.settled - 1e-6) & (moments < s.end)).any()) for s in script.states]


@pytest.mark.parametrize("name", LECTURES)
def test_every_finished_slide_is_seen_and_changes_are_found_where_they_are(lecture, name):
    script, clip = lecture(name)
    scan = video.scan_of(clip)
    packets = Packets(scan.shown, scan.sizes, np.isin(scan.shown, scan.keyframes))
    assert reading_mode(packets) == (LECTURES[name][1] or reading_mode(packets))
    board = read(clip)
    shown = seen(script, board)
    assert all(was for was, state in zip(shown, script.states, strict=True) if state.finished)
    assert sum(shown) >= len(shown) - 1
    found = np.array([segment.start for segment in board.segments])
    late = [float(np.abs(found - state.start).min()) for state in script.states]
    assert sum(each <= 0.5 for each in late) >= len(late) - 1
    assert len(board.segments) <= len(script.states) + 1  # nothing else counts: speaker, cursor, noise
    assert not board.film


def test_segments_follow_each_other_to_the_end(lecture):
    _, clip = lecture("screen.mp4")
    board = read(clip)
    assert board.segments[0].start == 0 and board.segments[-1].end == board.seen == clip.end
    for one, other in zip(board.segments, board.segments[1:], strict=False):
        assert one.end == other.start
    shown = set(video.read_times(clip).shown.tolist())
    for segment in board.segments:
        assert segment.seconds in shown and segment.start <= segment.seconds < segment.end
        assert 0 < segment.change <= 1


def test_a_slide_that_comes_again_is_known(folder):
    script = lectures.lecture(31, 60)
    again = folder / "again.mp4"
    if not again.exists():
        lectures.write(again, script, repeats=2, preset="veryfast", g="100", **SMALL)
    board = read(video.probe(again, "again"))
    count = len(board.segments) // 2
    repeats = [segment.like for segment in board.segments[count:]]
    assert sum(like is not None for like in repeats) >= count - 2
    assert all(like is None or like < number + count for number, like in enumerate(repeats))


def test_two_parts_read_side_by_side_make_one(folder, monkeypatch):
    script = lectures.lecture(40, 60)
    path = lectures.write(folder / "halves.mp4", script, repeats=2, preset="veryfast", g="20", **SMALL, **FIXED)
    clip = video.probe(path, "halves")
    monkeypatch.setattr(storyboard, "WORKERS", 1)
    whole = read(clip)
    monkeypatch.setattr(storyboard, "WORKERS", 2)
    monkeypatch.setattr(storyboard, "WORTH_HALVING", 10.0)
    halves = read(clip)
    assert [s.start for s in halves.segments] == pytest.approx([s.start for s in whole.segments], abs=0.25)


@pytest.mark.parametrize("settings", [{"g": "100"}, {"g": "20", **FIXED}, {"g": "100000", **FIXED}])
def test_the_cuts_of_a_film_are_found_and_its_motion_is_not(folder, settings):
    script = lectures.shots(51, 60)
    path = lectures.write(folder / f"film{settings['g']}.mp4", script, preset="veryfast", **SMALL, **settings)
    board = read(video.probe(path, path.name))
    assert board.film
    found = np.array([segment.start for segment in board.segments])
    late = np.array([np.abs(found - state.start).min() for state in script.states])
    assert (late <= 0.5).mean() >= 0.8 and len(found) <= len(script.states) + 2


def test_a_still_video_is_one_segment(folder):
    path = clips.film(folder / "still.mp4", [n / 10 for n in range(300)], lambda *_: clips.bars(7), fps=10, g="50")
    board = read(video.probe(path, "still"))
    assert len(board.segments) == 1 and board.segments[0].end == pytest.approx(30, abs=0.2)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_video_of_a_few_pictures_has_a_storyboard(folder, length):
    path = clips.bars_clip(folder / f"short{length}.mp4", [n / 10 for n in range(length)], fps=10)
    board = read(video.probe(path, path.name))
    assert board.segments[0].start == 0 and board.segments[-1].end == board.seen


def test_parts_joined_into_one_file_are_counted_through(lecture, folder):
    script, clip = lecture("broadcast.ts")
    joined = folder / "joined.ts"
    joined.write_bytes(clip.path.read_bytes() * 2)
    board = read(video.probe(joined, "joined"))
    count = len(script.states)
    assert 2 * count - 2 <= len(board.segments) <= 2 * count + 2
    assert board.seen == pytest.approx(120, abs=1)


@pytest.mark.parametrize("name", ["screen.mp4", "dense.mp4", "camera.mp4"])
def test_a_damaged_keyframe_costs_its_group_at_most(lecture, folder, name):
    script, clip = lecture(name)
    path = clips.damaged(clip.path, folder / f"damaged_{name}", keyframe=2, part=0.5)
    board = read(video.probe(path, path.name))
    assert sum(seen(script, board)) >= len(script.states) - 2
    assert board.segments[-1].end == pytest.approx(60, abs=0.2)


def test_it_grows_while_it_is_read(lecture):
    _, clip = lecture("camera.mp4")
    growing = list(storyboard.read_storyboard(clip))
    assert len(growing) > 1
    assert [board.seen for board in growing] == sorted(board.seen for board in growing)
    assert growing[0].segments[0].start == 0 and growing[-1].seen == clip.end


def running_children() -> list[str]:
    process = sandbox.server.process
    assert process is not None
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_closing_early_leaves_no_process(lecture, monkeypatch):
    monkeypatch.setattr(storyboard, "WORTH_HALVING", 10.0)
    _, clip = lecture("dense.mp4")
    growing = storyboard.read_storyboard(clip)
    next(growing)
    growing.close()
    assert not running_children()


@pytest.mark.parametrize(
    "lie",
    [
        ("eye", np.full((9, 16), np.nan)),
        ("eye", np.zeros((2, 2))),
        ("change", 1.0, 0.5, None),
        ("change", float("nan"), 0.5, None),
        ("at", 1e9),
        ("last", np.zeros((9, 9), np.uint8)),
        (),
    ],
)
def test_a_child_that_lies_is_not_believed(lecture, monkeypatch, lie):
    _, clip = lecture("screen.mp4")
    eye = ("eye", np.full((9, 16), 5.0))
    told = [eye, lie] if lie[:1] in (("at",), ("last",)) else [lie]
    monkeypatch.setattr(sandbox, "stream", lambda *arguments, **named: (message for message in told))
    with pytest.raises(MediaError):
        read(clip)


def stored(clip: Clip, folder: Path, digest: str) -> Clip:
    """The clip as the store keeps it: named by its digest."""
    path = folder / digest
    path.write_bytes(clip.path.read_bytes())
    return video.probe(path, digest)


def test_it_is_read_once_in_the_background_and_kept_beside_the_file(lecture, tmp_path, monkeypatch):
    clip = stored(lecture("screen.mp4")[1], tmp_path, "a" * 64)
    assert storyboard.reading(clip).state == "none" and storyboard.find(clip) is None
    board = storyboard.wait(clip, 30)
    assert board is not None and storyboard.reading(clip).state == "ready"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a" * 64, f"{'a' * 64}.storyboard.json"]
    storyboard.readings.close()
    monkeypatch.setattr(storyboard, "read_storyboard", None)
    assert storyboard.wait(clip, 0) == board


def test_a_short_clip_is_looked_through_at_once_and_a_part_of_a_long_one_when_the_whole_was(lecture, monkeypatch):
    _, clip = lecture("screen.mp4")
    storyboard.readings.close()
    board = storyboard.at_hand(clip, 30)
    assert board is not None and storyboard.reading(clip).state == "ready"
    storyboard.readings.close()
    monkeypatch.setattr(storyboard, "SHORT", clip.duration / 2)  # it counts as long now
    part = clip.between(10.0, 20.0)
    assert storyboard.at_hand(part, 30) is None and storyboard.reading(part).state == "none"
    assert storyboard.at_hand(clip, 30) == storyboard.at_hand(part, 0) == board


@pytest.mark.parametrize("content", ["", "[]", '{"rules": 0}', '{"rules": 2, "segments": [[1]], "seen": 1, "film": 0}'])
def test_a_kept_one_that_cannot_be_read_is_made_again(lecture, tmp_path, content):
    clip = stored(lecture("dense.mp4")[1], tmp_path, "b" * 64)
    storyboard.readings.close()
    (tmp_path / f"{'b' * 64}.storyboard.json").write_text(content)
    assert storyboard.find(clip) is None
    assert storyboard.wait(clip, 30) is not None
    assert json.loads((tmp_path / f"{'b' * 64}.storyboard.json").read_text())["rules"] == storyboard.RULES


def test_a_file_of_somebody_else_gets_nothing_beside_it(lecture, folder):
    _, clip = lecture("screen.mp4")
    storyboard.readings.close()
    assert storyboard.wait(clip, 30) is not None
    assert not list(folder.glob("*.json"))


def test_what_cannot_be_read_is_one_sentence_and_the_next_is_read(lecture, folder):
    _, clip = lecture("screen.mp4")
    missing = Clip(folder / "missing.mp4", "missing", 0.0, 60.0, 320, 180)
    assert storyboard.wait(missing, 30) is None
    failed = storyboard.reading(missing)
    assert failed.state == "failed" and failed.sentence.endswith(".")
    assert storyboard.wait(clip, 30) is not None


def test_it_can_be_cancelled(lecture, monkeypatch):
    _, clip = lecture("camera.mp4")
    storyboard.readings.close()
    first, closed = storyboard.read_storyboard(clip), []

    def slow(_: Clip):
        with contextlib.closing(first):
            board = next(first)
            try:
                while True:
                    time.sleep(0.01)
                    yield board
            finally:
                closed.append(True)

    monkeypatch.setattr(storyboard, "read_storyboard", slow)
    storyboard.begin(clip)
    while storyboard.reading(clip).storyboard is None:
        time.sleep(0.01)
    storyboard.readings.cancel(clip.digest)
    deadline = time.monotonic() + 20
    while not closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert closed and storyboard.reading(clip).state == "none"


def test_broken_bytes_give_a_storyboard_or_one_sentence(lecture, folder):
    names = ["screen.mp4", "dense.mp4", "hevc.mkv", "broadcast.ts", "flash.flv"]
    boards = 0
    for seed in range(15):
        random = np.random.default_rng(seed)
        raw = bytearray(lecture(names[seed % len(names)])[1].path.read_bytes())
        for position in random.integers(0, len(raw) if seed % 2 else 4000, 1 + 4 * seed):
            raw[position] = random.integers(256)
        path = folder / "broken"
        path.write_bytes(raw)
        try:
            board = read(video.probe(path, f"broken {seed}"))
            boards += 1
            assert board.segments[0].start == 0 and board.segments[-1].end == board.seen
        except MediaError as error:
            assert error.sentence.endswith(".")
    assert boards > 5
