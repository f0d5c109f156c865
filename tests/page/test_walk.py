"""The main walk in a real browser: upload, ask, open the evidence, stop, edit, retry, reload."""

import json

import pytest

from qwen3vl_webui.errors import EngineError
from tests.scripted_engine import Gate

pytestmark = pytest.mark.browser

ANSWER = "It begins at 0:07 and turns at 第12秒. "


def test_a_stamp_opens_its_second_while_the_answer_streams(visit, house):
    house.engine.script = [ANSWER, "More ", "and more.\n\n", "And then 0:21 comes."]
    house.engine.gate = Gate(after=2)
    here = visit()
    here.ask("When does it turn?", "colours.mp4")
    stamp = here.page.wait_for_selector("a.qv-cite:has-text('第12秒')", timeout=10_000)
    assert here.page.locator(".qv-writing").count() == 1
    stamp.click()
    here.sees_second(12)
    here.page.click("a.qv-cite:has-text('0:07')")
    here.sees_second(7)
    house.engine.gate.release()
    here.settled()
    here.page.click("a.qv-cite:has-text('0:21')")
    here.sees_second(21)
    assert here.page.locator(".qv-mark-at").count() == 3  # cited marks on the timeline
    assert here.page.locator(".qv-citation").count() == 3


def test_a_slow_press_on_a_growing_paragraph_opens_the_link(visit, house):
    house.engine.script = [ANSWER, *(f"word{n} " for n in range(400))]
    house.engine.pace = 0.02
    here = visit()
    here.ask("When?", "colours.mp4")
    here.page.wait_for_selector("a.qv-cite:has-text('第12秒')", timeout=10_000)
    here.page.wait_for_timeout(500)  # the evidence pane has slid in, nothing moves any more
    x, y = here.page.evaluate(
        """() => {
          const link = [...document.querySelectorAll('a.qv-cite')].find((each) => each.textContent === '第12秒');
          const place = link.getBoundingClientRect();
          return [place.x + place.width / 2, place.y + place.height / 2];
        }"""
    )
    here.page.mouse.move(x, y)
    here.page.mouse.down()
    here.page.wait_for_timeout(150)  # a human press: the paragraph is made anew several times meanwhile
    assert here.page.locator(".qv-writing").count() == 1
    here.page.mouse.up()
    here.sees_second(12)
    here.page.keyboard.press("Escape")
    here.settled()


def test_the_keyboard_opens_a_link(visit, house):
    house.engine.script = ANSWER
    here = visit()
    here.ask("When?", "colours.mp4")
    here.settled()
    here.page.locator("a.qv-cite:has-text('0:07')").focus()
    here.page.keyboard.press("Enter")
    here.sees_second(7)


def test_pages_and_boxes_open_in_their_files(visit, house):
    boxes = [{"bbox_2d": [100, 200, 500, 600], "label": "dog"}, {"bbox_2d": [600, 100, 900, 400], "label": "cat"}]
    house.engine.script = f"The cap is on page 5.\n\n```json\n{json.dumps(boxes)}\n```\n"
    here = visit()
    here.ask("Check both.", "contract.pdf", "scene.png")
    here.settled()
    here.page.click("a.qv-cite:has-text('page 5')")
    here.page.wait_for_selector(".qv-document[data-page='5']")
    here.page.wait_for_function(
        "() => { const i = document.querySelector('.qv-document img');"
        " return i.src.includes('/5.webp') && i.complete && i.naturalWidth > 400; }"
    )
    here.page.click(".qv-pager [title='Next page']")
    here.page.wait_for_selector(".qv-document[data-page='6']")
    here.page.click("a.qv-cite:has-text('cat')")
    box = here.page.wait_for_selector("rect.qv-box-shape")
    assert here.page.locator("rect.qv-box-shape").count() == 1
    assert [box.get_attribute(name) for name in ("x", "y", "width", "height")] == ["600", "100", "300", "300"]
    picture = here.page.locator(".qv-sheet").bounding_box()
    drawn = box.bounding_box()
    assert drawn["x"] == pytest.approx(picture["x"] + 0.6 * picture["width"], abs=4)
    assert drawn["width"] == pytest.approx(0.3 * picture["width"], abs=6)
    here.page.click("text=Show all")
    assert here.page.locator("rect.qv-box-shape").count() == 2


def test_stop_in_prefill_and_in_decode(visit, house):
    house.engine.gate = Gate(prefill=True)
    here = visit()
    here.ask("Read it.", "contract.pdf")
    here.page.wait_for_selector(".qv-progress:has-text('Reading')", timeout=10_000)
    here.page.click("#qv-send")
    assert house.engine.wait_for(lambda: house.engine.running is None)
    here.settled()
    assert "Stopped before the answer began." in here.page.inner_text(".qv-note")
    assert len(house.engine.stopped) == 1

    house.engine.gate = Gate()
    house.engine.script, house.engine.endless, house.engine.pace = "la ", True, 0.01
    here.ask("Sing.")
    here.page.wait_for_selector(".qv-writing .qv-text:has-text('la la')", timeout=10_000)
    here.page.keyboard.press("Escape")
    assert house.engine.wait_for(lambda: house.engine.running is None)
    here.settled(2)
    assert len(house.engine.stopped) == 2
    assert here.answer().startswith("la la")  # what was said stays


