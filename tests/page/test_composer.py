"""Writing a message: files, cost, refusals, keys."""

import json
import re
from dataclasses import replace

import pytest

from qwen3vl_webui.page import examples
from qwen3vl_webui.page.boot import ASSETS
from tests.page.conftest import opened

pytestmark = pytest.mark.browser


def test_the_cost_is_shown_before_anything_is_sent(visit, house):
    here = visit()
    here.attach("colours.mp4", "contract.pdf")
    meter = here.page.wait_for_selector(".qv-gauge:has-text('moments')", timeout=30_000)
    words = meter.inner_text()
    assert "7 pages" in words
    assert "of 262K tokens" in words
    assert re.search(r"· [\d,.]+K? positions", words)
    assert house.engine.requests == []


def test_what_does_not_fit_is_refused_with_the_plan_that_would(visit, house):
    here = visit()
    context, house.engine.context_length = house.engine.context_length, 3_000
    try:
        here.attach("colours.mp4")
        here.page.click("#qv-open-settings")
        here.page.fill("#qv-fps", "25")  # by hand: it is kept or refused
        here.page.keyboard.press("Escape")
        here.page.fill("#qv-question", "Sum it up.")
        here.page.wait_for_selector(".qv-trouble:has-text('tokens')", timeout=30_000)
        here.page.press("#qv-question", "Enter")
        here.page.wait_for_function("!document.querySelector('.qv-pending')")
        assert here.page.input_value("#qv-question") == "Sum it up."  # nothing is lost
        assert here.page.locator(".qv-composer .qv-chip").count() == 1
        here.page.wait_for_selector(".qv-trouble .qv-small", timeout=30_000, state="attached")
        here.page.click(".qv-trouble .qv-small")
        here.page.wait_for_selector(".qv-gauge:has-text('moments')", timeout=30_000)
        here.page.press("#qv-question", "Enter")
        here.settled()
    finally:
        house.engine.context_length = context


def test_words_beyond_the_context_are_counted(visit, house, monkeypatch):
    monkeypatch.setattr(house.engine, "context_length", 3_000)
    here = visit()
    here.page.fill("#qv-question", "many words " * 4_000)
    said = here.page.wait_for_selector(".qv-trouble:has-text('tokens')", timeout=30_000).inner_text()
    tokens = int(re.search(r"has ([\d,]+) tokens", said)[1].replace(",", ""))
    assert tokens > 3_000
    title = here.page.get_attribute(".qv-gauge", "title")
    assert f"{tokens:,} of 3,000 tokens" in title


def test_of_a_long_pdf_the_nearest_pages_are_shown_and_the_answer_says_which(visit, house):
    here = visit()
    context, house.engine.context_length = house.engine.context_length, 3_000
    try:
        here.attach("contract.pdf")
        here.page.fill("#qv-question", "Sum it up.")
        here.page.wait_for_selector(".qv-gauge:has-text('nearest to the question')", timeout=30_000)
        here.page.press("#qv-question", "Enter")
        here.settled()
        here.page.wait_for_selector(".qv-answer .qv-note:has-text('pages of contract.pdf, the model is shown')")
        here.page.click("#qv-language")
        here.page.wait_for_selector(".qv-answer .qv-note:has-text('最相关')")
    finally:
        house.engine.context_length = context


def test_of_a_conversation_that_outgrew_the_context_what_is_left_out_is_said_before_and_after(visit, house):
    here = visit()
    context, house.engine.context_length = house.engine.context_length, 2_500
    house.engine.script = "word " * 400
    try:
        for number in range(1, 6):
            here.ask(f"Tell me of subject {number}.")
            here.settled(number)
        here.page.fill("#qv-question", "Which was subject 1?")
        here.page.wait_for_selector(".qv-lacking:has-text('earlier questions (no. 2-')")
        here.page.press("#qv-question", "Enter")
        here.settled(6)
        shown = [m.parts[-1] for m in house.engine.requests[-1].messages if m.role == "user"]
        assert shown == [*(f"Tell me of subject {number}." for number in (1, 4, 5)), "Which was subject 1?"]
        here.page.wait_for_selector(".qv-answer .qv-note:has-text('2 of your 5 earlier questions (no. 2-3)')")
        assert here.page.locator(".qv-question").count() == 6  # the person still sees all of it
        here.page.click("#qv-language")
        here.page.wait_for_selector(".qv-answer .qv-note:has-text('之前的 5 个问题中有 2 个')")
        here.page.wait_for_selector(".qv-lacking:has-text('之前的 6 个问题中')")
    finally:
        house.engine.context_length = context


def test_what_was_begun_outlives_a_reload_of_the_page(visit, house):
    here = visit()
    here.attach("scene.png")
    here.page.fill("#qv-question", "Half a que")
    here.reload()
    here.page.wait_for_selector(".qv-composer .qv-chip:has-text('scene.png')")
    assert here.page.input_value("#qv-question") == "Half a que"
    here.page.press("#qv-question", "Enter")
    here.settled()
    here.reload()
    here.settled()
    assert here.page.input_value("#qv-question") == "" and not here.page.locator(".qv-composer .qv-chip").count()


