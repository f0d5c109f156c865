"""Encoded cases -> padded tensors; and a process that draws them ahead of the training."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import Empty
from random import Random
from typing import Any

import numpy as np
import torch

from training.cases import make_case
from training.encoding import Encoder, Row
from training.exchanges import Exchange
from training.level import Level, with_few_sizes
from training.network import Batch, Pictures, patches_of
from training.sight import draw_sights


@dataclass
class Packed:
    """A batch as arrays, cheap to send between processes, with what was asked."""

    ids: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    targets: np.ndarray
    pictures: list[np.ndarray]  # per size: [pictures, height, width, 3] uint8
    visual_index: np.ndarray
    feature_index: np.ndarray
    shown: np.ndarray
    wanted: np.ndarray
    tenths: np.ndarray
    boxes: np.ndarray
    looks: np.ndarray
    letters: np.ndarray
    links: np.ndarray
    exchanges: np.ndarray  # per target: index into `asked`
    asked: list[Exchange]

    def batch(self, device: str = "cpu") -> Batch:
        """Targets are shifted here: position i predicts token i + 1."""
        pictures = tuple(
            Pictures(patches_of(torch.from_numpy(p).to(device)), p.shape[1] // 32, p.shape[2] // 32)
            for p in self.pictures
        )
        ids, positions, segments, targets, places, features = (
            torch.from_numpy(array).to(device)
            for array in (self.ids, self.positions, self.segments, self.targets, self.visual_index, self.feature_index)
        )
        shifted = torch.full_like(targets, -100)
        shifted[:, :-1] = targets[:, 1:]
        shown, wanted, *known = (
            torch.from_numpy(array).to(device)
            for array in (self.shown, self.wanted, self.tenths, self.boxes, self.looks, self.letters, self.links)
        )
        wanted = wanted.roll(-1, 1)
        return Batch(ids, positions, segments, shifted, pictures, places, features, shown, wanted, *known)


def pack(rows: Sequence[Row], pad: int) -> Packed:
    length = max(len(row.ids) for row in rows)
    count = len(rows)
    ids = np.full((count, length), pad, np.int64)
    positions = np.zeros((3, count, length), np.int64)
    segments = np.full((count, length), -1, np.int64)
    targets = np.full((count, length), -100, np.int64)
    shown_at, answers, tenths = np.zeros_like(ids), np.zeros_like(ids), np.full_like(ids, -1)
    boxes = np.full((count, length, 4), -1, np.int64)
    looks, letters, links = ([np.zeros((0, 4), np.int64)] for _ in range(3))
    by_size: dict[tuple[int, int], list[np.ndarray]] = {}
    shown: list[tuple[tuple[int, int], int, int]] = []  # of each picture in the rows: size, number in it, first place
    exchanges: list[int] = []
    asked: list[Exchange] = []
    for number, row in enumerate(rows):
        end = len(row.ids)
        ids[number, :end] = row.ids
        positions[:, number, :end] = np.asarray(row.positions).T
        segments[number, :end] = row.segments
        targets[number, :end] = row.targets
        shown_at[number, :end], answers[number, :end], tenths[number, :end] = row.shown, row.wanted, row.tenths
        boxes[number, :end] = row.boxes
        for all_rows, of_row in ((looks, row.looks), (letters, row.letters), (links, row.links)):
            if of_row:
                all_rows.append(np.insert(np.asarray(of_row), 0, number, axis=1))
        exchanges += [len(asked) + one for one in row.exchanges]
        asked += row.asked
        known: dict[int, int] = {}  # a scene that stays is one array: encoded once
        for first, pixels in row.visuals:
            size = (pixels.shape[0], pixels.shape[1])
            if id(pixels) not in known:
                known[id(pixels)] = len(by_size.setdefault(size, []))
                by_size[size].append(pixels)
            shown.append((size, known[id(pixels)], number * length + first))
    begins, begin = {}, 0
    for size, images in by_size.items():
        begins[size] = begin
        begin += len(images) * size[0] * size[1] // 1024
    places, features = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for size, picture, first in shown:
        cells = np.arange(size[0] * size[1] // 1024)
        places.append(cells + first)
        features.append(cells + begins[size] + picture * len(cells))
    pictures = [np.stack(images) for images in by_size.values()]
    visual_index, feature_index = np.concatenate(places), np.concatenate(features)
    return Packed(
        ids,
        positions,
        segments,
        targets,
        pictures,
        visual_index,
        feature_index,
        shown_at,
        answers,
        tenths,
        boxes,
        np.concatenate(looks),
        np.concatenate(letters),
        np.concatenate(links),
        np.asarray(exchanges),
        asked,
    )


def batches_of(rows: Sequence[Row], most_tokens: int, pad: int) -> Iterator[Packed]:
    """Rows of like length together, at most about `most_tokens` padded tokens each."""
    group: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if group and (len(group) + 1) * len(row.ids) > most_tokens:
            yield pack(group, pad)
            group = []
        group.append(row)
    if group:
        yield pack(group, pad)


def step_cases(seed: str, level: Level, most_tokens: int, encoder: Encoder) -> list[Row]:
    """A mixed handful of cases of at most about `most_tokens` tokens."""
    random = Random(seed)
    level = with_few_sizes(level, random)
    kinds, shares = zip(*level.kinds, strict=True)
    rows: list[Row] = []
    total = 0
    while total < most_tokens:
        row = encoder.row(make_case(random.choices(kinds, shares)[0], level, random))
        if rows and total + len(row.ids) > most_tokens * 1.15:
            break
        rows.append(row)
        total += len(row.ids)
    return rows


def draw_ahead(tokenizer: Any, plan: Any, first_step: int, *, ahead: int = 6) -> tuple[Any, Any]:
    """A process that draws the steps from `first_step` on.

    `plan(step)` gives (seed, levels, step tokens, batch tokens, sights).

    Returns (process, queue); the queue gives (list of Packed, Sights or None).
    """
    context = multiprocessing.get_context("fork")
    queue = context.Queue(maxsize=ahead)
    process = context.Process(target=_draw, args=(tokenizer, plan, first_step, queue), daemon=True)
    process.start()
    return process, queue


def take(process: Any, queue: Any) -> Any:
    """The next step drawn ahead; None when the drawing process has ended, as by a signal to both."""
    while process.is_alive():
        with contextlib.suppress(Empty):
            return queue.get(timeout=5)
    return None


def _draw(tokenizer: Any, plan: Any, step: int, queue: Any) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    encoder = Encoder(tokenizer)
    while True:
        seed, levels, step_tokens, batch_tokens, seen = plan(step)
        rows: list[Row] = []
        for number, (level, share) in enumerate(levels):
            if level.kinds:
                rows += step_cases(f"{seed}:{step}:{number}", level, round(step_tokens * share), encoder)
        sights = draw_sights(f"{seed}:{step}:sights", levels[0][0], seen) if seen else None
        queue.put((list(batches_of(rows, batch_tokens, tokenizer.pad_token_id)), sights))
        step += 1
