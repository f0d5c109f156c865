"""Teaching the vision tower to see by itself: each merged cell tells what is centred in it.

A question about a picture costs some thirty text tokens and teaches the tower one fact. Here every cell is asked for
the shape, colour and box centred in it and for the letters in its four columns of 8 px, straight from its feature, so a
picture teaches all it holds for a sixth of the price. The heads are thrown away at release.
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

from training.cases import Level, picture_size, printed, random_scene
from training.network import Pictures, patches_of, vision
from training.questions import COLOURS, SHAPES
from training.scenes import Scene, draw_text

CHARACTERS = string.digits + string.ascii_letters
SLOTS = 4  # columns of a cell; a letter belongs to the one its centre is in
IGNORED = -100
COLOUR_NUMBER = {name: number for number, name in enumerate(COLOURS, 1)}
SHAPE_NUMBER = {name: number for number, name in enumerate(SHAPES, 1)}
WIDTHS = (SLOTS * (len(CHARACTERS) + 1), len(COLOURS) + 1, len(SHAPES) + 1, 4)


@dataclass
class Sights:
    """Pictures of one size and what their cells hold; 0 is nothing."""

    pixels: np.ndarray  # [pictures, height, width, 3] uint8
    letters: np.ndarray  # [pictures, cells, SLOTS] int64
    colours: np.ndarray  # [pictures, cells] int64
    shapes: np.ndarray  # [pictures, cells] int64
    boxes: np.ndarray  # [pictures, cells, 4] float32, 0..1 of the picture; nan where there is no thing


def describe(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    height, width, _ = scene.pixels.shape
    rows, columns = height // 32, width // 32
    letters = np.zeros((rows * columns, SLOTS), np.int64)
    colours, shapes = np.zeros(rows * columns, np.int64), np.zeros(rows * columns, np.int64)
    boxes = np.full((rows * columns, 4), np.nan, np.float32)
    for character, (x, y) in zip(scene.text, scene.letters, strict=False):
        if 0 <= x < width and 0 <= y < height and character in CHARACTERS:
            letters[int(y) // 32 * columns + int(x) // 32, int(x) % 32 // 8] = CHARACTERS.index(character) + 1
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
    return letters, colours, shapes, boxes


def draw_sights(seed: str, level: Level, count: int) -> Sights:
    random = Random(seed)
    width, height = picture_size(level, random)
    scenes = []
    for _ in range(count):
        if random.random() < 0.25:  # letters take longest to learn
            scenes.append(random_scene(width, height, level, random))
        else:
            longest = min(level.longest_text, 8 if width >= 96 else 4)
            text = printed(random, longest)
            scenes.append(draw_text(text, width, height, random, wear=level.wear, page=random.random() < 0.25))
    letters, colours, shapes, boxes = (np.stack(column) for column in zip(*map(describe, scenes), strict=True))
    return Sights(np.stack([scene.pixels for scene in scenes]), letters, colours, shapes, boxes)


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


def sight_loss(
    model: Any, heads: nn.Linear, words: Sequence[Sequence[int]], sights: Sights, dtype: torch.dtype, device: str
) -> tuple[Tensor, dict[str, float]]:
    """The loss and the shares right: of letters, colours and shapes that are there, and the mean error of box sides."""
    pixels = torch.from_numpy(sights.pixels).to(device)
    rows, columns = pixels.shape[1] // 32, pixels.shape[2] // 32
    merged = vision(model.model.visual, Pictures(patches_of(pixels), rows, columns), dtype)[0]
    seen = F.linear(merged, heads.weight.to(merged.dtype), heads.bias.to(merged.dtype)).float()
    letters, colours, shapes, boxes = seen.split(WIDTHS, dim=-1)
    letters = letters.reshape(-1, len(CHARACTERS) + 1)
    wanted = [torch.from_numpy(array).to(device).flatten() for array in (sights.letters, sights.colours, sights.shapes)]
    places = torch.from_numpy(sights.boxes).to(device)
    there = ~places.isnan().any(-1)
    total = 2 * alignment_loss(model, merged, words, wanted[1], wanted[2])
    told = {"alike": float(total.detach())}
    for name, logits, target in zip(
        ("letters", "colours", "shapes"), (letters, colours.flatten(0, 1), shapes.flatten(0, 1)), wanted, strict=True
    ):
        weight = torch.ones(logits.shape[-1], device=device)
        weight[0] = 0.15  # most cells are empty
        total = total + F.cross_entropy(logits, target, weight=weight, ignore_index=IGNORED)
        positive = target > 0
        told[name] = float((logits.argmax(-1) == target)[positive].float().mean()) if positive.any() else 1.0
    if there.any():
        error = (boxes[there] - places[there]).abs()
        total = total + 4 * error.mean()
        told["box"] = float(error.detach().mean())
    return total, told
