"""What cells are said to hold is where it was drawn."""

from __future__ import annotations

import copy
from random import Random

import numpy as np
import pytest
import torch

from training.level import Level
from training.network import build_model
from training.scenes import Scene, draw_lines, draw_text, draw_things
from training.sight import (
    CHARACTERS,
    IGNORED,
    SLOTS,
    WIDTHS,
    build_heads,
    describe,
    draw_sights,
    sight_loss,
    words_of,
)
from training.tokenizer import build_tokenizer


def words_in(scene: Scene) -> list[str]:
    """Put together from the cells alone: letter k of a word from slot k % SLOTS of the next cell that has it."""
    letters, orders, *_ = describe(scene)
    words: list[str] = []
    for cell in np.flatnonzero(letters.any(-1)):
        first = orders[cell] - 1
        here = [letters[cell, place % SLOTS] for place in range(first, first + SLOTS)]
        here = [CHARACTERS[number - 1] for number in here if number]
        if first == 0:
            words.append("")
        assert len(words[-1]) == first
        words[-1] += "".join(here)
    return words


@pytest.mark.parametrize("text", ["7342", "Mirror", "12345678", "A"])
def test_a_word_is_written_in_order_in_the_cells(text: str) -> None:
    for seed in range(20):
        assert words_in(draw_text(text, 192, 96, Random(seed), wear=0.0)) == [text]


def test_lines_are_words_of_their_own() -> None:
    for seed in range(20):
        scene = draw_lines(["HELLO", "2026", "Garden"], 192, 192, Random(seed), wear=0.0)
        lines = scene.text.split("\n")
        assert lines == ["HELLO", "2026", "Garden"][: len(lines)]
        rows = {row: letters for row, letters in zip(scene.letters, scene.text, strict=True) if letters != "\n"}
        assert len(rows) == sum(map(len, lines))
        if len({int(y) // 32 for _, y in rows}) == len(lines):  # each line has a row of cells to itself
            assert words_in(scene) == lines


def test_a_thing_is_in_the_cell_of_its_middle() -> None:
    scene = draw_things([("red", "star")], 128, 128, Random(3), wear=0.0)
    letters, _, colours, shapes, boxes = describe(scene)
    assert not letters.any()
    cell = int(np.argmax(colours))
    left, top, right, bottom = scene.things[0].box
    assert (cell // 4, cell % 4) == ((top + bottom) * 4 // 2000, (left + right) * 4 // 2000)
    assert (colours > 0).sum() == (shapes > 0).sum() == 1 == (~np.isnan(boxes).any(-1)).sum()


def test_the_loss_falls_on_one_batch() -> None:
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, 1)
    heads = build_heads(256)
    sights = draw_sights("x", Level((), picture_pixels=(4096, 4096), longest_text=2), 8)
    assert sights.letters.shape == (8, 4, 4) and (sights.colours >= IGNORED).all() and sum(WIDTHS) == 281
    optimizer = torch.optim.AdamW([*model.model.visual.parameters(), *heads.parameters()], lr=1e-3)
    losses = []
    for _ in range(12):
        loss, told = sight_loss(model, heads, words_of(tokenizer), sights, torch.float32, "cpu")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert set(told) >= {"letters", "orders", "colours", "shapes"}


def test_an_earlier_tower_holds_its_features_while_letters_are_learnt() -> None:
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    sights = draw_sights("y", Level((), picture_pixels=(4096, 4096), longest_text=2), 8)
    moved = []
    for kept in (True, False):
        model = build_model(tokenizer, 1)
        before = copy.deepcopy(model.model.visual).requires_grad_(False)
        heads = build_heads(256)
        optimizer = torch.optim.AdamW([*model.model.visual.parameters(), *heads.parameters()], lr=1e-3)
        for _ in range(8):
            loss, _ = sight_loss(
                model, heads, words_of(tokenizer), sights, torch.float32, "cpu", before if kept else None
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        _, told = sight_loss(model, heads, words_of(tokenizer), sights, torch.float32, "cpu", before)
        moved.append(told["moved"])
    assert moved[0] < 0.5 * moved[1]
