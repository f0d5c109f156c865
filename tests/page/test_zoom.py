"""A second, closer reading of a long film, as a person sees it."""

import pytest

from tests.clips import srt
from tests.scripted_engine import Gate

pytestmark = pytest.mark.browser


def ask_about_a_sparse_film(visit, house, zoom=True):
    """The film is shown in six moments, so that a time read off it is coarse."""
    answers = iter(["It turns at 9.7 seconds.", "It turns at 11.5 seconds."])
    house.engine.script = lambda request: next(answers)
    here = visit()
    here.page.click("#qv-open-settings")
    here.page.fill("#qv-most_moments", "6")
    here.page.set_checked("#qv-zoom", zoom)
    here.page.keyboard.press("Escape")
    return here


def test_the_closer_look_is_told_while_it_runs_and_stays_below_the_question(visit, house):
    here = ask_about_a_sparse_film(visit, house)
    house.engine.gate = Gate(prefill=True, only=lambda request: len(house.engine.requests) > 1)
    house.engine.requests.clear()
    here.ask("When does it turn?", "colours.mp4")
    here.page.wait_for_selector(".qv-writing .qv-closer:has-text('Looked closer')")
    assert here.page.locator(".qv-writing .qv-text:not(:empty)").count() == 0  # the coarse time is never shown
    house.engine.gate.release()
    here.settled()
    assert here.answer() == "It turns at 11.5 seconds."
    here.reload()
    here.settled()
    span = here.page.locator(".qv-closer a").first
    start = float(span.get_attribute("href").split("t=")[1].split("&")[0])
    span.click()
    here.sees_second(start)
    here.page.click("#qv-language")
    here.page.wait_for_selector(".qv-closer:has-text('细看')")


def test_it_can_be_turned_off(visit, house):
    here = ask_about_a_sparse_film(visit, house, zoom=False)
    here.ask("When does it turn?", "colours.mp4")
    here.settled()
    assert here.answer() == "It turns at 9.7 seconds." and here.page.locator(".qv-closer").is_hidden()


def test_how_each_span_was_found_is_told_in_both_languages(visit, house):
    (house.files / "tale.srt").write_text(srt([(2.0, 4.0, "welcome"), (14.0, 16.0, "here the dragon wakes")]))
    here = ask_about_a_sparse_film(visit, house)
    answers = iter(["It wakes at 4.1 seconds.", "It wakes at 14.5 seconds."])
    house.engine.script = lambda request: next(answers)
    house.engine.alike = lambda plan, _: tuple(float(stamp > 25) for stamp in plan.stamps)
    here.ask("When does the dragon wake?", "colours.mp4", "tale.srt")
    here.settled()
    assert here.answer() == "It wakes at 14.5 seconds."
    here.reload()
    here.settled()
    words = here.page.locator(".qv-closer").inner_text()
    assert words.index("Looked closer:") < words.index("the words are said:") < words.index("looks like it:")
    assert here.page.locator(".qv-way").count() == 2
    here.page.locator(".qv-way a").first.click()
    here.sees_second(12.0)
    here.page.click("#qv-language")
    here.page.wait_for_selector(".qv-way:has-text('提到这些词')")
    here.page.wait_for_selector(".qv-way:has-text('画面相似')")


def test_a_span_that_an_earlier_answer_told_of_is_named_so(visit, house):
    here = ask_about_a_sparse_film(visit, house)
    answers = iter(["0:14 - The dragon wakes", "I do not see it.", "It wakes at 14.5 seconds."])
    house.engine.script = lambda request: next(answers)
    here.ask("Make chapters.", "colours.mp4")
    here.settled()
    here.ask("When is the dragon shown?")
    here.settled(2)
    assert here.answer() == "It wakes at 14.5 seconds."
    here.page.wait_for_selector(".qv-way:has-text('told of before')")
    here.page.click("#qv-language")
    here.page.wait_for_selector(".qv-way:has-text('前面的回答提到')")
