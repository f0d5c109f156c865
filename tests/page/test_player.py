"""The player: keys, frame steps, what the model saw and asking again with other moments, things saved."""

import csv
import io
import json

import av
import pysubs2
import pytest
from PIL import Image

from qwen3vl_webui.media.values import FramePlan
from tests.clips import colour_at

pytestmark = pytest.mark.browser


def shown(house):
    parts = house.engine.requests[-1].messages[-1].parts
    return [stamp for part in parts if isinstance(part, FramePlan) for stamp in part.stamps]


@pytest.fixture
def here(visit, house):
    house.engine.script = "- 0:07 it begins\n- 0:12-0:15 it **turns**\n"
    here = visit()
    here.ask("Look.", "colours.mp4")
    here.settled()
    here.page.wait_for_function("document.querySelector('#qv-video')?.readyState >= 2")
    here.page.click("a.qv-cite:has-text('0:07')")
    here.sees_second(7)
    return here


def test_the_keys_of_a_player(here, house):
    keys = here.page.keyboard
    here.page.evaluate("document.activeElement.blur()")
    for key, second in (("l", 17), ("j", 7), ("ArrowRight", 12), ("ArrowLeft", 7), ("ArrowLeft", 2)):
        keys.press(key)
        here.sees_second(second)
    for key, playing in ((" ", True), (" ", False), ("k", True), ("k", False)):
        keys.press(key)
        here.page.wait_for_function(f"document.querySelector('#qv-video').paused !== {str(playing).lower()}")
    here.page.focus("#qv-video")
    before = here.page.evaluate("document.querySelector('#qv-video').currentTime")
    keys.press("ArrowRight")  # once, not by the browser too
    here.page.wait_for_function(f"Math.abs(document.querySelector('#qv-video').currentTime - {before + 5}) < 0.3")
    here.page.focus("#qv-question")
    keys.type("jkl ,.")
    assert here.page.input_value("#qv-question") == "jkl ,."
    assert here.page.evaluate("document.querySelector('#qv-video').paused")


def test_it_steps_picture_by_picture(here, house):
    here.page.evaluate("document.activeElement.blur()")
    for key, second in ((",", 6.9), (".", 7.0), (".", 7.1), (",", 7.0), (",", 6.9), (",", 6.8)):
        here.page.keyboard.press(key)
        here.sees_second(second)  # the colour changes between 6.9 and 7.0
    here.page.click(".qv-steps [title^='Next frame']")
    here.sees_second(6.9)


def test_a_question_is_asked_again_with_other_moments(here, house):
    strip = here.page.locator(".qv-strip .qv-moment")
    before = strip.count()
    assert before == len(shown(house))
    first = here.page.locator(".qv-moment-box").first
    first.hover()
    first.locator(".qv-moment-x").click()
    assert strip.count() == before - 1
    here.page.wait_for_selector(f".qv-changed:has-text('{before - 1} moments instead of {before}')")
    here.page.click("text=Undo")
    assert strip.count() == before and here.page.locator(".qv-changed").is_hidden()

    for _ in range(before - 1):
        here.page.locator(".qv-moment-box").last.hover()
        here.page.locator(".qv-moment-x").last.click()
    here.page.click("a.qv-cite:has-text('0:12')")
    here.sees_second(12)
    here.page.click("[title='Add this second']")
    here.page.wait_for_selector(".qv-new-moment:has-text('0:12')")
    here.page.click(".qv-ask-again")
    here.settled()
    assert shown(house) == pytest.approx([0.25, 12.0], abs=0.11)
    assert here.page.inner_text(".qv-bubble") == "Look."
    assert here.page.locator(".qv-question .qv-versions").inner_text().strip() == "2/2"
    here.page.wait_for_function("document.querySelectorAll('.qv-strip .qv-moment').length === 2")

    here.page.click("[title='Look closer here']")
    here.page.click(".qv-ask-again")
    here.settled()
    assert len(shown(house)) == 9 and shown(house)[1:] == pytest.approx([8.25 + n for n in range(8)], abs=0.11)
    here.page.click(".qv-answer [title='Answer again']")  # and stays so
    here.page.wait_for_function("document.querySelectorAll('.qv-answer .qv-versions').length === 1")
    here.settled()
    assert len(shown(house)) == 9


def test_the_plans_of_two_questions_are_both_there(here, house):
    here.ask("And in the last ten seconds?")
    here.settled(2)
    here.page.wait_for_selector(".qv-seen i", state="attached")
    shade = here.page.evaluate(
        "(() => { const i = document.querySelector('.qv-seen i').style; return [i.left, i.width]; })()"
    )
    assert [float(each.rstrip("%")) for each in shade] == pytest.approx([66.7, 33.3], abs=0.1)
    chooser = here.page.locator(".qv-plan")
    assert chooser.locator("option").all_inner_texts() == ["1. Look.", "2. 0:20–0:30 · And in the last ten seconds?"]
    chooser.select_option("0")
    assert here.page.locator(".qv-strip .qv-moment span").first.inner_text() == "0:00.3"
    assert here.page.locator(".qv-seen i").count() == 0


