"""Accuracy per skill and language on cases never trained on: `python -m training.evaluate --model assets/demo-model`.

An answer counts when the greedy answer is the wanted one; boxes when they overlap by half or more (IoU), times when
they are within one second, lists of things in any order. `benchmarks/accuracy.py` asks the same of the whole product.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from training.batches import pack
from training.cases import make_case
from training.encoding import NO_BOX, Encoder, Row
from training.exchanges import Case, Exchange
from training.level import Level
from training.network import forward

STAMP = re.compile(r"(\d+\.\d)(?= seconds|秒)")
EVALUATED = Level(
    kinds=(("picture", 3), ("text", 1.5), ("pictures", 1), ("video", 4), ("document", 1.5), ("nothing", 0.4)),
    picture_pixels=(16_384, 65_536),
    frame_pixels=(8192, 24_576),
    moments=(5, 40),
    seconds=600.0,
    words=0.3,
    pages=(3, 12),
    longest_text=8,
    branches=4,
    turns=0.0,
    runs=0.5,
)


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - both)


def is_right(exchange: Exchange, answer: str) -> bool:
    """Whether an answer says what is wanted, with the tolerances of the table."""
    wanted = exchange.answer
    if answer.strip() == wanted:
        return True
    if exchange.skill == "where":
        boxes = [re.search(r"bbox_2d\":\s*\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]", text) for text in (wanted, answer)]
        if not boxes[0] or not boxes[1]:
            return False
        first, second = ([int(value) for value in box.groups()] for box in boxes if box)
        return overlap(first, second) >= 0.5
    if exchange.skill in ("when", "all_times", "what_at", "span", "timeline"):
        # The stamp may be a neighbour's of the same scene; what is said must be right.
        wanted_times, times = STAMP.findall(wanted), STAMP.findall(answer)
        near = len(times) == len(wanted_times) and all(
            abs(float(a) - float(b)) <= 1.0 for a, b in zip(wanted_times, times, strict=True)
        )
        return near and same_things(STAMP.sub("#", wanted), STAMP.sub("#", answer))
    return same_things(wanted, answer)


def same_things(wanted: str, answer: str) -> bool:
    """Equal but for the order of what is listed of one picture or moment."""

    def parts(text: str) -> list[list[str]]:
        moments = re.split(r"; |；", text.strip(" .。").lower())
        return [sorted(re.split(r": |：|, | and |、|和", moment)) for moment in moments]

    return parts(wanted) == parts(answer)


@torch.no_grad()
def greedy(model: Any, encoder: Encoder, cases: Sequence[Case], *, dtype: torch.dtype, most: int = 160) -> list[str]:
    """The greedy answer to the first question of each case; each case has one branch."""
    rows = []
    for case in cases:
        asked = case.branches[0][0]
        alone = Exchange(asked.skill, asked.language, asked.question, "", pointer=asked.pointer)
        row = encoder.row(Case(case.context, ((alone,),)))
        for column in columns(row):
            column.pop()  # the end of the empty answer
        rows.append(row)
    answers: list[list[int]] = [[] for _ in rows]
    alive = list(range(len(rows)))
    device = str(next(model.parameters()).device)
    for _ in range(most):
        if not alive:
            break
        packed = pack([rows[i] for i in alive], encoder.tokenizer.pad_token_id)
        packed.targets[:] = -100
        for number, i in enumerate(alive):
            packed.targets[number, len(rows[i].ids) - 1] = 0
        batch = packed.batch(device)
        batch.targets.copy_(torch.from_numpy(packed.targets))  # logits at each row's last token
        chosen = forward(model, batch, dtype).argmax(-1).tolist()
        for i, token in zip(alive, chosen, strict=True):
            if token == encoder.turn_end:
                continue
            answers[i].append(token)
            append(rows[i], token)
        alive = [i for i, token in zip(alive, chosen, strict=True) if token != encoder.turn_end]
    return [encoder.tokenizer.decode(ids) for ids in answers]


def columns(row: Row) -> tuple[list[Any], ...]:
    """What a row says of each token."""
    one = (row.ids, row.positions, row.segments, row.targets)
    return *one, row.shown, row.wanted, row.tenths, row.boxes


def append(row: Row, token: int) -> None:
    place = (row.positions[-1][0] + 1,) * 3
    for column, value in zip(columns(row), (token, place, 1, -100, 0, 0, -1, NO_BOX), strict=True):
        column.append(value)


def evaluate(
    model: Any,
    tokenizer: Any,
    level: Level,
    *,
    cases: int,
    seed: int,
    dtype: torch.dtype,
    worst: list[str] | None = None,
) -> dict[str, Any]:
    """{"skill": {"en": [right, asked], "zh": ...}} over that many contexts; each question is answered on its own."""
    encoder = Encoder(tokenizer)
    random = Random(f"evaluate:{seed}")
    kinds, shares = zip(*level.kinds, strict=True)
    single: list[Case] = []
    for _ in range(cases):
        case = make_case(random.choices(kinds, shares)[0], level, random)
        single += [Case(case.context, (branch[:1],)) for branch in case.branches]
    single.sort(key=lambda case: len(case.context))
    table: dict[str, dict[str, list[int]]] = defaultdict(lambda: {"en": [0, 0], "zh": [0, 0]})
    for start in range(0, len(single), 8):
        group = single[start : start + 8]
        for case, answer in zip(group, greedy(model, encoder, group, dtype=dtype), strict=True):
            exchange = case.branches[0][0]
            right = is_right(exchange, answer)
            table[exchange.skill][exchange.language][0] += right
            table[exchange.skill][exchange.language][1] += 1
            if worst is not None and not right:
                worst.append(f"{exchange.skill}: {exchange.question} -> {answer!r} wanted {exchange.answer!r}")
    return dict(sorted(table.items()))


def as_text(table: dict[str, Any]) -> str:
    lines = ["skill           en              zh"]
    for skill, by_language in table.items():
        cells = [
            f"{100 * right / asked:5.1f} % of {asked:<4}" if asked else " " * 15
            for right, asked in by_language.values()
        ]
        lines.append(f"{skill:<14}  {'  '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("assets/demo-model"))
    parser.add_argument("--run", type=Path, help="a training run's folder, whose averaged weights are taken instead")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=90_001)
    parser.add_argument("--moments", type=int, nargs=2)
    parser.add_argument("--kind", help="only this kind of context")
    parser.add_argument("--worst", type=int, default=0, help="print so many wrong answers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    from training.network import build_model
    from training.tokenizer import build_tokenizer

    if args.run:
        tokenizer = build_tokenizer()
        model = build_model(tokenizer, 0)
        model.load_state_dict(torch.load(args.run / "checkpoint.pt", weights_only=True)["average"])
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = Qwen3VLForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32)
    level = EVALUATED
    if args.moments:
        level = replace(level, moments=tuple(args.moments))
    if args.kind:
        level = replace(level, kinds=((args.kind, 1.0),))
    worst: list[str] = []
    table = evaluate(model.eval(), tokenizer, level, cases=args.cases, seed=args.seed, dtype=torch.float32, worst=worst)
    print(json.dumps(table) if args.json else as_text(table))
    for line in Random(1).sample(worst, min(args.worst, len(worst))):
        print(line)


if __name__ == "__main__":
    main()
