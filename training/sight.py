"""Teaching the vision tower to see by itself: each merged cell tells what is centred in it.

A question about a picture costs some thirty text tokens and teaches the tower one fact. Here every cell is asked for
the shape, colour and box centred in it, straight from its feature, so a picture teaches all it holds for a sixth of the
price. Of a word it is asked which letters are centred in it and the how-manieth of the word they are: letter k has slot
k % 4 of its cell, so that whoever writes the word needs to know only how much of it is written. The heads are thrown
away at release.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.cases import random_scene
from training.exchanges import letters_of
from training.level import Level, picture_size, printed
from training.network import Pictures, patches_of, vision
from training.questions import COLOURS, SHAPES
from training.scenes import Scene, draw_lines, draw_text

CHARACTERS = string.digits + string.ascii_letters
SLOTS = 4  # the most letters centred in one cell that are told apart
ORDERS = 8  # the longest word
IGNORED = -100
KEEPING = 10.0  # weight of looking like the earlier tower
COLOUR_NUMBER = {name: number for number, name in enumerate(COLOURS, 1)}
SHAPE_NUMBER = {name: number for number, name in enumerate(SHAPES, 1)}
WIDTHS = (SLOTS * (len(CHARACTERS) + 1), ORDERS + 1, len(COLOURS) + 1, len(SHAPES) + 1, 4)


@dataclass
class Sights:
    """Pictures of one size and what their cells hold; 0 is nothing."""

    pixels: np.ndarray  # [pictures, height, width, 3] uint8
    letters: np.ndarray  # [pictures, cells, SLOTS] int64
    orders: np.ndarray  # [pictures, cells] int64: the place in its word of a cell's first letter, from 1
    colours: np.ndarray  # [pictures, cells] int64
    shapes: np.ndarray  # [pictures, cells] int64
    boxes: np.ndarray  # [pictures, cells, 4] float32, 0..1 of the picture; nan where there is no thing


def describe(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    height, width, _ = scene.pixels.shape
    rows, columns = height // 32, width // 32
    letters = np.zeros((rows * columns, SLOTS), np.int64)
    orders, colours, shapes = (np.zeros(rows * columns, np.int64) for _ in range(3))
    boxes = np.full((rows * columns, 4), np.nan, np.float32)
    for cell, order, character in letters_of(scene):
        if character in CHARACTERS:
            letters[cell, order % SLOTS] = CHARACTERS.index(character) + 1
            orders[cell] = orders[cell] or order + 1
    for thing in scene.things:
        left, top, right, bottom = (value / 1000 for value in thing.box)
        cell = min(rows - 1, int((top + bottom) / 2 * rows)) * columns + min(
            columns - 1, int((left + right) / 2 * columns)
        )
        if colours[cell]:  # two in one cell: neither is asked
            colours[cell] = shapes[cell] = IGNORED
            boxes[cell] = np.nan
            continue
        colours[cell], shapes[cell] = COLOUR_NUMBER[thing.colour], SHAPE_NUMBER[thing.shape]
        boxes[cell] = left, top, right, bottom
    return letters, orders, colours, shapes, boxes


def draw_sights(seed: str, level: Level, count: int) -> Sights:
    random = Random(seed)
    width, height = picture_size(level, random)
    scenes = []
    for _ in range(count):
        if random.random() < 0.25:  # letters take longest to learn
            scenes.append(random_scene(width, height, level, random))
            continue
        longest = min(level.longest_text, 8 if width >= 96 else 4)
        if random.random() < 0.25:
            page = random.random() < 0.25
            scenes.append(draw_text(printed(random, longest), width, height, random, wear=level.wear, page=page))
        else:  # a picture full of words teaches more than one of a word
            texts = [printed(random, longest) for _ in range(1 + height // 8)]
            scenes.append(draw_lines(texts, width, height, random, wear=level.wear))
    described = (np.stack(column) for column in zip(*map(describe, scenes), strict=True))
    return Sights(np.stack([scene.pixels for scene in scenes]), *described)


def words_of(tokenizer: Any) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token ids of the words that tell things apart: colours and shapes in English, then in Chinese."""

    def first(text: str) -> int:
        return int(tokenizer.encode(text, add_special_tokens=False)[0])

    return (
        [first(f" {name}") for name in COLOURS],
        [first(f" {name}") for name in SHAPES],
        [first(names[0]) for names in COLOURS.values()],
        [first(names[0]) for _, names in SHAPES.values()],
    )