def saved(here, *clicks):
    with here.page.expect_download() as download:
        for click in clicks:
            here.page.click(click)
    return download.value


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_the_times_of_an_answer_are_saved(visit, house, locale):
    house.engine.script = "- 0:07 it begins\n- 0:12-0:15 =turns\n"
    here = visit(locale=locale)
    here.ask("Look.", "colours.mp4")
    here.settled()
    button = ".qv-answer [aria-haspopup='menu']"
    labels = {
        "en-US": ["SRT", "WebVTT", "YouTube", "CSV", "JSON"],
        "zh-CN": ["SRT", "WebVTT", "YouTube", "CSV", "JSON"],
    }
    files = {label: saved(here, button, f".qv-menu >> text={label}") for label in labels[locale]}
    assert [file.suggested_filename for file in files.values()] == [
        *("colours.srt", "colours.vtt", "colours.chapters.txt", "colours.csv", "colours.json")
    ]
    texts = {label: file.path().read_text(encoding="utf-8") for label, file in files.items()}
    for label in ("SRT", "WebVTT"):
        lines = [(line.start, line.end, line.plaintext) for line in pysubs2.SSAFile.from_string(texts[label])]
        assert lines == [(7000, 12000, "it begins"), (12000, 15000, "=turns")]
    assert texts["YouTube"] == "0:00 Start\n0:07 it begins\n0:12 =turns\n"
    rows = list(csv.DictReader(io.StringIO(texts["CSV"].removeprefix("\ufeff"))))
    assert [row["title"] for row in rows] == ["it begins", "'=turns"]
    assert [row["start"] for row in json.loads(texts["JSON"])] == [7.0, 12.0]


def test_frames_and_parts_are_saved(here, house):
    save = ".qv-steps .qv-small"
    png = saved(here, save, "text=This frame as PNG")
    assert png.suggested_filename == "colours 00-07.001.png"
    with Image.open(png.path()) as picture:
        assert (picture.format, picture.size) == ("PNG", (320, 180))
        assert picture.convert("RGB").getpixel((160, 90)) == pytest.approx(colour_at(7), abs=8)
    jpg = saved(here, save, "text=This frame as JPEG")
    with Image.open(jpg.path()) as picture:
        assert picture.format == "JPEG"

    here.page.click("a.qv-cite:has-text('0:12')")
    here.sees_second(12)
    here.page.click(save)
    here.page.click("text=A part as MP4")
    assert [box.input_value() for box in here.page.locator(".qv-saving input").all()] == ["0:12", "0:15"]
    part = saved(here, ".qv-saving >> text=Save")
    assert part.suggested_filename == "colours 00-12.000 to 00-15.000.mp4"
    with av.open(str(part.path())) as container:
        frames = [frame.to_ndarray(format="rgb24")[90, 160].tolist() for frame in container.decode(video=0)]
    assert len(frames) == 30
    assert frames[0] == pytest.approx(colour_at(12), abs=8) and frames[-1] == pytest.approx(colour_at(14), abs=8)
    here.page.locator(".qv-saving").wait_for(state="hidden")

    here.page.click(save)
    here.page.click("text=A part as MP4")
    here.page.fill(".qv-saving input >> nth=0", "0:40")
    here.page.fill(".qv-saving input >> nth=1", "0:50")
    here.page.click(".qv-saving >> text=Save")
    here.page.wait_for_selector(".qv-saving:has-text('There is nothing between these times')")
    here.complaints[:] = [each for each in here.complaints if "400" not in each]


def test_on_a_phone_the_tools_fit_and_moments_can_be_dropped(visit, house):
    house.engine.script = "It turns at 0:09."
    here = visit(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme="dark")
    here.ask("Look.", "colours.mp4")
    here.settled()
    here.page.locator("a.qv-cite").tap()
    here.sees_second(9)
    moments = len(shown(house))
    here.page.locator(".qv-moment-x").first.tap()
    here.page.wait_for_selector(".qv-changed:visible")
    assert here.page.evaluate("document.querySelector('.qv-evidence-body').scrollWidth") <= 390
    here.page.locator(".qv-ask-again").tap()
    here.settled()
    assert len(shown(house)) == moments - 1 >= 29
    here.page.locator("#qv-open-evidence").tap()
    here.page.locator(".qv-film [title='Look closer here']").tap()
    here.page.wait_for_selector(f".qv-changed:has-text('instead of {moments - 1}')")
    assert here.page.locator(".qv-new-moment").count() > 8  # it was at two frames a second: now at four
