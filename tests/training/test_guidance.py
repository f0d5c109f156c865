"""What visual tokens must tell while the model trains."""

from __future__ import annotations

import re
from random import Random

import pytest
import torch

from training.batches import FOUND, NO_BOX, Encoder, pack
from training.cases import make_case
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


@pytest.mark.parametrize("kind", ["text", "video", "document"])
def test_a_letter_to_be_written_knows_its_cell_and_slot(kind: str) -> None:
    encoder = Encoder(build_tokenizer())
    lengths = set()
    for seed in range(12):
        case = make_case(kind, WORDS, Random(seed))
        row = encoder.row(case)
        looks = iter([look for look in row.looks if look[2] < FOUND])
        for exchange in (exchange for branch in case.branches for exchange in branch):
            written = "".join(exchange.answer[one.character] for one in exchange.read)
            words = re.findall(r'["“](.+?)["”]', exchange.answer) if exchange.read else []
            assert written == "".join(words)
            for word in words:
                lengths.add(len(word))
                for place, letter in enumerate(word):
                    token, cell, slot = next(looks)
                    assert encoder.tokenizer.decode([row.ids[token + 1]]).startswith(letter) or place
                    assert row.ids[cell] in (encoder.image, encoder.video)
                    assert slot == place % SLOTS
    assert max(lengths) > SLOTS


@pytest.mark.parametrize("kind", ["video", "document"])
def test_a_letter_that_is_asked_for_knows_what_shows_it(kind: str) -> None:
    encoder = Encoder(build_tokenizer())
    found = 0
    for seed in range(12):
        case = make_case(kind, WORDS, Random(seed))
        row = encoder.row(case)
        texts = {one.question[g.character] for b in case.branches for one in b for g in one.asked}
        for token, seen, look in row.looks:
            if look != FOUND:
                continue
            found += 1
            letter = encoder.tokenizer.decode([row.ids[token]])
            assert set(letter.strip()) & texts
            text = encoder.tokenizer.decode([row.ids[seen]]).strip()
            if row.ids[seen] not in (encoder.image, encoder.video):  # the text of a page
                assert set(letter.strip()) & set(text)
            elif kind == "video":  # the moment that the answer names
                tenths = row.tenths[seen]
                assert any(f"{tenths / 10:.1f}" in one.answer for b in case.branches for one in b)
    assert found > 50


def test_the_probe_learns_what_it_is_asked() -> None:
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    model, encoder = build_model(tokenizer, 1), Encoder(tokenizer)
    batch = pack([encoder.row(make_case("picture", LEVEL, Random(3)))], tokenizer.pad_token_id).batch()
    probe = build_probe(model.config.text_config.hidden_size)
    optimizer = torch.optim.AdamW([*model.parameters(), *probe.parameters()], lr=2e-3)
    losses = []
    for _ in range(12):
        guidance = Guidance(probe, batch)
        forward(model, batch, torch.float32, guidance=guidance)
        loss = guidance.loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
