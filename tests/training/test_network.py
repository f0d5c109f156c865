"""The lean forward pass and the product's layout are the stock ones."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from qwen3vl_webui.engine.contract import Message
from qwen3vl_webui.media.values import Clip, FramePlan, Image
from qwen3vl_webui.model.inputs import Vocabulary, encode
from training.batches import batches_of, pack
from training.cases import make_case
from training.encoding import Encoder
from training.evaluate import greedy
from training.exchanges import Case, Exchange, Moment, Still
from training.level import Level
from training.network import build_model, forward, patches_of
from training.tokenizer import build_tokenizer

LEVEL = Level(
    kinds=(("video", 1.0),), picture_pixels=(4096, 16_384), moments=(3, 6), pages=(2, 3), branches=2, turns=0.5
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    torch.set_num_threads(1)
    return build_model(tokenizer, 1).eval()


def stock_logits(model: Any, encoder: Encoder, row: Any) -> torch.Tensor:
    pixels, grids = [], []
    for _, image in row.visuals:
        patches = patches_of(torch.from_numpy(image.copy())[None])[0]
        twice = patches.view(-1, 3, 1, 256).expand(-1, 3, 2, 256)  # both frames of the temporal patch
        pixels.append(twice.reshape(len(patches), -1))
        grids.append([1, image.shape[0] // 16, image.shape[1] // 16])
    ids = torch.tensor([row.ids])
    kinds = (ids == encoder.image).int() + 2 * (ids == encoder.video).int()
    media: dict[str, Any] = {}
    if (ids == encoder.video).any():
        media = {
            "pixel_values_videos": torch.cat(pixels),
            "video_grid_thw": torch.tensor([[len(grids), *grids[0][1:]]]),
        }
    elif pixels:
        media = {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, mm_token_type_ids=kinds, **media).logits
    return logits


@pytest.mark.parametrize("kind", ["picture", "text", "pictures", "video", "document", "nothing"])
def test_forward_equals_stock_transformers(model: Any, tokenizer: Any, kind: str) -> None:
    encoder = Encoder(tokenizer)
    case = make_case(kind, LEVEL, Random(3))
    row = encoder.row(Case(case.context, case.branches[:1]))
    batch = pack([row], tokenizer.pad_token_id).batch()
    with torch.no_grad():
        ours = forward(model, batch, torch.float32, everywhere=True)
    torch.testing.assert_close(ours, stock_logits(model, encoder, row), atol=2e-4, rtol=1e-3)


def test_questions_in_one_row_do_not_see_each_other(model: Any, tokenizer: Any) -> None:
    """Several branches and several rows in one batch give what each branch gives alone."""
    encoder = Encoder(tokenizer)
    cases = [make_case(kind, LEVEL, Random(seed)) for seed, kind in enumerate(("video", "picture", "document"))]
    batch = pack([encoder.row(case) for case in cases], tokenizer.pad_token_id).batch()
    with torch.no_grad():
        together = forward(model, batch, torch.float32)
        alone = [
            forward(
                model, pack([encoder.row(Case(case.context, (branch,)))], tokenizer.pad_token_id).batch(), torch.float32
            )
            for case in cases
            for branch in case.branches
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-4, rtol=1e-3)


def test_batches_hold_every_row_within_the_limit(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer)
    rows = [encoder.row(make_case("video", LEVEL, Random(seed))) for seed in range(12)]
    batches = list(batches_of(rows, 1500, tokenizer.pad_token_id))
    assert sum(len(batch.ids) for batch in batches) == len(rows)
    assert all(batch.ids.size <= 1500 or len(batch.ids) == 1 for batch in batches)
    assert sum(len(batch.asked) for batch in batches) == sum(len(row.asked) for row in rows)


def test_greedy_answers_equal_stock_generate(model: Any, tokenizer: Any) -> None:
    encoder = Encoder(tokenizer)
    case = make_case("nothing", LEVEL, Random(1))
    case = Case(case.context, (case.branches[0][:1],))
    (answer,) = greedy(model, encoder, [case], dtype=torch.float32, most=12)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": case.branches[0][0].question}], add_generation_prompt=True, return_tensors="pt"
    )
    ids = prompt["input_ids"] if not isinstance(prompt, torch.Tensor) else prompt
    made = model.generate(
        input_ids=ids,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=encoder.turn_end,
        pad_token_id=tokenizer.pad_token_id,
    )
    assert answer == tokenizer.decode(made[0, ids.shape[1] :].tolist()).replace("<|im_end|>", "")


def product_parts(case: Case) -> list[Any]:
    """The context as the product's prompt would hold it."""
    parts: list[Any] = []
    moments = [part for part in case.context if isinstance(part, Moment)]
    if moments:
        height, width, _ = moments[0].pixels.shape
        clip = Clip("clip.mp4", "0" * 64, 0.0, 600.0, 640, 360)  # type: ignore[arg-type]
        return [FramePlan(clip, tuple((m.seconds, m.seconds) for m in moments), width, height)]
    for number, part in enumerate(case.context):
        if isinstance(part, Still):
            height, width, _ = part.pixels.shape
            parts.append(Image("page.png", f"{number}", width, height, seen=(width, height)))  # type: ignore[arg-type]
        else:
            parts.append(part)
    return parts


@pytest.mark.parametrize("kind", ["picture", "pictures", "video", "document", "nothing"])
def test_layout_is_the_products(tokenizer: Any, kind: str) -> None:
    """Token for token and position for position, in a chat of several turns."""
    case = make_case(kind, LEVEL, Random(5))
    first = Exchange("name", "en", "What is in the picture?", "A red circle.")
    second = Exchange("count", "zh", "有几个红色圆形？", "有1个红色圆形。")
    row = Encoder(tokenizer).row(Case(case.context, ((first, second),)))
    parts = product_parts(case)
    if parts and isinstance(parts[-1], str):
        parts[-1] += first.question
    else:
        parts.append(first.question)
    messages = [
        Message("user", tuple(parts)),
        Message("assistant", (first.answer,)),
        Message("user", (second.question,)),
    ]
    inputs = encode(messages, Vocabulary.of(tokenizer._tokenizer))
    prompt = len(row.ids) - len(Encoder(tokenizer).encode(second.answer + "<|im_end|>"))
    assert inputs.ids.tolist() == row.ids[:prompt]
    assert inputs.positions.T.tolist() == [list(place) for place in row.positions[:prompt]]
