from __future__ import annotations

import numpy as np

from qwen3vl_webui.model.drafts import FIRST, MOST, MOST_PAUSE, Drafts

PAD = 999
NEVER = np.array([PAD])


def drafts(*prompt: int) -> Drafts:
    return Drafts(np.array(prompt, np.int64), NEVER)


def test_what_followed_the_last_three_tokens_before_is_guessed() -> None:
    assert drafts(1, 2, 3, 4, 5, 6, 7, 8).guess([9, 1, 2, 3], 100) == [4, 5, 6, 7]
    assert drafts(1, 2, 3, 4, 5).guess([9, 9, 2, 3], 100) == []


def test_the_latest_place_counts_and_the_answer_itself_is_one() -> None:
    assert drafts(1, 2, 3, 4, 4, 4).guess([1, 2, 3, 5, 6, 1, 2, 3], 100) == [5, 6, 1, 2]


def test_what_repeats_itself_is_guessed_to_go_on() -> None:
    assert drafts(1, 2, 3).guess([7, 8, 7, 8, 7], 100) == [8, 7, 8, 7]
    assert drafts(1, 2, 3).guess([4, 4, 4, 4], 100) == [4] * FIRST


def test_tokens_before_the_answer_are_part_of_what_came_last() -> None:
    assert drafts(7, 8, 9, 5, 0, 7, 8).guess([9], 2) == [5, 0]


def test_a_guess_ends_before_vision_and_control_tokens_and_at_the_room_that_is_left() -> None:
    assert drafts(1, 2, 3, 4, PAD, 5).guess([1, 2, 3], 100) == [4]
    assert drafts(1, 2, 3, PAD, 5, 6).guess([1, 2, 3], 100) == []
    assert drafts(1, 2, 3, 4, 5, 6).guess([1, 2, 3], 1) == [4]
    assert drafts(1, 2, 3, 4, 5, 6).guess([1, 2, 3], 0) == []


def test_short_prompts_and_large_token_ids_are_fine() -> None:
    assert drafts().guess([], 5) == [] and drafts(1).guess([2], 5) == []
    large = [2_000_000, 151_935, 2_000_001, 17]
    assert drafts(*large).guess(large[:3], 4) == [17, *large[:3]]


def test_an_answer_that_was_cut_back_is_followed() -> None:
    guesses = drafts(1, 2, 3, 4, 5)
    guesses.guess([8, 8, 8, 1, 2, 3], 5)
    assert guesses.guess([8, 8], 5) == [] == guesses.guess([8, 8, 7], 5)
    assert guesses.guess([8, 8, 7, 6, 8, 8, 7], 5) == [6, 8, 8, 7]


def test_a_long_answer_is_remembered() -> None:
    guesses = drafts(*range(100, 110))
    answer = list(range(1000, 6000))
    for end in range(1, len(answer), 7):
        guesses.guess(answer[:end], 4)
    assert guesses.guess([*answer, 2000, 2001, 2002], 4) == [2003, 2004, 2005, 2006]


def test_guesses_grow_while_they_are_right_and_pause_while_they_are_wrong() -> None:
    guesses = drafts(*range(50))
    assert len(guesses.guess([10, 11, 12], 100)) == FIRST
    guesses.learn(FIRST, FIRST)
    assert len(guesses.guess([10, 11, 12], 100)) == MOST
    for _ in range(12):
        guesses.learn(0, MOST)
    assert [guesses.guess([10, 11, 12], 100) for _ in range(MOST_PAUSE)] == [[]] * MOST_PAUSE
    assert len(guesses.guess([10, 11, 12], 100)) == FIRST
