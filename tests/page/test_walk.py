"""The main walk in a real browser: upload, ask, open the evidence, stop, edit, retry, reload."""

import json
import threading

import pytest

from qwen3vl_webui.conversation import Conversation
from qwen3vl_webui.errors import EngineError
from qwen3vl_webui.page.handlers import Watches
from qwen3vl_webui.web import playable
from tests.clips import colour_at
from tests.scripted_engine import Gate

pytestmark = pytest.mark.browser

ANSWER = "It begins at 0:07 and turns at 第12秒. "


def test_a_stamp_opens_its_second_while_the_answer_streams(visit, house):
    house.engine.script = [ANSWER, "More ", "and more.\n\n", "And then 0:21 comes."]
    house.engine.gate = Gate(after=2)
    here = visit()
    here.ask("When does it turn?", "colours.mp4")
    stamp = here.page.wait_for_selector("a.qv-cite:has-text('第12秒')", timeout=30_000)
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
    house.engine.gate = Gate(after=1)
    here = visit()
    here.ask("When?", "colours.mp4")
    here.page.wait_for_selector("a.qv-cite:has-text('第12秒')", timeout=30_000)
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
    house.engine.gate.release()
    here.page.wait_for_timeout(150)  # a human press: the paragraph is made anew several times meanwhile
    assert here.page.locator(".qv-writing").count() == 1
    here.page.mouse.up()
    here.sees_second(12)
    here.page.keyboard.press("Escape")
    here.settled()


