from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from qwen3vl_webui.model.attention import attend

torch.set_num_threads(1)


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """With the mask built and the KV heads repeated, in float64."""
    groups, rows, total = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    seen = torch.ones(rows, total, dtype=torch.bool).tril(total - rows)
    wide_key, wide_value = (tensor.double().repeat_interleave(groups, 1) for tensor in (key, value))
    return functional.scaled_dot_product_attention(query.double(), wide_key, wide_value, attn_mask=seen)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (8, 1)], ids=str)
@pytest.mark.parametrize(("rows", "past"), [(1, 0), (1, 1), (1, 700), (5, 0), (5, 3), (2, 900), (130, 600), (300, 1)])
def test_equals_masked_attention(heads: tuple[int, int], rows: int, past: int) -> None:
    generator = torch.Generator().manual_seed(rows + past)
    query = torch.randn(1, heads[0], rows, 32, generator=generator)
    slab = torch.randn(2, 1, heads[1], 1024, 32, generator=generator)
    key, value = slab[0, :, :, : rows + past], slab[1, :, :, : rows + past]  # views, as the cache gives them
    answer = attend(query, key, value)
    assert answer.shape == query.shape
    torch.testing.assert_close(answer.double(), masked(query, key, value), atol=2e-6, rtol=1e-5)


def test_a_prefix_that_outweighs_or_vanishes_does_not_overflow() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 3, 32, generator=generator)
    key, value = torch.randn(2, 1, 2, 10, 32, generator=generator)
    for part, factor in ((slice(0, 7), 200.0), (slice(7, 10), 200.0)):
        strong = key.clone()
        strong[:, :, part] *= factor
        answer = attend(query, strong, value)
        torch.testing.assert_close(answer.double(), masked(query, strong, value), atol=1e-4, rtol=1e-4)


def test_bfloat16_is_as_near_as_its_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 8, 40, 64, generator=generator).bfloat16()
    key, value = torch.randn(2, 1, 2, 300, 64, generator=generator).bfloat16()
    answer = attend(query, key, value)
    assert answer.dtype == torch.bfloat16
    torch.testing.assert_close(answer.double(), masked(query, key, value), atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("rows", "past"), [(1, 700), (130, 0), (130, 600)])
def test_equals_masked_attention_on_cuda(rows: int, past: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 8, rows, 128, generator=generator).bfloat16()
    key, value = torch.randn(2, 1, 2, rows + past, 128, generator=generator).bfloat16()
    answer = attend(query.cuda(), key.cuda(), value.cuda())
    torch.testing.assert_close(answer.double().cpu(), masked(query, key, value), atol=2e-2, rtol=2e-2)
