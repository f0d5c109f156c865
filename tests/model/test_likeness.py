"""Which moments look like the words of a question, by features that are there."""

import pytest
import torch

from qwen3vl_webui.model.likeness import likeness_of_features

RED, CIRCLE, WHEN, OTHER = torch.eye(4)


def cells(*rows: torch.Tensor) -> torch.Tensor:
    return torch.stack(rows)


def test_a_cell_that_is_like_all_words_wins_over_cells_like_one_each() -> None:
    both = cells(RED + CIRCLE, OTHER)
    apart = cells(RED + OTHER, CIRCLE + OTHER)
    neither = cells(OTHER, OTHER)
    first, second, third = likeness_of_features([both, apart, neither], torch.stack([RED, CIRCLE, WHEN]))
    assert first > second > third


def test_words_that_every_picture_is_alike_to_count_for_nothing() -> None:
    moments = [cells(WHEN + RED), cells(WHEN + OTHER), cells(WHEN + OTHER)]
    with_it = likeness_of_features(moments, torch.stack([RED, WHEN]))
    assert with_it.index(max(with_it)) == 0
    assert max(likeness_of_features([cells(WHEN)] * 3, torch.stack([WHEN]))) == pytest.approx(0.0, abs=1e-9)


def test_what_is_not_kept_is_like_nothing() -> None:
    words = torch.stack([RED])
    assert likeness_of_features([None, cells(RED), cells(OTHER)], words)[0] == 0.0
    assert likeness_of_features([None, None], words) == (0.0, 0.0)
    assert likeness_of_features([cells(RED)], torch.empty(0, 4)) == (0.0,)
    assert likeness_of_features([], words) == ()


def test_neither_size_nor_kind_of_numbers_matters() -> None:
    moments = [cells(RED, OTHER), cells(CIRCLE, OTHER)]
    plain = likeness_of_features(moments, torch.stack([RED]))
    scaled = likeness_of_features([(50 * each).bfloat16() for each in moments], (3 * torch.stack([RED])).bfloat16())
    assert plain == pytest.approx(scaled, rel=1e-2)
