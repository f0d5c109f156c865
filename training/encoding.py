"""A case -> tokens in the product's layout, and who shall look at what (`guidance.py`)."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3vl_webui.media.values import label_of
from training.exchanges import NOWHERE, Branch, Case, Exchange, Moment, Still
from training.network import picture_positions
from training.sight import SLOTS

PAGE = re.compile(r"Page (\d+): $")
NO_BOX = (-1, -1, -1, -1)
# The kinds of looks beside those that read a letter of one of the SLOTS (`sight.py`):
FOUND = SLOTS  # at a letter that is asked for, or named in the answer
TOLD = FOUND + 1  # from what tells a stamp, a page or that there is none at the letters that were looked for
DIGIT = TOLD + 1  # and the kinds after it, one for each place of a stamp: from what writes the digit there
STAMP_PLACES = 5  # from thousands of seconds to tenths
BOX = DIGIT + STAMP_PLACES  # and the kinds after it: from what writes the hundreds of a box's four numbers
BOX_PLACES = 4
NEXT = BOX + BOX_PLACES  # from the end of a list's item at the moment of the next one
COUNTED = NEXT + 1  # from what writes a number at everything that is counted and the first token of all
THING = COUNTED + 1  # from what writes a thing at its cell, or from what ends them at the first token of all
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
            place = self._text(row, label_of(part.seconds), place, 0)
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
            question = opening + exchange.question + exchange.pointer + "<|im_end|>\n<|im_start|>assistant\n"
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
                seen = 0 if one.part == NOWHERE else places[one.part][one.spot]
                row.looks.append((token, seen, kind))
                if kind < FOUND and row.ids[seen] == row.ids[token + 1]:  # of a page's text, not of its picture
                    row.letters.append((seen, kind, row.ids[seen]))
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
            self._mentioned(row, exchange, written, places)
            if exchange.counted is not None:
                self._counted(row, exchange, answer, written, places)

    def _mentioned(self, row: Row, exchange: Exchange, written: Sequence[int], places: Sequence[Sequence[int]]) -> None:
        """What writes a thing, or the word that joins it to the one before, looks at its cell; where the last of a
        scene is told, at the first token of all.
        """
        before: int | None = None
        for one in exchange.things:
            writers = {written[at] - 1 for at in range(one.first if before is None else before, one.after)}
            row.looks += [(writer, places[one.part][one.cell], THING) for writer in sorted(writers)]
            if one.last:
                row.looks.append((written[one.after] - 1, 0, THING))
            before = None if one.last else one.after

    def _counted(
        self, row: Row, exchange: Exchange, answer: int, written: Sequence[int], places: Sequence[Sequence[int]]
    ) -> None:
        """Whoever writes the number, or what depends on it, looks at all that is counted and as much at the first
        token: what comes back tells how many there are.
        """
        number = re.search(r"\d", exchange.answer)
        last = written[number.start()] if number else answer + 1
        cells = [places[0][cell] for cell in exchange.counted or ()]
        row.looks += [(token - 1, cell, COUNTED) for token in range(answer, last + 1) for cell in (0, *cells)]

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
