"""What visual tokens must tell while the model trains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest
import torch

from training.batches import pack
from training.cases import make_case
from training.encoding import BOX, COUNTED, DIGIT, FOUND, NEXT, NO_BOX, THING, TOLD, Encoder, Row, place_of
from training.exchanges import Moment, Still
from training.guidance import ABSENT_DIGIT, Guidance, build_probe, digits_of, digits_of_boxes
from training.level import Level
from training.network import build_model, forward
from training.sight import SLOTS
from training.tokenizer import build_tokenizer

WORDS = Level(
    (("text", 1.0),),
    picture_pixels=(36_864, 36_864),
    frame_pixels=(16_384, 16_384),
    moments=(4, 8),
    longest_text=8,
    lines=0.5,
    words=1.0,
    pages=(2, 4),
)
LEVEL = Level((("picture", 1.0),), picture_pixels=(16_384, 36_864), branches=3)


def test_a_stamp_is_told_digit_by_digit_as_it_is_written() -> None:
    digits = digits_of(torch.tensor([5, 475, 6000, 72_005])).tolist()
    assert digits == [
        [ABSENT_DIGIT] * 3 + [0, 5],
        [ABSENT_DIGIT, ABSENT_DIGIT, 4, 7, 5],
        [ABSENT_DIGIT, 6, 0, 0, 0],
        [7, 2, 0, 0, 5],
    ]


def test_a_box_is_told_by_its_hundreds_and_tens() -> None:
    (digits,) = digits_of_boxes(torch.tensor([[7, 45, 366, 1000]])).tolist()
    assert digits == [ABSENT_DIGIT, ABSENT_DIGIT, ABSENT_DIGIT, 4, 3, 6, 9, 9]


def test_the_box_stands_at_the_cell_of_its_things_middle() -> None:
    encoder = Encoder(build_tokenizer())
    boxes = 0
    for seed in range(6):
        case = make_case("picture", LEVEL, Random(seed))
        row = encoder.row(case)
        height, width, _ = row.visuals[0][1].shape
        cells = [at for at, token in enumerate(row.ids) if token == encoder.image]
        for at, box in enumerate(row.boxes):
            if box == NO_BOX:
                continue
            boxes += 1
            down, right = divmod(cells.index(at), width // 32)
            assert right == min(width // 32 - 1, int((box[0] + box[2]) / 2000 * width) // 32)
            assert down == min(height // 32 - 1, int((box[1] + box[3]) / 2000 * height) // 32)
    assert boxes >= 6


def spelled(encoder: Encoder, row: Row, places: Iterable[int]) -> list[str]:
    return [encoder.tokenizer.decode([row.ids[place]]) for place in places]


@pytest.mark.parametrize("kind", ["text", "video", "document"])
def test_a_letter_to_be_written_knows_its_cell_and_slot(kind: str) -> None:
    encoder = Encoder(build_tokenizer())
    lengths = set()
    for seed in range(12):
        case = make_case(kind, WORDS, Random(seed))
        row = encoder.row(case)
        batch = pack([row], encoder.tokenizer.pad_token_id).batch()
        looks = iter([look for look in row.looks if look[2] < FOUND])
        for exchange in (exchange for branch in case.branches for exchange in branch if exchange.read):
            mine = [next(looks) for _ in exchange.read]
            letters = [exchange.answer[one.character] for one in exchange.read]
            assert [one.strip() for one in spelled(encoder, row, (token + 1 for token, _, _ in mine))] == letters
            for letter, (_, cell, _) in zip(letters, mine, strict=True):
                printed = encoder.tokenizer.decode([row.ids[cell]]).strip()
                assert row.ids[cell] in (encoder.image, encoder.video) or (kind, printed) == ("document", letter)
            words = re.findall(r'["“](.+?)["”]', exchange.answer)
            lengths |= {len(word) for word in words}
            assert letters == list("".join(words).replace(" ", ""))
            slots = [place % SLOTS for word in words for place, letter in enumerate(word) if letter != " "]
            assert [slot for *_, slot in mine] == slots
            wanted = [int(batch.wanted[0, token]) for token, _, _ in mine]
            assert wanted == [row.shown[cell] for _, cell, _ in mine]  # the picture that shows it, or its cell
            if kind == "text":
                assert letters == [exchange.answer[first:after] for first, after, _ in exchange.evidence]
                assert wanted == [at + 1 for _, _, at in exchange.evidence]
        assert next(looks, None) is None
    assert max(lengths) > SLOTS


@pytest.mark.parametrize("kind", ["video", "document"])
def test_a_letter_that_is_asked_for_knows_what_shows_it(kind: str) -> None:
    encoder = Encoder(build_tokenizer())
    found = 0
    for seed in range(12):
        case = make_case(kind, WORDS, Random(seed))
        row = encoder.row(case)
        looks = iter([look for look in row.looks if look[2] == FOUND])
        for exchange in (exchange for branch in case.branches for exchange in branch):
            letters = [exchange.question[one.character] for one in exchange.asked]
            assert letters == [exchange.answer[one.character] for one in exchange.told]
            for letter in letters * 2:  # of the question, then of the answer
                found += 1
                token, seen, _ = next(looks)
                assert letter in spelled(encoder, row, [token])[0]  # a word without quotes has longer tokens
                if exchange.skill == "absent":
                    assert seen == 0 and re.search("does not appear|no page|没有出现|不在任何一页", exchange.answer)
                    continue
                if row.ids[seen] not in (encoder.image, encoder.video):  # the text of a page
                    assert letter in spelled(encoder, row, [seen])[0]
                tenths = row.tenths[seen]  # of a moment or page that the answer names
                assert (f"{tenths / 10:.1f}" if kind == "video" else str(tenths // 10)) in exchange.answer
        assert next(looks, None) is None
    assert found > 50


@pytest.mark.parametrize("kind", ["text", "video", "document"])
def test_a_cell_that_shows_a_letter_alone_in_its_slot_knows_it(kind: str) -> None:
    encoder = Encoder(build_tokenizer())
    told = 0
    for seed in range(6):
        case = make_case(kind, WORDS, Random(seed))
        row = encoder.row(case)
        parts = [part for part in case.context if not isinstance(part, str)]
        for part, (first, _) in zip(parts, row.visuals, strict=True):
            cells = range(first, first + part.pixels.shape[0] * part.pixels.shape[1] // 1024)
            mine = [letter for letter in row.letters if letter[0] in cells]
            assert len({letter[:2] for letter in mine}) == len(mine)
            shown = {(first + cell, order % SLOTS, character) for cell, order, character in part.letters}
            assert {(token, slot, encoder.tokenizer.decode([letter])) for token, slot, letter in mine} <= shown
            told += len(mine)
    assert told > 30


def test_the_digits_of_a_stamp_have_the_places_they_are_told_by() -> None:
    for stamp, places in {"7203.4": [0, 1, 2, 3, None, 4], "57.0": [2, 3, None, 4], "0.5": [3, None, 4]}.items():
        told = digits_of(torch.tensor(round(float(stamp) * 10)))
        for at, place in enumerate(places):
            if place is not None:
                assert place_of(stamp, at) == place
                assert int(told[place]) == int(stamp[at])
    assert [place_of("12", 0), place_of("12", 1)] == [2, 3]  # a page


@pytest.mark.parametrize("kind", ["video", "document"])
def test_what_follows_the_word_looks_at_the_letters_that_were_looked_for(kind: str) -> None:
    encoder = Encoder(build_tokenizer())
    told = 0
    for seed in range(12):
        row = encoder.row(make_case(kind, WORDS, Random(seed)))
        targets = [token for token, target in enumerate(row.targets) if target >= 0]
        looks = [look[:2] for look in row.looks if look[2] == TOLD]
        for number, exchange in enumerate(row.asked):
            answer = [token for token, one in zip(targets, row.exchanges, strict=True) if one == number]
            mine = [look for look in looks if look[0] in answer]
            if len({one.part for one in exchange.told}) != 1:
                assert exchange.told or exchange.items or not mine
                continue
            told += 1
            digits = {token: kind - DIGIT for token, _, kind in row.looks if DIGIT <= kind < NEXT and token in answer}
            assert len(digits) == sum(
                character.isdigit() for character in exchange.answer.split('"')[-1].split("”")[-1]
            )
            assert [digits[token] for token in sorted(digits)] == sorted(digits.values())  # the greatest place first
            assert kind == "document" or exchange.skill == "absent" or max(digits.values()) == 4  # tenths of a second
            after = "".join(spelled(encoder, row, sorted({writer + 1 for writer, _ in mine})))
            letters = "".join(spelled(encoder, row, sorted({seen for _, seen in mine})))
            assert re.search(f'{letters}["”]{re.escape(after)}', exchange.answer)
            assert exchange.skill == "absent" or after[-1].isdigit()
    assert told > 15


def test_the_hundreds_of_a_box_are_read_off_the_cell_that_knows_them() -> None:
    encoder = Encoder(build_tokenizer())
    read = 0
    for seed in range(12):
        row = encoder.row(make_case("picture", replace(LEVEL, asked=(("where", 1.0),)), Random(seed)))
        for writer, cell, kind in row.looks:
            if kind == COUNTED:  # where what is asked for is not there
                continue
            assert BOX <= kind < NEXT
            read += 1
            told = digits_of_boxes(torch.tensor([row.boxes[cell]]))[0]
            assert spelled(encoder, row, [writer + 1]) == [str(int(told[2 * (kind - BOX)]))]
    assert read > 40


@pytest.mark.parametrize("kind", ["picture", "pictures", "video"])
def test_what_names_a_thing_looks_at_its_cell_and_what_ends_them_at_the_first_token(kind: str) -> None:
    encoder = Encoder(build_tokenizer())
    things = ends = 0
    for seed in range(12):
        level = replace(LEVEL, asked=(("name", 1.0),), asked_of_clips=(("what_at", 1.0), ("timeline", 1.0)), words=0.2)
        case = make_case(kind, level, Random(seed))
        row = encoder.row(case)
        looks = {writer: seen for writer, seen, look in row.looks if look == THING}
        for exchange in (exchange for branch in case.branches for exchange in branch if exchange.things):
            for one in exchange.things:
                still = case.context[one.part]
                assert isinstance(still, Moment | Still)
                assert one.cell < still.pixels.shape[0] * still.pixels.shape[1] // 1024
                assert exchange.answer[one.after] in (";；.。" if one.last else " ,、和")
                things += 1
        for writer, seen in looks.items():
            assert row.segments[seen] == 0 and (seen == 0 or row.ids[seen] in (encoder.image, encoder.video))
            if seen == 0:
                assert spelled(encoder, row, [writer + 1])[0].strip()[0] in ";；.。"
                ends += 1
    assert things > ends > 10


def test_a_number_comes_of_a_look_at_all_that_is_counted_and_the_first_token() -> None:
    encoder = Encoder(build_tokenizer())
    numbers = set()
    for seed in range(20):
        level = replace(LEVEL, asked=(("count", 3.0), ("absent", 1.0)), crowds=1.0)
        row = encoder.row(make_case("picture", level, Random(seed)))
        begins = [place for place, target in enumerate(row.targets) if target >= 0 and row.targets[place - 1] < 0]
        for exchange, begin in zip(row.asked, begins, strict=True):
            if exchange.counted is None:
                continue
            told = [int(digit) for digit in re.findall(r"\d", exchange.answer)]
            writer = begin - 1 + len(encoder.encode(re.split(r"\d", exchange.answer)[0])) if told else begin
            seen = {cell for looker, cell, kind in row.looks if (looker, kind) == (writer, COUNTED)}
            assert 0 in seen and all(row.ids[cell] == encoder.image for cell in seen - {0})
            things = len(seen) - 1
            assert things == (told or [0])[0] or (told and 0 < things < told[0])  # two may share a cell
            numbers.add(things)
    assert numbers == {0, 1, 2, 3, 4, 5, 6}


def test_an_item_of_a_list_looks_for_the_next() -> None:
    encoder = Encoder(build_tokenizer())
    lists = several = 0
    for seed in range(50):
        row = encoder.row(make_case("video", WORDS, Random(seed)))
        targets = [token for token, target in enumerate(row.targets) if target >= 0]
        for number, exchange in enumerate(row.asked):
            if not exchange.items:
                continue
            lists += 1
            answer = [token for token, one in zip(targets, row.exchanges, strict=True) if one == number]
            stamps = [round(float(found) * 10) for found in re.findall(r"(\d+\.\d)(?= seconds|秒)", exchange.answer)]
            seekers: dict[int, set[int]] = {}  # of each token that looks for the next item: the stamps it looks at
            for token, seen, kind in row.looks:
                if kind == NEXT and token - 1 in [answer[0] - 2, *answer]:
                    seekers.setdefault(token, set()).add(row.tenths[seen] if seen else -1)
            known = [row.tenths[token] for token in answer if row.tenths[token] >= 0]
            assert sorted(set(known)) == stamps  # what follows a stamp knows it
            by_itself = exchange.skill != "all_times"
            last = -1 if by_itself else stamps[0]
            following = dict(zip([-1, *stamps], [*stamps, -1], strict=True))
            for token in sorted(seekers):
                assert seekers[token] == {following[row.tenths[token]]}
                assert row.tenths[token] >= last  # they go on in order
                last = row.tenths[token]
            assert last == stamps[-1]  # and the last one finds that the list ends
            several += len(stamps) > 1
            digits = {token: kind - DIGIT for token, _, kind in row.looks if DIGIT <= kind < NEXT}
            mine = [token for token in answer if token - 1 in digits and spelled(encoder, row, [token])[0].isdigit()]
            copied = stamps if by_itself or exchange.told else stamps[1:]
            assert len(mine) == len("".join(str(stamp).rjust(2, "0") for stamp in copied))
    assert lists > 25 and several > 8


def test_a_scene_knows_the_one_before_and_what_comes_again() -> None:
    follows = again = 0
    for seed in range(20):
        case = make_case("video", WORDS, Random(seed))
        moments = [part for part in case.context if isinstance(part, Moment)]
        stamps = [moment.seconds for moment in moments]
        begun: list[float] = []  # where the scenes so far began
        for moment in moments:
            if moment.follows is not None:
                follows += 1
                assert moment.follows in stamps and moment.follows < moment.seconds
                assert not begun or moment.follows > begun[-1]  # each after another
                begun.append(moment.follows)
            for _, earlier in moment.again:
                if earlier is not None:
                    again += 1
                    before = moments[stamps.index(earlier)]
                    assert earlier <= (moment.follows or 0)
                    assert {letter[2] for letter in before.letters} == {letter[2] for letter in moment.letters}
    assert follows > 40
    assert again > 5


def test_the_probe_learns_what_it_is_asked() -> None:
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model, encoder = build_model(tokenizer, 1), Encoder(tokenizer)
    batch = pack([encoder.row(make_case("picture", LEVEL, Random(3)))], tokenizer.pad_token_id).batch()
    probe = build_probe(model.config.text_config.hidden_size)
    optimizer = torch.optim.AdamW([*model.parameters(), *probe.parameters()], lr=2e-3)
    losses = []
    for _ in range(12):
        guidance = Guidance(probe, model.model.language_model.embed_tokens.weight, batch)
        forward(model, batch, torch.float32, guidance=guidance)
        loss = guidance.loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