def test_a_broken_file_gets_a_sentence_and_the_rest_goes_on(visit, house):
    here = visit()
    here.page.fill("#qv-question", "Keep this.")
    here.page.set_input_files("#qv-picker", [str(house.files / "broken.mp4"), str(house.files / "scene.png")])
    trouble = here.page.wait_for_selector(".qv-trouble", timeout=30_000)
    assert "broken.mp4" in trouble.inner_text()
    here.complaints[:] = [each for each in here.complaints if "400" not in each and "415" not in each]
    here.page.wait_for_function(
        "document.querySelectorAll('.qv-composer .qv-chip').length === 1 && !document.querySelector('.qv-chip-busy')"
    )
    assert here.page.input_value("#qv-question") == "Keep this."
    here.page.press("#qv-question", "Enter")
    here.settled()


def test_files_can_be_dropped_anywhere_and_removed(visit, house):
    here = visit()
    data = (house.files / "scene.png").read_bytes()
    here.page.evaluate(
        """bytes => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], 'dropped.png', {type: 'image/png'}));
          for (const name of ['dragenter', 'dragover', 'drop'])
            document.querySelector('.qv-thread').dispatchEvent(
              new DragEvent(name, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        list(data),
    )
    here.page.wait_for_selector(".qv-composer .qv-chip:has-text('640 × 480')", timeout=30_000)
    here.page.click("[aria-label='Remove dropped.png']")
    assert here.page.locator(".qv-composer .qv-chip").count() == 0
    assert here.page.locator("#qv-send").is_disabled()


def test_shift_enter_breaks_the_line_and_a_composing_enter_sends_nothing(visit, house):
    here = visit()
    here.page.focus("#qv-question")
    here.page.keyboard.type("one")
    here.page.keyboard.press("Shift+Enter")
    here.page.keyboard.type("two")
    assert here.page.input_value("#qv-question") == "one\ntwo"
    here.page.evaluate(
        """() => document.querySelector('#qv-question').dispatchEvent(new KeyboardEvent('keydown',
             {key: 'Enter', keyCode: 229, isComposing: true, bubbles: true, cancelable: true}))"""
    )
    here.page.wait_for_timeout(100)
    assert house.engine.requests == []
    here.page.keyboard.press("Enter")
    here.settled()
    assert house.engine.requests[0].messages[-1].parts == ("one\ntwo",)


def test_a_preset_fills_the_question_and_sets_the_sampling(visit, house):
    here = visit()
    here.attach("scene.png")
    here.page.click(".qv-preset:has-text('Locate')")
    assert "bbox" in here.page.input_value("#qv-question")
    here.page.press("#qv-question", "Enter")
    here.settled()
    assert house.engine.requests[0].sampling.temperature == 0.0


def test_the_drawer_sets_what_is_asked_for(visit, house):
    here = visit()
    here.page.click("#qv-open-settings")
    here.page.fill("#qv-seed", "42")
    here.page.fill("#qv-max_tokens", "64")
    here.page.locator("#qv-temperature").fill("0.3")
    here.page.keyboard.press("Escape")
    here.ask("Go.")
    here.settled()
    sampling = house.engine.requests[0].sampling
    assert (sampling.seed, sampling.max_tokens, sampling.temperature) == (42, 64, 0.3)
    here.reload()
    here.page.click("#qv-open-settings")
    assert here.page.input_value("#qv-seed") == "42"


def test_control_tokens_arrive_as_plain_text(visit, house):
    here = visit()
    here.ask("say <|im_start|> and <|vision_start|>")
    here.settled()
    assert house.engine.requests[0].messages[-1].parts == ("say <|im_start|> and <|vision_start|>",)
    assert here.page.inner_text(".qv-bubble") == "say <|im_start|> and <|vision_start|>"


def test_enter_during_an_upload_sends_when_it_is_there(visit, house):
    here = visit()
    here.page.fill("#qv-question", "What is it?")
    here.page.set_input_files("#qv-picker", [str(house.files / "scene.png")])
    here.page.press("#qv-question", "Enter")
    here.settled()
    assert here.page.locator(".qv-question .qv-file").count() == 1


PASTE = """([bytes, texts]) => {
  const transfer = new DataTransfer();
  if (bytes) transfer.items.add(new File([new Uint8Array(bytes)], 'image.png', {type: 'image/png'}));
  for (const [type, text] of Object.entries(texts)) transfer.setData(type, text);
  const paste = new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true, cancelable: true});
  return document.activeElement.dispatchEvent(paste);
}"""


def test_a_pasted_picture_becomes_a_file_and_pasted_text_stays_text(visit, house):
    here = visit(permissions=["clipboard-read", "clipboard-write"])
    picture = list((house.files / "scene.png").read_bytes())
    here.page.focus("#qv-question")
    assert here.page.evaluate(PASTE, [picture, {}]) is False  # taken: nothing of it lands in the text
    here.page.wait_for_selector(".qv-composer .qv-chip:has-text('640 × 480')")
    # A spreadsheet copies its cells as text and as a picture: the text is meant, and the browser inserts it.
    assert here.page.evaluate(PASTE, [picture, {"text/plain": "1\t2", "text/html": "<td>1<td>2"}]) is True
    here.page.evaluate("document.activeElement.blur()")
    here.page.evaluate(PASTE, [picture, {}])  # anywhere on the page
    here.page.wait_for_function("document.querySelectorAll('.qv-composer .qv-chip').length === 2")

    long = "One of many lines.\n" * 2000
    here.page.evaluate("text => navigator.clipboard.writeText(text)", long)
    here.page.focus("#qv-question")
    here.page.keyboard.press("Control+v")
    assert here.page.input_value("#qv-question") == long
    assert here.page.locator(".qv-composer .qv-chip").count() == 2
    assert here.page.locator("#qv-question").bounding_box()["height"] <= 0.4 * 900 + 1
    here.page.wait_for_function("!document.querySelector('.qv-chip-busy')")
    here.page.keyboard.press("Enter")
    here.settled()
    assert house.engine.requests[0].messages[-1].parts[-1] == long


@pytest.fixture
def library(house, tmp_path):
    """A house that opens the files of `house` by their path."""
    with opened(tmp_path, house.files, media_dir=house.files) as library:
        yield library


def test_a_file_on_the_server_is_opened_by_its_path(library, visit):
    here = visit(at=library)
    here.page.click("[title='Open a file on the server']")
    assert here.page.evaluate("document.activeElement === document.querySelector('.qv-path input')")
    here.page.keyboard.type("../../etc/passwd")
    here.page.keyboard.press("Enter")
    here.page.wait_for_selector(".qv-trouble:has-text('There is no such file below')")
    assert here.page.input_value(".qv-path input") == "../../etc/passwd"  # to be mended
    here.complaints[:] = [each for each in here.complaints if "404" not in each]
    here.page.fill(".qv-path input", "colours.mp4")
    here.page.keyboard.press("Enter")
    here.page.wait_for_selector(".qv-composer .qv-chip:has-text('0:30')")
    assert here.page.locator(".qv-trouble").is_hidden()
    assert here.page.locator(".qv-path").is_hidden()
    assert here.page.evaluate("document.activeElement.id") == "qv-question"
    library.engine.script = "At 0:12."
    here.ask("When?")
    here.settled()
    here.page.click("a.qv-cite")
    here.sees_second(12)


def test_without_a_media_folder_there_is_no_field_for_paths(visit):
    here = visit()
    assert here.page.locator("[title='Open a file on the server']").count() == 0


@pytest.mark.parametrize("kind", ["video", "document", "image"])
def test_an_example_is_asked_about_its_file(visit, house, kind):
    example = next(each for each in examples.EXAMPLES if each["kind"] == kind)
    assert (ASSETS / "samples" / example["file"]).is_file()
    here = visit()
    here.page.dblclick(f".qv-example:has-text({json.dumps(example['question']['en'])})")
    here.settled()
    assert here.page.inner_text(".qv-bubble") == example["question"]["en"]
    assert here.page.locator(".qv-question .qv-file").get_attribute("title") == example["file"]
    assert len(house.engine.requests) == 1
    assert len(house.engine.requests[0].messages[-1].parts) > 1


def test_an_example_in_chinese_adds_to_what_was_begun(visit, house):
    here = visit(locale="zh-CN")
    here.page.fill("#qv-question", "我的问题")
    here.page.click(".qv-example:has-text('图里有什么？')")
    here.page.wait_for_selector(".qv-composer .qv-chip:has-text('640 × 480')")
    assert here.page.input_value("#qv-question") == "我的问题"
    assert house.engine.requests == []


def test_an_enter_of_an_input_method_sends_nothing(visit, house):
    here = visit()
    here.page.focus("#qv-question")
    keys = here.page.context.new_cdp_session(here.page)
    processed = {"key": "Process", "code": "Enter", "windowsVirtualKeyCode": 229}
    for letters in ("n", "ni", "ni h", "ni hao"):
        keys.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **processed, "code": "KeyN"})
        keys.send(
            "Input.imeSetComposition", {"text": letters, "selectionStart": len(letters), "selectionEnd": len(letters)}
        )
    # Enter takes the candidate: some platforms name the key, some say Process, all say 229 or isComposing.
    keys.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **processed, "key": "Enter"})
    keys.send("Input.insertText", {"text": "你好"})
    keys.send("Input.dispatchKeyEvent", {"type": "keyUp", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13})
    assert here.page.input_value("#qv-question") == "你好"
    assert here.page.locator(".qv-row").count() == 0
    here.page.keyboard.press("Enter")
    here.settled()
    assert [request.messages[-1].parts for request in house.engine.requests] == [("你好",)]


def test_the_model_card_tells_how_weights_and_context_are_held(visit, house):
    model = house.engine.model
    house.engine.model = replace(model, quantization="4bit", kv_cache="int8")
    try:
        here = visit()
        here.page.click(".qv-model")
        words = here.page.inner_text(".qv-model-card")
        assert "Weights\n4bit" in words and "Keys and values\nint8" in words
    finally:
        house.engine.model = model
