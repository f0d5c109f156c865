"""What cells are said to hold is where it was drawn."""

from __future__ import annotations

from random import Random

import numpy as np
import torch

from training.cases import Level
from training.network import build_model
from training.scenes import draw_text, draw_things
from training.sight import CHARACTERS, IGNORED, WIDTHS, build_heads, describe, draw_sights, sight_loss, words_of
from training.tokenizer import build_tokenizer


def test_letters_are_read_in_order_from_the_cells() -> None:
    for seed in range(30):
        scene = draw_text("7342", 160, 96, Random(seed), wear=0.0)
        letters, colours, shapes, _ = describe(scene)
        rows = letters.reshape(3, 5 * 4)
        assert not colours.any() and not shapes.any()
        read = ["".join(CHARACTERS[n - 1] for n in row if n) for row in rows]
        assert "7342".startswith(max(read, key=len)[:2]) and sum(map(len, read)) >= 3


def test_a_thing_is_in_the_cell_of_its_middle() -> None:
    scene = draw_things([("red", "star")], 128, 128, Random(3), wear=0.0)
    _, colours, shapes, boxes = describe(scene)
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
    assert sights.letters.shape == (8, 4, 4) and (sights.colours >= IGNORED).all() and sum(WIDTHS) == 272
    optimizer = torch.optim.AdamW([*model.model.visual.parameters(), *heads.parameters()], lr=1e-3)
    losses = []
    for _ in range(12):
        loss, told = sight_loss(model, heads, words_of(tokenizer), sights, torch.float32, "cpu")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert set(told) >= {"letters", "colours", "shapes"}