def alignment_loss(
    model: Any, merged: Tensor, words: Sequence[Sequence[int]], colours: Tensor, shapes: Tensor
) -> Tensor:
    """A cell with a red circle should look like the words for it, so that a question finds it by likeness alone."""
    table = model.model.language_model.embed_tokens.weight
    width = table.shape[1]
    cells = F.rms_norm(merged.float().flatten(0, 1), (width,))
    total = cells.new_zeros(())
    for ids, target in zip(words, (colours, shapes, colours, shapes), strict=True):
        names = F.rms_norm(table[torch.tensor(ids, device=table.device)], (width,))
        likeness = cells @ names.T * width**-0.5
        logits = torch.cat((likeness.new_full((len(cells), 1), 2.0), likeness), dim=1)  # 2: unlike any of them
        weight = torch.ones(logits.shape[1], device=cells.device)
        weight[0] = 0.15
        total = total + F.cross_entropy(logits, target, weight=weight, ignore_index=IGNORED) / 4
    return total


def build_heads(width: int) -> nn.Linear:
    return nn.Linear(width, sum(WIDTHS))


def keeping_loss(features: Sequence[Tensor], before: Any, pictures: Pictures, dtype: torch.dtype) -> Tensor:
    """How far the features of these pictures have moved from those of an earlier tower, in their own variance."""
    with torch.no_grad():
        wanted = vision(before, pictures, dtype)
    moved = [F.mse_loss(a.float(), b.float()) / b.float().var() for a, b in zip(features, wanted, strict=True)]
    return torch.stack(moved).mean()


def sight_loss(
    model: Any,
    heads: nn.Linear,
    words: Sequence[Sequence[int]],
    sights: Sights,
    dtype: torch.dtype,
    device: str,
    before: Any = None,
) -> tuple[Tensor, dict[str, float]]:
    """The loss and the shares right: of letters, colours and shapes that are there, and the mean error of box sides.

    `before`, an earlier tower, is what pictures of things shall still look like: a decoder has learnt to read that.
    """
    pixels = torch.from_numpy(sights.pixels).to(device)
    rows, columns = pixels.shape[1] // 32, pixels.shape[2] // 32
    patches = patches_of(pixels)
    features = vision(model.model.visual, Pictures(patches, rows, columns), dtype)
    merged = features[0]
    seen = F.linear(merged, heads.weight.to(merged.dtype), heads.bias.to(merged.dtype)).float()
    *told_of, boxes = seen.split(WIDTHS, dim=-1)
    told_of[0] = told_of[0].reshape(*merged.shape[:2], SLOTS, -1)
    wanted = [
        torch.from_numpy(array).to(device) for array in (sights.letters, sights.orders, sights.colours, sights.shapes)
    ]
    places = torch.from_numpy(sights.boxes).to(device)
    there = ~places.isnan().any(-1)
    total = 2 * alignment_loss(model, merged, words, wanted[2].flatten(), wanted[3].flatten())
    told = {"alike": float(total.detach())}
    for name, logits, target in zip(("letters", "orders", "colours", "shapes"), told_of, wanted, strict=True):
        logits, target = logits.flatten(0, -2), target.flatten()
        weight = torch.ones(logits.shape[-1], device=device)
        weight[0] = 0.15  # most cells are empty
        total = total + F.cross_entropy(logits, target, weight=weight, ignore_index=IGNORED)
        positive = target > 0
        told[name] = float((logits.argmax(-1) == target)[positive].float().mean()) if positive.any() else 1.0
    if there.any():
        error = (boxes[there] - places[there]).abs()
        total = total + 4 * error.mean()
        told["box"] = float(error.detach().mean())
    things = there.any(-1)
    if before is not None and things.any():
        shown = [feature[things] for feature in features]
        moved = keeping_loss(shown, before, Pictures(patches[things], rows, columns), dtype)
        total = total + KEEPING * moved
        told["moved"] = float(moved.detach())
    return total, told
