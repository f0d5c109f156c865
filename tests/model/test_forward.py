from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from qwen3vl_webui.model.cache import KVCache
from qwen3vl_webui.model.forward import DeepStack, Joined, RootMeanSquare, Run, TextModel
from qwen3vl_webui.model.rope import Rope, native
from tests.tiny import tiny_checkpoint

torch.set_num_threads(1)

VISUAL = range(20, 50)  # tokens that are visual
TOKENS = 300


class Case:
    """A stock model, its last hidden states for one prompt with DeepStack, and ours over the same weights."""

    def __init__(self, **variant: Any) -> None:
        self.network = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint(**variant), dtype=torch.float32)
        self.network.requires_grad_(False).eval()
        self.config = self.network.config.text_config
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, 500, (TOKENS,), generator=generator)
        self.embedded = self.network.get_input_embeddings()(self.ids)
        self.features = [torch.randn(len(VISUAL), self.config.hidden_size, generator=generator) for _ in range(3)]
        self.positions = torch.randint(0, 5000, (3, TOKENS), generator=generator)
        self.expected = self.stock()
        self.text = TextModel(self.network)
        self.rope = Rope(native(self.config), "cpu", torch.float32)
        self.cache = KVCache(
            layers=self.config.num_hidden_layers,
            kv_heads=self.config.num_key_value_heads,
            head_dim=self.config.head_dim,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )

    def stock(self) -> torch.Tensor:
        visual = torch.zeros(1, TOKENS, dtype=torch.bool)
        visual[0, VISUAL.start : VISUAL.stop] = True
        output = self.network.model.language_model(
            inputs_embeds=self.embedded[None],
            position_ids=self.positions[:, None],
            visual_pos_masks=visual,
            deepstack_visual_embeds=self.features,
        )
        return output.last_hidden_state[0]

    def chunk(self, run: Run) -> tuple[torch.Tensor, torch.Tensor, DeepStack | None]:
        """Embedded rows, positions and DeepStack of the prompt's tokens in a run."""
        here = slice(run.start, run.start + run.count)
        inside = [token for token in VISUAL if here.start <= token < here.stop]
        rows = [token - VISUAL.start for token in inside]
        stack = DeepStack(torch.tensor(inside) - run.start, [feature[rows] for feature in self.features])
        return self.embedded[here].clone(), self.positions[:, here], stack if inside else None

    def read(self, conversation: str, counts: list[int]) -> torch.Tensor:
        slot, start = self.cache.take(self.ids.numpy(), conversation)
        hidden = []
        for count in counts:
            self.cache.reserve(slot, start + count)
            run = Run(slot, start, count)
            rows, positions, stack = self.chunk(run)
            hidden.append(self.text.forward(rows, self.rope.cos_sin(positions), self.cache, [run], stack))
            slot.keys.extend(self.ids[start : start + count].tolist())
            start += count
        return self.text.norm(torch.cat(hidden))


@pytest.mark.parametrize("variant", [{}, {"tied": False}, {"experts": 4}], ids=str)
@pytest.mark.parametrize("counts", [[300], [40, 100, 1, 1, 158], [1] * 60 + [240], [25, 10, 265]], ids=str)
def test_any_chunking_equals_the_stock_text_model(variant: dict[str, Any], counts: list[int]) -> None:
    case = Case(**variant)
    torch.testing.assert_close(case.read("a", counts), case.expected, atol=2e-4, rtol=1e-4)


def test_rows_of_several_conversations_go_through_together() -> None:
    """Decode steps of two chats and a prompt chunk of a third, in one batch, as four slots will decode together."""
    case = Case()
    lengths = {"a": 120, "b": 200, "c": 60}
    for name, length in lengths.items():
        slot, _ = case.cache.take(case.ids[:1].numpy(), name)
        case.cache.reserve(slot, TOKENS)
        run = Run(slot, 0, length)
        rows, positions, stack = case.chunk(run)
        case.text.forward(rows, case.rope.cos_sin(positions), case.cache, [run], stack)
        slot.keys.extend(case.ids[:length].tolist())
        case.cache.release(slot)
    counts = {"a": 1, "b": 1, "c": 7}
    runs = [Run(slot, slot.length, counts[slot.conversation]) for slot in case.cache.slots]
    parts = [case.chunk(run)[:2] for run in runs]
    hidden = case.text.forward(
        torch.cat([rows for rows, _ in parts]),
        case.rope.cos_sin(torch.cat([positions for _, positions in parts], 1)),
        case.cache,
        runs,
    )
    expected = torch.cat([case.expected[run.start : run.start + run.count] for run in runs])
    torch.testing.assert_close(case.text.norm(hidden), expected, atol=2e-4, rtol=1e-4)


def test_logits_are_those_of_the_stock_head() -> None:
    case = Case(tied=False)
    hidden = torch.randn(3, case.config.hidden_size)
    stock = case.network.lm_head(case.network.model.language_model.norm(hidden))
    torch.testing.assert_close(case.text.logits(hidden), stock, atol=1e-4, rtol=1e-4)


def test_the_stock_model_still_works_on_the_joined_weights() -> None:
    case = Case()
    torch.testing.assert_close(case.stock(), case.expected, atol=0, rtol=0)


def test_joined_weights_are_held_once() -> None:
    linears = [nn.Linear(8, rows, bias=False) for rows in (4, 6, 2)]
    rows = torch.randn(5, 8)
    apart = torch.cat([linear(rows) for linear in linears], -1)
    joined = Joined(linears)
    torch.testing.assert_close(joined(rows), apart)
    assert joined.weight is not None
    storages = {linear.weight.untyped_storage().data_ptr() for linear in linears}
    assert storages == {joined.weight.untyped_storage().data_ptr()}


def test_layers_that_are_not_plain_are_called_one_by_one() -> None:
    class Quantized(nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return super().forward(rows) * 2

    modules = [Quantized(8, 4, bias=False), nn.Linear(8, 4, bias=False)]
    joined = Joined(modules)
    rows = torch.randn(3, 8)
    assert joined.weight is None
    torch.testing.assert_close(joined(rows), torch.cat([module(rows) for module in modules], -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e4])
def test_the_norm_in_four_operations_is_the_librarys(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    rows, weight = (torch.randn(5, 3, 64) * scale).to(dtype), torch.rand(64).to(dtype)
    expected = torch.nn.functional.rms_norm(rows, (64,), weight, 1e-6)
    torch.testing.assert_close(RootMeanSquare(weight, 1e-6)(rows), expected)
    per_head = torch.rand(3, 64).to(dtype)
    expected = torch.nn.functional.rms_norm(rows, (64,), eps=1e-6) * per_head
    torch.testing.assert_close(RootMeanSquare(per_head, 1e-6)(rows), expected)
