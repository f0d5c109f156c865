"""Writing a message: files, cost, refusals, keys."""

import pytest

pytestmark = pytest.mark.browser


def test_the_cost_is_shown_before_anything_is_sent(visit, house):
    here = visit()
    here.attach("colours.mp4", "contract.pdf")
    meter = here.page.wait_for_selector(".qv-gauge:has-text('moments')", timeout=10_000)
    words = meter.inner_text()
    assert "7 pages" in words
    assert "of 262K tokens" in words
    assert house.engine.requests == []


def test_what_does_not_fit_is_refused_with_the_plan_that_would(visit, house):
    here = visit()
    context, house.engine.context_length = house.engine.context_length, 3_000
    try:
        here.attach("contract.pdf")
        here.page.fill("#qv-question", "Sum it up.")
        here.page.wait_for_selector(".qv-trouble:has-text('tokens')", timeout=10_000)
        here.page.press("#qv-question", "Enter")
        here.page.wait_for_function("!document.querySelector('.qv-pending')")
        assert here.page.input_value("#qv-question") == "Sum it up."  # nothing is lost
        assert here.page.locator(".qv-composer .qv-chip").count() == 1
        here.page.wait_for_selector(".qv-trouble .qv-small", timeout=10_000, state="attached")
        here.page.click(".qv-trouble .qv-small")
        here.page.wait_for_selector(".qv-gauge:has-text('pages')", timeout=10_000)
        here.page.press("#qv-question", "Enter")
        here.settled()
    finally:
        house.engine.context_length = context


def test_a_broken_file_gets_a_sentence_and_the_rest_goes_on(visit, house):
    here = visit()
    here.page.fill("#qv-question", "Keep this.")
    here.page.set_input_files("#qv-picker", [str(house.files / "broken.mp4"), str(house.files / "scene.png")])
    trouble = here.page.wait_for_selector(".qv-trouble", timeout=10_000)
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
    here.page.wait_for_selector(".qv-composer .qv-chip:has-text('640 × 480')", timeout=10_000)
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
