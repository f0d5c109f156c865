"""Spans in words: said before sending, taken back with a click, read again in a later question."""

import pytest

from qwen3vl_webui.media.values import FramePlan

pytestmark = pytest.mark.browser


def shown(house):
    """Seconds of the stamps in the last message of the newest request."""
    parts = house.engine.requests[-1].messages[-1].parts
    return [stamp for part in parts if isinstance(part, FramePlan) for stamp in part.stamps]


def test_a_span_in_words_is_told_and_can_be_taken_back(visit, house):
    here = visit()
    here.attach("colours.mp4")
    here.page.fill("#qv-question", "What is shown between 0:10 and 0:20?")
    note = here.page.wait_for_selector(".qv-named:has-text('0:10–0:20 of colours.mp4')")
    note.query_selector("button").click()
    here.page.wait_for_selector(".qv-named:has-text('Not narrowed')")
    here.page.click(".qv-named button")
    here.page.wait_for_selector(".qv-named:has-text('Reads only')")
    here.page.click("#qv-language")
    here.page.wait_for_selector(".qv-named:has-text('只读 colours.mp4 的 0:10–0:20')")
    here.page.press("#qv-question", "Enter")
    here.settled()
    assert all(10 <= stamp < 20 for stamp in shown(house))
    assert here.page.inner_text(".qv-question .qv-read") == "0:10–0:20"
    assert here.page.locator(".qv-named").is_hidden()


def test_taken_back_it_holds_for_that_message_only(visit, house):
    here = visit()
    here.attach("colours.mp4")
    here.page.fill("#qv-question", "What is shown in the last ten seconds?")
    here.page.click(".qv-named button")
    here.page.wait_for_selector(".qv-named:has-text('Not narrowed')")
    here.page.press("#qv-question", "Enter")
    here.settled()
    assert min(shown(house)) < 5 < 25 < max(shown(house))
    assert here.page.locator(".qv-read").count() == 0

    here.page.fill("#qv-question", "And in the last ten seconds?")
    here.page.wait_for_selector(".qv-named:has-text('Reads only 0:20–0:30')")
    here.page.press("#qv-question", "Enter")
    here.settled(2)
    first, second = house.engine.requests[0].messages[0], house.engine.requests[1].messages[0]
    assert first.parts == second.parts  # what was read before is not read anew
    assert min(shown(house)) >= 20
    here.page.click(".qv-read button")
    here.sees_second(20)
    moments = here.page.locator(".qv-strip .qv-moment span").all_inner_texts()
    assert moments[0].startswith("0:2")
