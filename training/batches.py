"""Cases -> padded tensors, in the product's token layout; and a process that draws them ahead of the training."""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import Empty
from random import Random
from typing import Any

import numpy as np
import torch

from training.cases import make_case
from training.exchanges import NOWHERE, Branch, Case, Exchange, Moment, Still
from training.level import Level, with_few_sizes
from training.network import Batch, Pictures, patches_of, picture_positions
from training.sight import SLOTS, draw_sights

PAGE = re.compile(r"Page (\d+): $")
NO_BOX = (-1, -1, -1, -1)
FOUND = SLOTS  # the kind of a look that finds a letter asked for, beside those that read one of a slot (`sight.py`)
TOLD = SLOTS + 1  # of a look from what tells a stamp, a page or that there is none to the letters that were looked for
DIGIT = TOLD + 1  # and the kinds after it, one for each place of a stamp: of a look from what writes the digit there
STAMP_PLACES = 5  # from thousands of seconds to tenths
BOX = DIGIT + STAMP_PLACES  # and the kinds after it: from what writes the hundreds of a box's four numbers
BOX_PLACES = 4
NEXT = BOX + BOX_PLACES  # of a look from the end of a list's item at the moment of the next one
FOLLOWS, AGAIN = range(2)  # how a moment is linked to an earlier one: as the next scene, or by the same thing in it
STAMP = re.compile(r"\d+(?:\.\d)?")
CORNERS = re.compile(r"\[(\d+),(\d+),(\d+),(\d+)\]")


@dataclass
class Row:
    """One encoded case. `visuals` are (first token, pixels, in order); `asked` names each exchange by its number."""

    ids: list[int]
    positions: list[tuple[int, int, int]]
    segments: list[int]
    targets: list[int]
    exchanges: list[int]  # of each token with a target: which exchange it belongs to
    visuals: list[tuple[int, np.ndarray]]
    asked: list[Exchange]
    shown: list[int]  # of each token: the number of the picture it shows, from 1
    wanted: list[int]  # of each token: the number of the picture that answers it
    tenths: list[int]  # of each token: the stamp of the moment it shows
    boxes: list[tuple[int, int, int, int]]  # of each token: the box of the thing in the cell it shows
    looks: list[tuple[int, int, int]]  # (token that looks, token it should look at, slot of the letter or kind)
    letters: list[tuple[int, int, int]]  # (token of a cell, slot and token of the only letter of that slot in it)
    links: list[tuple[int, int, int]]  # (token of a cell, FOLLOWS or AGAIN, stamp in tenths of the earlier one or -1)