def test_a_tap_on_a_growing_paragraph_opens_the_link(visit, house):
    house.engine.script = [ANSWER, *(f"word{n} " for n in range(400))]
    house.engine.pace = 0.02
    house.engine.gate = Gate(after=1)
    here = visit(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    here.ask("When?", "colours.mp4")
    link = here.page.wait_for_selector("a.qv-cite:has-text('第12秒')")
    link.wait_for_element_state("stable")
    place = link.bounding_box()
    finger = [{"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}]
    words = len(here.answer())
    touch = here.page.context.new_cdp_session(here.page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": finger})
    house.engine.gate.release()  # the words come while the finger is down
    here.page.wait_for_function(
        "words => document.querySelector('.qv-answer .qv-text').innerText.length > words + 20", arg=words
    )
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    here.sees_second(12)
    assert here.page.locator(".qv-writing").count() == 1
    here.page.wait_for_selector(".qv-evidence-up")


def test_focus_and_selection_stay_while_the_paragraph_grows(visit, house):
    house.engine.script = [ANSWER, "More. ", "[not yet", "](http://a.example/) **bo", "ld** then 0:21 comes."]
    house.engine.gate = Gate(after=1)
    here = visit()
    here.ask("When?", "colours.mp4")
    here.page.locator("a.qv-cite:has-text('第12秒')").focus()
    here.page.evaluate("getSelection().selectAllChildren(document.querySelector(\"a.qv-cite[href*='t=7']\"))")
    house.engine.gate.release()
    here.page.wait_for_selector("a.qv-cite:has-text('0:21')")
    here.settled()
    assert here.page.evaluate("document.activeElement.textContent") == "第12秒"
    assert here.page.evaluate("getSelection().toString()") == "0:07"
    assert here.answer() == "It begins at 0:07 and turns at 第12秒. More. not yet bold then 0:21 comes."
    here.page.keyboard.press("Enter")
    here.sees_second(12)


def test_the_screen_reader_hears_the_answer_once_it_is_whole(visit, house):
    house.engine.gate = Gate(after=1)
    here = visit()
    here.ask("Say it.")
    here.page.wait_for_selector(".qv-writing .qv-text:not(:empty)")
    assert here.page.get_attribute(".qv-rows", "aria-live") == "off"
    house.engine.gate.release()
    here.settled()
    assert here.page.get_attribute(".qv-rows", "aria-live") == "polite"


def test_another_language_keeps_the_evidence_that_is_open(visit, house):
    house.engine.script = ANSWER
    here = visit()
    here.ask("And?", "colours.mp4")
    here.settled()
    here.page.click("a.qv-cite:has-text('第12秒')")
    here.sees_second(12)
    here.page.click("#qv-language")
    here.page.wait_for_selector(".qv-cited h2:has-text('引用')")
    here.sees_second(12)


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


def test_pages_turn_by_arrow_and_by_number(visit, house):
    here = visit()
    here.ask("Sum it up.", "contract.pdf")
    here.settled()
    here.page.wait_for_selector(".qv-document[data-page='1']")
    assert here.page.locator(".qv-pager [title='Previous page']").is_disabled()
    here.page.focus(".qv-document .qv-window")
    for key, page in (("ArrowRight", 2), ("PageDown", 3), ("ArrowLeft", 2), ("PageUp", 1), ("PageUp", 1)):
        here.page.keyboard.press(key)
        here.page.wait_for_selector(f".qv-document[data-page='{page}']")
    for typed, page in (("6", 6), ("99", 7), ("0", 1), ("4", 4), ("four", 4)):
        here.page.fill(".qv-page-box", typed)
        here.page.press(".qv-page-box", "Enter")
        here.page.wait_for_selector(f".qv-document[data-page='{page}']")
        assert here.page.input_value(".qv-page-box") == str(page)
    here.page.wait_for_function(
        "() => { const i = document.querySelector('.qv-document img');"
        " return i.src.includes('/4.webp') && i.complete && i.naturalWidth > 400; }"
    )
    here.page.focus(".qv-document .qv-window")
    here.page.keyboard.press("+")
    here.page.keyboard.press("ArrowRight")  # moves over the enlarged page
    here.page.wait_for_function("document.querySelector('.qv-window').scrollLeft > 0")
    assert here.page.get_attribute(".qv-document", "data-page") == "4"


def test_a_picture_is_enlarged_and_dragged(visit, house):
    here = visit()
    here.ask("Look.", "scene.png")
    here.settled()
    here.page.wait_for_function("document.querySelector('.qv-sheet img')?.naturalWidth === 640")
    window = here.page.wait_for_selector(".qv-window")
    window.wait_for_element_state("stable")  # the pane has slid in
    place = window.bounding_box()
    x, y = place["x"] + 0.75 * place["width"], place["y"] + 0.25 * place["height"]
    at_pointer = """([x, y]) => {
      const sheet = document.querySelector('.qv-sheet').getBoundingClientRect();
      return [(x - sheet.x) / sheet.width, (y - sheet.y) / sheet.height, sheet.width];
    }"""
    before = here.page.evaluate(at_pointer, [x, y])
    here.page.mouse.dblclick(x, y)
    after = here.page.evaluate(at_pointer, [x, y])
    assert after[2] == pytest.approx(2.4 * before[2], rel=0.02)
    assert after[:2] == pytest.approx(before[:2], abs=0.01)  # what was under the pointer stays there

    here.page.mouse.move(x, y)
    here.page.mouse.down()
    here.page.mouse.move(x + 60, y + 40, steps=3)
    here.page.mouse.up()
    dragged = here.page.evaluate(at_pointer, [x + 60, y + 40])
    assert dragged[:2] == pytest.approx(after[:2], abs=0.01)  # it went with the pointer
    here.page.mouse.move(x, y)
    assert here.page.evaluate(at_pointer, [x + 60, y + 40])[:2] == pytest.approx(dragged[:2], abs=0.001)

    here.page.keyboard.down("Control")
    here.page.mouse.wheel(0, -100)
    here.page.keyboard.up("Control")
    here.page.wait_for_function("width => document.querySelector('.qv-sheet').clientWidth > width + 5", arg=after[2])
    here.page.hover(".qv-window")
    here.page.click(".qv-zoom [title='Fit']")
    assert here.page.evaluate(at_pointer, [x, y]) == pytest.approx(before, abs=0.01)


def test_a_box_of_a_moment_is_drawn_on_the_player(visit, house):
    house.engine.script = '```json\n[{"time": 12.0, "bbox_2d": [250, 500, 750, 900], "label": "dog"}]\n```\n'
    here = visit()
    here.ask("Where is the dog?", "colours.mp4")
    here.settled()
    here.page.click("a.qv-cite")
    here.sees_second(12)
    box = here.page.locator(".qv-video-box")
    assert box.inner_text() == "dog"
    screen, drawn = here.page.locator(".qv-screen").bounding_box(), box.bounding_box()
    assert drawn["x"] == pytest.approx(screen["x"] + 0.25 * screen["width"], abs=4)
    assert drawn["y"] == pytest.approx(screen["y"] + 0.5 * screen["height"], abs=4)
    assert drawn["width"] == pytest.approx(0.5 * screen["width"], abs=6)
    assert drawn["height"] == pytest.approx(0.4 * screen["height"], abs=6)
    here.page.evaluate("document.querySelector('#qv-video').play()")
    box.wait_for(state="detached")  # it was there only at that moment
    here.page.evaluate("document.querySelector('#qv-video').pause()")
    here.page.click(".qv-citation")
    box.wait_for()


def test_stop_in_prefill_and_in_decode(visit, house):
    house.engine.gate = Gate(prefill=True)
    here = visit()
    here.ask("Read it.", "contract.pdf")
    here.page.wait_for_selector(".qv-progress:has-text('Reading')", timeout=30_000)
    here.page.click("#qv-send")
    assert house.engine.wait_for(lambda: house.engine.running is None)
    here.settled()
    assert "Stopped before the answer began." in here.page.inner_text(".qv-note")
    assert len(house.engine.stopped) == 1

    house.engine.gate = Gate()
    house.engine.script, house.engine.endless, house.engine.pace = "la ", True, 0.01
    here.ask("Sing.")
    here.page.wait_for_selector(".qv-writing .qv-text:has-text('la la')", timeout=30_000)
    here.page.keyboard.press("Escape")
    assert house.engine.wait_for(lambda: house.engine.running is None)
    here.settled(2)
    assert len(house.engine.stopped) == 2
    assert here.answer().startswith("la la")  # what was said stays


def test_the_time_a_long_prompt_still_takes_is_shown(visit, house):
    house.engine.gate, house.engine.seconds_left = Gate(prefill=True), 42.4
    english, chinese = visit(), visit(locale="zh-CN")
    english.ask("One.")
    english.page.wait_for_selector(".qv-progress:has-text('about 42 s left')", timeout=30_000)
    english.page.click("#qv-send")
    english.settled()
    house.engine.gate.hold_again()
    house.engine.seconds_left = 400.0
    chinese.ask("二。")
    chinese.page.wait_for_selector(".qv-progress:has-text('大约还需 7 分钟')", timeout=30_000)
    house.engine.gate.release()
    chinese.settled()


def test_the_place_in_the_queue_is_shown(visit, house):
    house.engine.gate = Gate(prefill=True)
    first, second = visit(), visit()
    first.ask("One.")
    first.page.wait_for_selector(".qv-progress:has-text('Reading')", timeout=30_000)
    second.ask("Two.")
    second.page.wait_for_selector(".qv-progress:has-text('Waiting: 1 before you')", timeout=30_000)
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
    here.page.wait_for_selector(".qv-text:has-text('Before the reload')", timeout=30_000)
    here.reload()
    here.page.wait_for_selector(".qv-writing .qv-text:has-text('Before the reload')", timeout=30_000)
    house.engine.gate.release()
    here.settled()
    assert here.answer() == "Before the reload and after."
    assert len(house.engine.requests) == 1


def test_thinking_is_folded_with_its_duration(visit, house):
    house.engine.thinking, house.engine.script = "Let me look closely.", "Done."
    house.engine.gate = Gate(after=4)
    here = visit()
    here.ask("Think.")
    here.page.wait_for_selector(".qv-thoughts[open] .qv-thoughts-text:has-text('Let me')", timeout=30_000)
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
    here.page.wait_for_selector(".qv-note.qv-bad:has-text('The engine fell over. Try again.')", timeout=30_000)
    house.engine.fail = None
    here.page.click(".qv-answer [title='Answer again']")
    here.page.wait_for_selector("text=Hello from the script.", timeout=30_000)


def test_what_the_engine_says_about_a_whole_answer_stands_below_it(visit, house):
    here = visit(locale="zh-CN")
    house.engine.note = (
        "The model began to repeat itself; the repetition was cut off and it was made to go on differently.\n"
        "The conversation now needs more positions than before (the model was trained on 4,096). It was read again "
        "from its beginning with stretched positions (yarn:1.5); answers may be less exact."
    )
    here.ask("Hello?")
    here.page.wait_for_selector(".qv-note:has-text('模型训练时为 4,096 个')", timeout=30_000)
    assert "模型开始重复自己" in here.page.inner_text(".qv-note")
    assert here.page.locator(".qv-note.qv-bad").count() == 0


STILL_COLOUR = """() => {
  const still = document.querySelector('.qv-still'), canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [still.naturalWidth, still.naturalHeight];
  const pen = canvas.getContext('2d');
  pen.drawImage(still, 0, 0);
  return [...pen.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data].slice(0, 3);
}"""


def test_a_video_no_browser_plays_shows_stills_until_its_copy_is_ready(visit, house, monkeypatch):
    make, may_make = playable.make_playable, threading.Event()

    def held(*arguments, **options):
        assert may_make.wait(60)
        make(*arguments, **options)

    monkeypatch.setattr(playable, "make_playable", held)
    house.engine.script = "It turns at 0:12, then 0:21."
    here = visit()
    try:
        here.ask("When?", "old.avi")
        here.settled()
        for stamp, seconds in (("0:12", 12), ("0:21", 21)):
            here.page.click(f"a.qv-cite:has-text('{stamp}')")
            here.page.wait_for_function(
                "seconds => { const s = document.querySelector('.qv-still');"
                " return s.src.includes('/' + seconds + '.000.webp') && s.complete && s.naturalWidth > 0; }",
                arg=seconds,
            )
            assert here.page.locator(".qv-still").is_visible()
            seen = here.page.evaluate(STILL_COLOUR)
            assert all(abs(have - want) <= 8 for have, want in zip(seen, colour_at(seconds), strict=True)), seen
        assert "Making a copy" in here.page.inner_text(".qv-making")
    finally:
        may_make.set()
    here.sees_second(21)  # the copy, where the still was
    here.page.locator(".qv-still").wait_for(state="hidden")
    assert here.page.locator("#qv-video").is_visible()
    assert here.page.locator(".qv-making").is_hidden()
    here.page.click("a.qv-cite:has-text('0:12')")
    here.sees_second(12)
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


def test_another_tab_follows_the_conversation(visit, house):
    house.engine.gate = Gate(after=2)
    first = visit()
    first.ask("First question.")
    first.page.wait_for_selector(".qv-writing .qv-text:not(:empty)")
    second = visit(beside=first)
    second.page.wait_for_selector(".qv-writing .qv-text:not(:empty)")  # joined
    house.engine.gate.release()
    first.settled()
    second.settled()

    second.page.fill("#qv-question", "A draft.")
    house.engine.script, house.engine.gate = "Another answer.", Gate(after=1)
    first.ask("Second question.")
    second.page.wait_for_selector(".qv-bubble:has-text('Second question.')")
    second.page.wait_for_selector(".qv-writing .qv-text:not(:empty)")
    house.engine.gate.release()
    for each in (first, second):
        each.settled(2)
        assert each.answer() == "Another answer."
    assert second.page.input_value("#qv-question") == "A draft."
    second.page.press("#qv-question", "Enter")
    second.settled(3)
    first.settled(3)


def test_a_question_into_a_running_answer_is_refused_and_kept(visit, house):
    first = visit()
    first.ask("First question.")
    first.settled()
    second = visit()  # another browser, which is not told
    second.page.click(".qv-entry-title")
    second.settled()
    house.engine.gate = Gate(after=1)
    first.ask("Second question.")
    first.page.wait_for_selector(".qv-writing .qv-text:not(:empty)")
    second.ask("My own question.")
    second.page.wait_for_selector(".qv-trouble:has-text('still being written')")
    assert second.page.input_value("#qv-question") == "My own question."
    second.page.wait_for_selector(".qv-bubble:has-text('Second question.')")  # and the other's words appear
    house.engine.gate.release()
    first.settled(2)
    second.settled(2)
    assert first.answer() == second.answer() == "Hello from the script."
    second.page.press("#qv-question", "Enter")
    second.settled(3)
    assert second.page.locator(".qv-trouble").is_hidden()


def test_an_opening_whose_answer_was_lost_is_asked_again(visit, house, monkeypatch):
    house.services.store.save("local", Conversation(title="Kept").ask("Kept?"))
    one = visit()
    begin, lost = Watches.begin, []

    def losing(self, session):
        replaced = begin(self, session)
        if not lost:
            lost.append(replaced)
            replaced.set()  # as if a newer command had begun: this one gets no answer
        return replaced

    monkeypatch.setattr(Watches, "begin", losing)
    one.page.click(".qv-entry-title")
    one.page.wait_for_selector(".qv-bubble:has-text('Kept?')")
    assert lost


def test_the_last_click_wins_over_an_older_result_that_comes_later(visit, house, monkeypatch):
    slow, quick = (Conversation(title=title).ask(f"{title}?") for title in ("Slow", "Quick"))
    for conversation in (slow, quick):
        house.services.store.save("local", conversation)
    load, asked, may_load = house.services.store.load, threading.Event(), threading.Event()

    def held(owner, conversation_id):
        if conversation_id == slow.id:
            asked.set()
            assert may_load.wait(30)
        return load(owner, conversation_id)

    monkeypatch.setattr(house.services.store, "load", held)
    here = visit()
    try:
        here.page.click(".qv-entry-title:text-is('Slow')")
        assert asked.wait(10)
        here.page.click(".qv-entry-title:text-is('Quick')")
        here.page.wait_for_selector(".qv-bubble:text-is('Quick?')")
    finally:
        may_load.set()
    here.page.fill("#qv-search", "Quick")  # its answer comes by the same stream, after the late result
    here.page.wait_for_function("document.querySelectorAll('.qv-entry').length === 1")
    assert here.page.inner_text(".qv-bubble") == "Quick?"


def test_what_is_written_while_a_question_is_accepted_stays(visit, house, monkeypatch):
    save, asked, may_save = house.services.store.save, threading.Event(), threading.Event()

    def held(owner, conversation):
        asked.set()
        assert may_save.wait(30)
        return save(owner, conversation)

    monkeypatch.setattr(house.services.store, "save", held)
    here = visit()
    try:
        here.ask("First.", "scene.png")
        assert asked.wait(10)
        here.page.fill("#qv-question", "Then this.")
    finally:
        may_save.set()
    here.settled()
    assert here.page.input_value("#qv-question") == "Then this."
    assert here.page.locator(".qv-composer .qv-chip").count() == 0
    here.page.press("#qv-question", "Enter")
    here.settled(2)
    assert here.page.locator(".qv-bubble").all_inner_texts() == ["First.", "Then this."]


def test_a_quoted_passage_is_marked_on_its_page(visit, house):
    house.engine.script = 'The words "Agreement, page 3" are on page 3.'
    here = visit()
    here.ask("Which page?", "contract.pdf")
    here.settled()
    here.page.click("a.qv-cite:has-text('page 3')")
    here.page.wait_for_selector(".qv-document[data-page='3']")
    here.page.wait_for_selector(".qv-document rect.qv-box-shape")  # by the page's own text layer
    here.page.click(".qv-pager [title='Next page']")
    here.page.wait_for_selector(".qv-document[data-page='4']")
    assert here.page.locator(".qv-document rect.qv-box-shape").count() == 0
