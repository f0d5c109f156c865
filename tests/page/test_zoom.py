"""A second, closer reading of a long film, as a person sees it."""

import pytest

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
