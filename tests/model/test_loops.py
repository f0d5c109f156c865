from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from qwen3vl_webui.model.loops import CONTEXT, LONGEST, LoopGuard, continuations

DIGITS = {1000 + value: value for value in range(10)}
BAR, LINE, COMMA = 1, 2, 3
WORDS = range(100, 200)  # tokens of four letters


def letters(token: int) -> int:
    return 4 if token in WORDS else 0


def digits(number: int) -> list[int]:
    return [1000 + int(digit) for digit in str(number)]


def text(length: int, seed: int = 0) -> list[int]:
    """Words that do not repeat."""
    return random.Random(seed).choices(list(WORDS), k=length)


def first_loop(tokens: Iterable[int]) -> tuple[int, int] | None:
    """How many tokens were written when the loop was found, and how many of them had been shown."""
    guard = LoopGuard(DIGITS, letters)
    shown = 0
    for count, token in enumerate(tokens, 1):
        guard.push(token)
        if guard.loop is not None or guard.counting:
            return count, shown
        if not guard.repeating:
            shown = count
    return None


def row(*cells: int) -> list[int]:
    return [BAR, *[token for cell in cells for token in (cell, BAR)], LINE]


@pytest.mark.parametrize("period", [1, 2, 7, 50, 200, LONGEST])
def test_a_loop_of_any_period_is_found_and_most_of_it_never_shown(period: int) -> None:
    before = text(300, seed=1)
    block = text(period, seed=2) if period > 1 else [WORDS[0]]
    found = first_loop([*before, *block * (3000 // period + 7)])
    assert found is not None
    count, shown = found
    assert count - len(before) <= max(650, 6 * period + 10)
    assert shown - len(before) <= max(2 * period, 48 + 2 * period)
    assert (shown - len(before)) % period <= 1, "whole copies are shown"


@pytest.mark.parametrize("period", [1, 7, 50, 200])
def test_at_the_limit_half_of_a_loop_is_one(period: int) -> None:
    block = text(period, seed=2) if period > 1 else [WORDS[0]]
    least = 128 if period == 1 else max(320, 6 * period)
    guard = LoopGuard(DIGITS, letters)
    for count, token in enumerate([*text(300, seed=1), *(block * (3000 // period))[: least + 2]]):
        assert (guard.stuck(False) is None) == (count - 300 < least)
        assert (guard.stuck(True) is not None) == guard.repeating
        guard.push(token)


def test_the_loop_is_told_as_one_period() -> None:
    guard = LoopGuard(DIGITS, letters)
    for token in [*text(100), *[7, 8, 9] * 300]:
        guard.push(token)
    assert guard.loop is not None and sorted(guard.loop) == [7, 8, 9]


def test_a_loop_that_counts_its_rows_is_found() -> None:
    rows = [[BAR, *digits(n), BAR, WORDS[3], WORDS[4], BAR, LINE] for n in range(1, 600)]
    found = first_loop(token for each in rows for token in each)
    assert found is not None and found[0] < 2500


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param(text(20_000), id="prose"),
        pytest.param([1000, COMMA] * 15 * 16, id="a line of zeros"),
        pytest.param(([*[1000, COMMA] * 16, LINE]) * 16, id="a matrix of zeros"),
        pytest.param(row(100, 100, 100, 100) * 50, id="a table of equal cells"),
        pytest.param([*text(60, 1), *text(60, 2)] * 5, id="a poem with its refrain"),
        pytest.param([token for n in range(1, 2000) for token in [*digits(n), LINE]], id="counting to 2000"),
        pytest.param(
            [token for n in range(1, 120) for token in [*digits(n), BAR, WORDS[0], BAR, LINE]], id="a numbered list"
        ),
        pytest.param(
            [
                token
                for n in range(1, 600)
                for token in row(WORDS[0], *digits(n), *digits(random.Random(n).randrange(900)))
            ],
            id="a table of measurements",
        ),
        pytest.param(
            [token for n in range(300) for token in [*text(3, n % 2), *text(1, n), LINE, LINE]],
            id="code of similar lines",
        ),
    ],
)
def test_what_only_looks_like_a_loop_is_left_alone(tokens: list[int]) -> None:
    assert first_loop(tokens) is None


def test_counting_without_words_is_shown_as_it_comes() -> None:
    guard = LoopGuard(DIGITS, letters)
    for n in range(1, 1500):
        for token in [*digits(n), LINE]:
            guard.push(token)
        assert not guard.repeating


def test_text_is_held_back_only_while_it_repeats() -> None:
    guard = LoopGuard(DIGITS, letters)
    held = []
    for token in [*text(100), *row(100, 100) * 20, *text(100, seed=5)]:
        guard.push(token)
        held.append(guard.repeating)
    assert not any(held[:150]) and all(held[170:200]) and not any(held[222:])


@pytest.mark.parametrize("period", [[7], [7, 8, 9], list(range(100, 140))])
def test_what_is_banned_is_the_loop_from_any_place_in_it(period: list[int]) -> None:
    banned = continuations(period)
    looped = period * 20
    for at in range(CONTEXT, len(looped)):
        assert banned[tuple(looped[at - CONTEXT : at])] == looped[at]