def test_the_place_in_the_queue_is_shown(visit, house):
    house.engine.gate = Gate(prefill=True)
    first, second = visit(), visit()
    first.ask("One.")
    first.page.wait_for_selector(".qv-progress:has-text('Reading')", timeout=10_000)
    second.ask("Two.")
    second.page.wait_for_selector(".qv-progress:has-text('Waiting: 1 before you')", timeout=10_000)
    house.engine.gate.release()
    first.settled()
    second.settled()


def test_retry_and_edit_make_versions(visit, house):
    answers = iter(["First try.", "Second try.", "About the other thing."])
    house.engine.script = lambda request: next(answers)
    here = visit()
    here.ask("Tell me.", "scene.png")
    here.settled()
    here.page.hover(".qv-answer")
    here.page.click(".qv-answer [title='Answer again']")
    here.page.wait_for_selector("text=Second try.")
    here.settled()
    assert here.page.inner_text(".qv-answer .qv-versions") == "2/2"
    here.page.click(".qv-answer [title='Previous version']")
    here.page.wait_for_selector("text=First try.")
    assert here.page.inner_text(".qv-answer .qv-versions") == "1/2"

    here.page.hover(".qv-question")
    here.page.click(".qv-question [title='Edit']")
    assert here.page.input_value(".qv-edit-box") == "Tell me."
    assert here.page.locator(".qv-editing .qv-chip").count() == 1  # the file stays with the question
    here.page.fill(".qv-edit-box", "Tell me the other thing.")
    here.page.press(".qv-edit-box", "Enter")
    here.page.wait_for_selector("text=About the other thing.")
    here.settled()
    assert here.page.inner_text(".qv-question .qv-versions") == "2/2"
    assert here.page.locator(".qv-question .qv-file").count() == 1
    here.page.click(".qv-question [title='Previous version']")
    here.page.wait_for_selector(".qv-bubble:text-is('Tell me.')")


def test_a_reload_joins_the_running_answer(visit, house):
    house.engine.script = ["Before ", "the ", "reload ", "and ", "after."]
    house.engine.gate = Gate(after=3)
    here = visit()
    here.ask("Go on.")
    here.page.wait_for_selector(".qv-text:has-text('Before the reload')", timeout=10_000)
    here.reload()
    here.page.wait_for_selector(".qv-writing .qv-text:has-text('Before the reload')", timeout=10_000)
    house.engine.gate.release()
    here.settled()
    assert here.answer() == "Before the reload and after."
    assert len(house.engine.requests) == 1


def test_thinking_is_folded_with_its_duration(visit, house):
    house.engine.thinking, house.engine.script = "Let me look closely.", "Done."
    house.engine.gate = Gate(after=4)
    here = visit()
    here.ask("Think.")
    here.page.wait_for_selector(".qv-thoughts[open] .qv-thoughts-text:has-text('Let me')", timeout=10_000)
    house.engine.gate.release()
    here.settled()
    assert here.page.locator(".qv-thoughts[open]").count() == 0
    assert "Thought for" in here.page.inner_text(".qv-thoughts summary")
    here.page.click(".qv-thoughts summary")
    assert here.page.inner_text(".qv-thoughts-text") == "Let me look closely."


def test_a_failure_of_the_engine_is_one_sentence(visit, house):
    house.engine.fail = EngineError("The engine fell over. Try again.")
    here = visit()
    here.ask("Fall.")
    here.page.wait_for_selector(".qv-note.qv-bad:has-text('The engine fell over. Try again.')", timeout=10_000)
    house.engine.fail = None
    here.page.click(".qv-answer [title='Answer again']")
    here.page.wait_for_selector("text=Hello from the script.", timeout=10_000)


def test_a_video_no_browser_plays_still_jumps(visit, house):
    house.engine.script = "It turns at 0:12."
    here = visit()
    here.ask("When?", "old.avi")
    here.settled()
    here.page.click("a.qv-cite")
    here.sees_second(12)  # in the copy that was made meanwhile
    assert here.page.locator(".qv-moment").count() > 5


def test_one_escape_closes_what_is_open_and_not_the_answer(visit, house):
    house.engine.gate = Gate(prefill=True)
    here = visit()
    here.ask("Read.")
    here.page.wait_for_selector(".qv-progress:has-text('Reading')")
    here.page.click(".qv-model")
    here.page.keyboard.press("Escape")
    here.page.click("#qv-open-settings")
    here.page.keyboard.press("Escape")
    here.page.focus("#qv-search")
    here.page.keyboard.press("Escape")
    house.engine.gate.release()
    here.settled()
    assert here.answer() == "Hello from the script."
