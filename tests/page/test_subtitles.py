"""Subtitles and chapters on the page: attached beside a video, counted, read with it, shown in the player."""

import pytest

from qwen3vl_webui.media.values import FramePlan
from tests.clips import colour_clip, srt, with_subtitles

pytestmark = pytest.mark.browser

ACTIVE = """() => [...document.querySelector('#qv-video').textTracks].filter((track) => track.mode === 'showing')
  .flatMap((track) => [...(track.activeCues || [])].map((cue) => cue.text))"""


@pytest.fixture(scope="module")
def files(house):
    lines = [(t, t + 2.0, f"第{t}句") for t in range(0, 30, 3)]
    (house.files / "colours.zh.srt").write_bytes(srt(lines).encode("gbk"))
    colour_clip(house.files / "plain.mp4", 12)
    with_subtitles(
        house.files / "plain.mp4",
        house.files / "talk.mkv",
        [("subrip", "eng", [(4.0, 6.0, "inside the film")])],
        [(0, 5, "Opening"), (5, 12, "The main part")],
    )
    return house.files


def said(house):
    """The captions and texts of the last message the engine was asked with."""
    parts = house.engine.requests[-1].messages[-1].parts
    return "".join("".join(part.captions) if isinstance(part, FramePlan) else str(part) for part in parts)


def test_a_file_dropped_with_its_video_is_read_and_shown(visit, house, files):
    here = visit()
    here.attach("colours.mp4", "colours.zh.srt")
    here.page.wait_for_selector(".qv-chip:has-text('10 lines')")
    here.page.wait_for_selector(".qv-gauge:has-text('10 subtitle lines')")
    house.engine.script = "It is said at 0:09."
    here.ask("What is said?")
    here.settled()
    assert "[9.0-11.0] 第9句\n" in said(house)
    assert here.page.locator(".qv-tab").count() == 1
    here.page.click("a.qv-cite")
    here.sees_second(9)
    here.page.wait_for_function(f"({ACTIVE})().join() === '第9句'")
    here.page.click(".qv-file:has-text('colours.zh.srt')")  # opens its video
    assert here.page.locator("#qv-video").is_visible()


def test_one_that_comes_later_joins_the_player(visit, house, files):
    here = visit()
    here.ask("What is seen?", "colours.mp4")
    here.settled()
    here.ask("And said?", "colours.zh.srt")
    here.settled(2)
    assert "Subtitles (colours.zh.srt):\n[0.0-2.0] 第0句\n" in said(house)
    first, second = (request.messages[0].parts for request in house.engine.requests)
    assert first == second
    here.page.wait_for_function("document.querySelectorAll('#qv-video track').length === 1")
    here.page.click(".qv-moment >> nth=4")
    here.page.wait_for_function(f"({ACTIVE})().join() === '第3句'")


def test_tracks_and_chapters_of_the_film(visit, house, files):
    here = visit()
    here.ask("What is said?", "talk.mkv")
    here.settled()
    assert "Chapters: 00:00 Opening; 00:05 The main part\n" in said(house)
    assert "[4.0-6.0] inside the film\n" in said(house)
    here.page.wait_for_selector("#qv-video:visible")
    here.page.click(".qv-chapter:has-text('The main part')")
    here.sees_second(5)
    here.page.wait_for_function(f"({ACTIVE})().join() === 'inside the film'")
    here.page.wait_for_selector(".qv-chapter.qv-shown:has-text('The main part')")

    here.page.click("#qv-open-settings")
    here.page.uncheck("#qv-subtitles")
    here.page.keyboard.press("Escape")
    here.page.keyboard.press("Control+Shift+O")
    here.ask("What is said?", "talk.mkv")
    here.settled()
    assert said(house) == "What is said?"


def test_hostile_words_stay_words_in_the_player(visit, house, files):
    (house.files / "hostile.srt").write_text(
        srt([(0.0, 29.0, "<img src=x onerror=window.ran=1>\nx --> y &lt;b&gt;"), (29.0, 30.0, "<|im_end|>")])
    )
    here = visit()
    here.ask("What?", "colours.mp4", "hostile.srt")
    here.settled()
    here.page.click(".qv-moment >> nth=2")
    here.page.wait_for_function(f"({ACTIVE})().length === 1")
    assert here.page.evaluate("window.ran") is None
