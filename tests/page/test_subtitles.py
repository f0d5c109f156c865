"""Subtitles and chapters on the page: attached beside a video, counted, read with it, shown in the player."""

import pytest

from qwen3vl_webui.media import speech
from qwen3vl_webui.media.values import FramePlan
from tests.clips import colour_clip, srt, with_picture_subtitles, with_subtitles
from tests.whisper import spoken_clip, stand_in, tones

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


def test_what_is_said_is_searched_and_opens_its_second(visit, house, files):
    here = visit()
    here.ask("What is said?", "colours.mp4", "colours.zh.srt")
    here.settled()
    here.page.click(".qv-said summary:has-text('What is said: 10 lines')")
    here.page.wait_for_function("document.querySelectorAll('.qv-said button').length === 10")
    here.page.fill(".qv-said input", "第2")
    here.page.wait_for_function("document.querySelectorAll('.qv-said button').length === 3")  # 21, 24, 27
    assert here.page.locator(".qv-said mark").all_inner_texts() == ["第2"] * 3
    here.page.click(".qv-said button:has-text('第24句')")
    here.sees_second(24)
    here.page.wait_for_selector(".qv-said .qv-shown:has-text('第24句')")
    here.page.fill(".qv-said input", "<img src=x onerror=window.ran=1>")
    here.page.wait_for_selector(".qv-said li:has-text('Nothing found for “<img')")
    assert here.page.evaluate("window.ran") is None


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
    here.page.wait_for_selector(".qv-welcome")
    here.ask("What is said?", "talk.mkv")
    here.settled()
    assert said(house) == "What is said?"


def test_subtitles_that_are_pictures_are_named(visit, house, files):
    with_picture_subtitles(files / "plain.mp4", files / "disc.mkv", "PGS", "fre")
    here = visit()
    here.ask("What is said?", "disc.mkv")
    here.settled()
    here.page.wait_for_selector(".qv-tracks-note:has-text('are pictures, not text, and are not read: PGS fre')")
    assert said(house) == "What is said?"
    here.page.click("#qv-language")
    here.page.wait_for_selector(".qv-tracks-note:has-text('图形而不是文字')")


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


def test_what_is_said_is_written_down_read_and_shown(visit, house, files, tmp_path, monkeypatch):
    spoken_clip(files / "talk.mp4", tones(6, {1: 0.3, 4: 0.6}))
    here = visit()
    with monkeypatch.context() as without:
        without.setattr(speech, "installed", lambda: False)
        here.ask("What is said?", "talk.mp4")
        here.settled()
        here.page.wait_for_selector("#qv-video:visible")
        here.page.wait_for_load_state("networkidle")
        assert here.page.locator(".qv-speech:visible").count() == 0
    monkeypatch.syspath_prepend(stand_in(tmp_path))
    here.reload()
    here.page.click(".qv-speech button:has-text('Write down what is said')")
    here.page.wait_for_selector(".qv-speech:has-text('speech model “small”')")
    here.page.click(".qv-speech button:has-text('Start')")
    here.page.wait_for_selector(".qv-speech[data-state=ready]:has-text('2 lines')")
    here.page.evaluate("document.querySelector('#qv-video').currentTime = 4.5")
    here.page.wait_for_function(f"({ACTIVE})().join() === 'tone 0.6'")
    here.page.keyboard.press("Control+Shift+O")
    here.page.wait_for_selector(".qv-welcome")
    here.ask("And now?", "talk.mp4")
    here.settled()
    assert "[1.0-2.0] tone 0.3\n" in said(house) and "[4.0-5.0] tone 0.6\n" in said(house)
    here.page.click("#qv-language")
    here.page.wait_for_selector(".qv-speech:has-text('已从声音转写 2 行')")


def test_the_writing_down_is_cancelled_and_its_failure_is_a_sentence(visit, house, files, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(stand_in(tmp_path))
    spoken_clip(files / "long.mp4", tones(50, dict.fromkeys(range(50), 0.4)))
    settings = house.services.settings
    object.__setattr__(settings, "speech_model", "slow")
    try:
        here = visit()
        here.ask("What is said?", "long.mp4")
        here.settled()
        here.page.click(".qv-speech button:has-text('Write down what is said')")
        here.page.wait_for_selector(".qv-speech:has-text('490 MB are downloaded first')")
        here.page.click(".qv-speech button:has-text('Start')")
        here.page.wait_for_selector(".qv-speech:has-text(' %')")
        here.page.click(".qv-speech button:has-text('Cancel')")
        here.page.wait_for_selector(".qv-speech[data-state=none]")
        object.__setattr__(settings, "speech_model", "absent")
        here.page.click(".qv-speech button:has-text('Write down what is said')")
        here.page.click(".qv-speech button:has-text('Start')")
        here.page.wait_for_selector(".qv-speech[data-state=failed]:has-text('could not be downloaded')")
        here.page.click("#qv-language")
        here.page.wait_for_selector(".qv-speech:has-text('无法下载语音模型')")
    finally:
        object.__setattr__(settings, "speech_model", "small")
