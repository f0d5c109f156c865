"""What visual tokens must tell while the model trains."""

from __future__ import annotations

import re
from random import Random

import torch

from training.batches import NO_BOX, Encoder, pack
from training.cases import Level, make_case
from training.guidance import ABSENT_DIGIT, Guidance, build_probe, digits_of, digits_of_boxes
from training.network import build_model, forward
from training.sight import SLOTS
from training.tokenizer import build_tokenizer

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


def test_a_letter_to_be_written_knows_its_cell_and_slot() -> None:
    encoder = Encoder(build_tokenizer())
    level = Level((("text", 1.0),), picture_pixels=(36_864, 36_864), longest_text=8, lines=0.5)
    lengths = set()
    for seed in range(12):
        case = make_case("text", level, Random(seed))
        batch = pack([encoder.row(case)], encoder.tokenizer.pad_token_id).batch()
        there = batch.slots[0] >= 0
        told = [encoder.tokenizer.decode([token]) for token in batch.targets[0, there].tolist()]
        wanted = [exchange for branch in case.branches for exchange in branch if exchange.skill.startswith("read")]
        assert told == [e.answer[first:after] for e in wanted for first, after, _ in e.evidence]
        assert batch.wanted[0, there].tolist() == [at + 1 for e in wanted for _, _, at in e.evidence]
        slots = iter(batch.slots[0, there].tolist())
        for exchange in wanted:
            for word in re.findall(r'["“](.+?)["”]', exchange.answer):
                lengths.add(len(word))
                assert [next(slots) for _ in word] == [place % SLOTS for place in range(len(word))]
    assert max(lengths) > SLOTS


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
