"""A long video while it is looked through: its pictures appear above the question as they are found."""

import threading

import numpy as np
import pytest

from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.media import storyboard
from qwen3vl_webui.media.segments import Segment, Storyboard
from tests.clips import film

pytestmark = pytest.mark.browser

SECONDS = 240
PICTURES = ".qv-board-moment:not(.qv-same) img"
LOADED = f"count => [...document.querySelectorAll('{PICTURES}')].filter((img) => img.naturalWidth).length === count"


def changes(path, colour, every=20):
    """Something new every 20 seconds; `colour` makes it another file than the other tests'."""

    def picture(_, seconds):
        part = int(seconds // every)
        drawn = np.full((90, 160, 3), colour, np.uint8)
        drawn[:, part * 10 % 160 : part * 10 % 160 + 60] = 40 + part * 15
        return drawn

    return film(path, (n / 4 for n in range(4 * SECONDS)), picture, size=(160, 90), fps=4, g="40")


@pytest.fixture
def slowly(monkeypatch):
    """A reading that gives out a quarter of the video, and the rest (or an error) when it is let go."""
    going_on, ending = threading.Event(), {"error": None}

    def read(clip):
        segments = tuple(Segment(20.0 * n, 20.0 * n + 20, 20.0 * n + 1, 0.5) for n in range(12))
        yield Storyboard(segments[:3], 60.0, False)
        assert going_on.wait(60)
        if ending["error"]:
            raise ending["error"]
        yield Storyboard(segments, float(SECONDS), False)

    monkeypatch.setattr(storyboard, "read_storyboard", read)
    yield going_on, ending
    going_on.set()


def test_pictures_come_as_they_are_found_in_both_languages(visit, house, slowly):
    going_on, _ = slowly
    changes(house.files / "talk.mp4", 90)
    here = visit()
    here.attach("talk.mp4")
    here.page.wait_for_function(LOADED, arg=3)
    here.page.wait_for_selector(".qv-board-words:has-text('Looking through the video: 25 %')")
    assert here.page.locator(".qv-board-cell").count() == 12
    here.page.click("#qv-language")
    here.page.wait_for_selector(".qv-board-words:has-text('正在浏览视频：25 %')")
    going_on.set()
    here.page.wait_for_function(LOADED, arg=12)
    here.page.wait_for_selector(".qv-board-words:has-text('已浏览：12 个场景和页面')")
    here.page.click("#qv-language")
    here.page.fill("#qv-question", "What is at")
    here.page.locator("[title='Ask about 1:01']").click()
    assert here.page.input_value("#qv-question") == "What is at 1:01 "
    here.page.press("#qv-question", "Enter")
    here.settled()
    assert here.page.locator(".qv-board").count() == 0


def test_a_real_reading_fills_the_strip_and_its_first_picture_is_there_at_once(visit, house):
    changes(house.files / "real.mp4", 130)
    here = visit()
    here.attach("real.mp4")
    here.page.wait_for_function("document.querySelector('.qv-board-moment img')?.naturalWidth > 0", timeout=10_000)
    here.page.wait_for_selector(".qv-board-words:has-text('Looked through: ')")
    here.page.wait_for_function(LOADED, arg=12)


def test_a_video_taken_away_is_not_asked_after_any_more(visit, house, slowly):
    changes(house.files / "away.mp4", 150)
    here = visit()
    here.attach("away.mp4")
    here.page.wait_for_selector(".qv-board")
    here.page.click(".qv-chip-x")
    here.page.wait_for_selector(".qv-board", state="detached")
    asked = []
    here.page.on("request", lambda request: asked.append(request.url) if "/storyboard/" in request.url else None)
    here.page.wait_for_timeout(1_500)
    assert asked == []


def test_one_that_cannot_be_looked_through_says_why(visit, house, slowly):
    going_on, ending = slowly
    ending["error"] = MediaError("This video takes too long to look through: its moments are chosen evenly.")
    changes(house.files / "heavy.mp4", 170)
    going_on.set()
    here = visit()
    here.attach("heavy.mp4")
    here.page.wait_for_selector(".qv-board-words:has-text('This video takes too long')")
    here.page.click("#qv-language")
    here.page.wait_for_selector(".qv-board-words:has-text('时刻将均匀选取')")


def test_a_short_video_has_none(visit, house):
    here = visit()
    here.attach("colours.mp4")
    assert here.page.locator(".qv-board").count() == 0
