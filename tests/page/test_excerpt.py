"""The line a citation has in the evidence pane: the sentence it stands in."""

from collections.abc import Callable

from tests.page.conftest import House

# The citation stands between brackets ⟦ ⟧.
SENTENCES = {
    "The fee is fixed. Payment is due within 30 days (⟦p. 3⟧). Fees grow.": "Payment is due within 30 days (p. 3).",
    "See ⟦pp. 3–4⟧ for both. Then stop.": "See pp. 3–4 for both.",
    "First. Costs, e.g. travel, grow by 2.5 percent a year, as (⟦p. 7⟧) says. Last.": (
        "Costs, e.g. travel, grow by 2.5 percent a year, as (p. 7) says."
    ),
    "It opens. At ⟦0:07.5⟧ the door shuts. It is over.": "At 0:07.5 the door shuts.",
    "The answer is no. On ⟦p. 2⟧ it says why.": "On p. 2 it says why.",
    "As no. 4 of the list says, it is due (⟦p. 2⟧).": "As no. 4 of the list says, it is due (p. 2).",
    "Dr. Li signs on ⟦p. 9⟧! Nobody else does.": "Dr. Li signs on p. 9!",
    "The rent is due. (⟦p. 3⟧)": "The rent is due. (p. 3)",
    "第一条。付款期限为30天（⟦第3页⟧）。第二条。": "付款期限为30天（第3页）。",
    "付款期限为30天。（⟦第3页⟧）": "付款期限为30天。（第3页）",
    "⟦0:07⟧ 红色；0:12 变蓝。": "0:07 红色",
    "- ⟦0:47⟧: a dog runs; a cat sleeps": "0:47: a dog runs; a cat sleeps",
}


def test_the_sentence_around_a_citation(visit: Callable) -> None:
    asked = [(text.replace("⟦", "").replace("⟧", ""), text.index("⟦"), text.index("⟧") - 1) for text in SENTENCES]
    found = visit().page.evaluate(
        "async (asked) => { const { sentenceAround } = await import('./ui/excerpt.js');"
        " return asked.map((each) => sentenceAround(...each)); }",
        [list(each) for each in asked],
    )
    assert dict(zip(SENTENCES, found, strict=True)) == SENTENCES


def test_a_page_cited_at_the_end_keeps_its_sentence(visit: Callable, house: House) -> None:
    house.engine.script = "The fee is fixed. Payment is due within 30 days (p. 3). It was due on p. 3 before."
    here = visit()
    here.ask("When is it due?", "contract.pdf")
    here.settled()
    assert here.page.locator(".qv-citation .qv-around").first.inner_text() == "Payment is due within 30 days (p. 3)."