class Encoder:
    """Case -> Row with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encode = functools.lru_cache(maxsize=50_000)(self._encode)
        self.tokens_of = functools.lru_cache(maxsize=50_000)(self._tokens_of)
        self.start, self.end, self.image, self.video, self.turn_end = (
            tokenizer.convert_tokens_to_ids(name)
            for name in ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_end|>")
        )

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer._tokenizer.encode(text, add_special_tokens=False).ids)

    def _tokens_of(self, text: str) -> tuple[int, ...]:
        """Of each character: which token it begins in."""
        names = self.tokenizer.convert_ids_to_tokens(list(self.encode(text)))
        of_bytes = [number for number, name in enumerate(names) for _ in name]  # a character for each byte
        places = itertools.accumulate((len(character.encode()) for character in text), initial=0)
        return tuple(of_bytes[place] for place in itertools.islice(places, len(text)))

    def row(self, case: Case) -> Row:
        row = Row([], [], [], [], [], [], [], [], [], [], [], [], [], [])
        place = self._text(row, "<|im_start|>user\n", 0, 0)
        page = 0
        places: list[Sequence[int]] = []  # of each part: the tokens of its characters or cells
        for part in case.context:
            first = len(row.ids)
            if not isinstance(part, str):
                place = self._picture(row, part, place, page)
                begin = row.visuals[-1][0]
                places.append(range(begin, begin + part.pixels.shape[0] * part.pixels.shape[1] // 1024))
                continue
            place = self._text(row, part, place, 0)
            places.append([first + token for token in self.tokens_of(part)])
            if page:  # the text layer of a page shows the page, as its picture does
                layer = len(self.encode(part[: part.rfind("Page ")] if "Page " in part else part))
                row.shown[first : first + layer] = [len(row.visuals)] * layer
                row.tenths[first : first + layer] = [page * 10] * layer
            if number := PAGE.search(part):
                page = int(number[1])
        for segment, branch in enumerate(case.branches, 1):
            self._branch(row, branch, place, segment, places)
        return row

    def _text(self, row: Row, text: str, place: int, segment: int, exchange: int | None = None) -> int:
        ids = self.encode(text)
        row.ids += ids
        row.positions += [(p, p, p) for p in range(place, place + len(ids))]
        row.segments += [segment] * len(ids)
        row.targets += [-100] * len(ids) if exchange is None else ids
        row.shown += [0] * len(ids)
        row.tenths += [-1] * len(ids)
        row.boxes += [NO_BOX] * len(ids)
        row.wanted += self._wanted(row.asked[exchange], ids) if exchange is not None else [0] * len(ids)
        if exchange is not None:
            row.exchanges += [exchange] * len(ids)
        return place + len(ids)

    def _wanted(self, exchange: Exchange, ids: Sequence[int]) -> list[int]:
        """Of each token of the answer: the number of what shows it."""
        wanted = [exchange.at + 1] * len(ids)
        for first, after, at in exchange.evidence:
            tokens = self.tokens_of(exchange.answer)[first:after]
            wanted[tokens[0] : tokens[-1] + 1] = [at + 1] * (tokens[-1] + 1 - tokens[0])
        return wanted

    def _picture(self, row: Row, part: Still | Moment, place: int, page: int) -> int:
        pad = self.image
        if isinstance(part, Moment):
            place = self._text(row, f"<{part.seconds:.1f} seconds>", place, 0)
            pad = self.video
        rows, columns = part.pixels.shape[0] // 32, part.pixels.shape[1] // 32
        axes, after = picture_positions(place + 1, rows, columns)
        row.visuals.append((len(row.ids) + 1, part.pixels))
        count = rows * columns
        row.ids += [self.start, *[pad] * count, self.end]
        row.positions += [(place,) * 3, *zip(*axes, strict=True), (after,) * 3]
        row.segments += [0] * (count + 2)
        row.targets += [-100] * (count + 2)
        alone = isinstance(part, Still) and part.alone
        row.shown += [0, *(range(1, count + 1) if alone else [len(row.visuals)] * count), 0]
        row.wanted += [0] * (count + 2)
        tenths = round(part.seconds * 10) if isinstance(part, Moment) else page * 10 or -1
        row.tenths += [-1, *[tenths] * count, -1]
        boxes = dict(part.boxes) if isinstance(part, Still) else {}
        row.boxes += [NO_BOX, *(boxes.get(cell, NO_BOX) for cell in range(count)), NO_BOX]
        slots = [(row.visuals[-1][0] + cell, order % SLOTS) for cell, order, _ in part.letters]
        for slot, (_, _, letter) in zip(slots, part.letters, strict=True):
            if slots.count(slot) == 1:
                row.letters.append((*slot, self.encode(letter)[0]))
        if isinstance(part, Moment):
            links = [(cell, FOLLOWS, part.follows) for cell in range(count)]
            links += [(cell, AGAIN, seconds) for cell, seconds in part.again]
            for cell, link, seconds in links:
                row.links.append((row.visuals[-1][0] + cell, link, -1 if seconds is None else round(seconds * 10)))
        return after + 1

    def _branch(self, row: Row, branch: Branch, place: int, segment: int, places: Sequence[Sequence[int]]) -> None:
        for turn, exchange in enumerate(branch):
            opening = "\n<|im_start|>user\n" if turn else ""
            question = opening + exchange.question + "<|im_end|>\n<|im_start|>assistant\n"
            first = len(row.ids)
            place = self._text(row, question, place, segment)
            row.asked.append(exchange)
            answer = len(row.ids)
            place = self._text(row, exchange.answer + "<|im_end|>", place, segment, len(row.asked) - 1)
            tokens = [first + token for token in self.tokens_of(question)[len(opening) :]]
            written = [answer + token for token in self.tokens_of(exchange.answer)]
            looks = [(tokens[one.character], one, FOUND) for one in exchange.asked]
            looks += [(written[one.character], one, FOUND) for one in exchange.told]
            for one in exchange.read:  # by the token before, which is to write the letter
                looks.append((written[one.character] - 1, one, one.order % SLOTS))
            for token, one, kind in looks:
                row.looks.append((token, 0 if one.part == NOWHERE else places[one.part][one.spot], kind))
            if exchange.told:
                letters = sorted({one.character for one in exchange.told})
                self._copied(row, exchange.answer, written, letters[-1] + 2, [written[letter] for letter in letters])
            if exchange.items:
                self._listed(row, exchange, written, places)
            if exchange.at >= 0 and (corners := CORNERS.search(exchange.answer)):
                cell = row.shown.index(exchange.at + 1)
                for number in range(4):
                    begin, end = corners.span(number + 1)
                    if end - begin == 3:  # a whole thousand is rare
                        row.looks.append((written[begin] - 1, cell, BOX + number))

    def _copied(self, row: Row, answer: str, written: Sequence[int], after: int, sources: Sequence[int]) -> None:
        """The stamp that comes next in the answer is copied from tokens that know it."""
        stamp = STAMP.search(answer, after)
        begin, end = stamp.span() if stamp else (len(answer),) * 2
        writers = {written[at] - 1 for at in range(after, end)}
        row.looks += [(writer, source, TOLD) for writer in sorted(writers) for source in sources]
        for at in range(begin, end):
            if answer[at] != ".":
                kind = DIGIT + place_of(answer[begin:end], at - begin)
                row.looks += [(written[at] - 1, source, kind) for source in sources]

    def _listed(self, row: Row, exchange: Exchange, written: Sequence[int], places: Sequence[Sequence[int]]) -> None:
        """What comes after an item's stamp knows it; the last token of an item and those up to the next stamp look for
        the moment of that, or at the first token of all where the list ends.
        """
        stamps = [STAMP.search(exchange.answer, first) for first, _, _ in exchange.evidence]
        ends = [written[after - 1] for _, after, _ in exchange.evidence]
        begins = [written[stamp.start()] for stamp in stamps if stamp]
        for stamp, end, following in zip(stamps, ends, [*begins[1:], ends[-1] + 1], strict=True):
            assert stamp
            for token in range(written[stamp.end()], max(end + 1, following)):
                row.tenths[token] = round(float(stamp[0]) * 10)
        first_by_itself = exchange.skill != "all_times"
        openings = [written[0] - 1, *ends] if first_by_itself else ends
        moments = [at for _, _, at in exchange.evidence][0 if first_by_itself else 1 :]
        for opening, begin, at in zip(openings, begins[0 if first_by_itself else 1 :], moments, strict=False):
            seekers = range(opening, begin)
            row.looks += [(seeker, cell, NEXT) for seeker in seekers for cell in places[at]]
            character = next(number for number, token in enumerate(written) if token == begin)
            self._copied(row, exchange.answer, written, character, seekers)
        row.looks.append((ends[-1], 0, NEXT))


def place_of(stamp: str, at: int) -> int:
    """Which of the places that a stamp is told by, from thousands to tenths, its character `at` stands in."""
    point = len(stamp.partition(".")[0])
    return STAMP_PLACES - 1 - point + at - (at > point)


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
