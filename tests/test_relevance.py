import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3vl_webui.relevance import choose_alike, choose_lines, choose_pages, scores_of, words_of, written_pages
from qwen3vl_webui.showing import read_pages

PAGES = [
    "Annual report. Contents and overview of the year.",
    "Revenue grew by twelve percent, mostly in Europe.",
    "The engine of the truck is cooled by water; pump 7342 fails first.",
    "Staff: four hundred people. Training took nine days.",
    "水泵的维护：每年更换一次密封圈，检查冷却水。",
    "Outlook for the next year.",
]


@pytest.mark.parametrize(
    "question, page",
    [
        ("Which page says 7342?", 2),
        ("How did revenue develop in Europe?", 1),
        ("密封圈多久更换？", 4),
        ("TRAINING days", 3),
    ],
)
def test_the_page_that_shares_the_words_comes_first(question: str, page: int) -> None:
    scores = scores_of(question, PAGES)
    assert scores.index(max(scores)) == page
    assert page in choose_pages(question, PAGES, 1)


def test_a_page_brings_the_one_after_it_while_there_is_room() -> None:
    assert choose_pages("pump 7342", PAGES, 2) == [2, 3]


def test_without_a_shared_word_pages_are_spread_from_the_first() -> None:
    assert choose_pages("zusammenfassen", PAGES, 3) == [0, 2, 4]


def test_chinese_needs_no_spaces() -> None:
    assert words_of("更换密封圈") == ["更换", "换密", "密封", "封圈"]


@given(st.sets(st.integers(1, 60), min_size=1))
def test_pages_are_written_as_they_are_read(pages: set[int]) -> None:
    assert set(read_pages(written_pages(sorted(pages)), 60)) == pages


@given(st.lists(st.text(max_size=40), min_size=1, max_size=12), st.text(max_size=30), st.integers(1, 15))
def test_as_many_pages_as_asked_for_each_once(texts: list[str], question: str, count: int) -> None:
    chosen = choose_pages(question, texts, count)
    assert len(chosen) == min(count, len(texts)) == len(set(chosen)) and chosen == sorted(chosen)


def test_lines_are_found_by_words_that_are_seldom_said() -> None:
    lines = [f"so this is the number {n} and the next" for n in range(100)] + ["the parabola, at last", "这里是抛物线"]
    assert choose_lines("When is the parabola shown?", lines) == [100]
    assert choose_lines("什么时候讲到抛物线？", lines) == [101]
    assert choose_lines("When is the next number?", lines) == []
    assert choose_lines("", lines) == [] and choose_lines("parabola", []) == []


def test_the_most_alike_moments_come_first_and_those_far_behind_are_left_out() -> None:
    assert choose_alike([0.1, 2.0, 1.9, 0.2, 0.0]) == [1, 2]
    assert choose_alike([0.0, 0.0]) == [] and choose_alike([]) == []
