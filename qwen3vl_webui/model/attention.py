"""Causal attention of new rows over the KV held before them: no mask is built and no KV head is repeated.

Shapes: n new rows, p rows before them, H query heads, K KV heads, g = H / K query heads per KV head, d head size.
Query head h reads KV head h // g. Scale is d ** -0.5.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from qwen3vl_webui.model.planner import SCORES

LEAST_ROWS = 64  # fewer keep too little of a GPU busy in the fused kernel

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
log = logging.getLogger(__name__)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """query (1, H, n, d) are the last n rows of key and value (1, K, p + n, d). Returns (1, H, n, d)."""
    rows, total = query.shape[2], key.shape[2]
    if rows == 1:
        return attend_all(query, key, value)
    if rows == total:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    if query.device.type == "cpu":
        return attend_in_two(query, key, value)
    # On CUDA this bias picks the flash kernel, which aligns causality to the last row and reads grouped heads.
    bias = causal_lower_right(rows, total)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, enable_gqa=True)


def attend_all(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Every row of the query reads every key: the g heads of a group stand as g x n rows before their KV head."""
    _, heads, rows, size = query.shape
    kv_heads = key.shape[1]
    packed = query.reshape(1, kv_heads, heads // kv_heads * rows, size)
    return functional.scaled_dot_product_attention(packed, key, value).view(1, heads, rows, size)


def attend_in_two(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The held prefix without a mask, the new rows causally, joined by their log-sum-exp (CPU only)."""
    _, heads, rows, size = query.shape
    kv_heads, past = key.shape[1], key.shape[2] - rows
    groups = heads // kv_heads
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    packed = query.reshape(1, kv_heads, groups * rows, size)
    before, before_sum = flash(packed, key[:, :, :past], value[:, :, :past])
    before = before.view(1, heads, rows, size)
    before_sum = before_sum.reshape(1, heads, rows)

    new_key = key[:, :, past:].repeat_interleave(groups, dim=1)  # of this chunk only
    new_value = value[:, :, past:].repeat_interleave(groups, dim=1)
    within, within_sum = flash(query, new_key, new_value, is_causal=True)

    share = torch.sigmoid(before_sum - within_sum.view(1, heads, rows))[..., None]  # of the prefix, (1, H, n, 1)
    return torch.lerp(within.float(), before.float(), share).to(query.dtype)


class Partial:
    """One query's attention over its keys piece by piece, joined by their log-sum-exp: no piece needs the others.

    query (1, H, n, d) stands over `kv_heads` KV heads.
    """

    def __init__(self, query: torch.Tensor, kv_heads: int) -> None:
        self.shape = query.shape
        _, heads, rows, size = query.shape
        self.groups = heads // kv_heads
        self.packed = query.reshape(kv_heads, self.groups * rows, size)
        self.sum: torch.Tensor | None = None  # float32 (K, g x n, d)
        self.log_sum: torch.Tensor | None = None  # float32 (K, g x n)

    def add(self, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """key and value (K, m, d); `mask` bool (n, m): which each row reads, at least one; None: all."""
        if mask is not None:
            mask = mask.expand(self.groups, *mask.shape).reshape(-1, mask.shape[-1])
        answer, log_sum = attend_piece(self.packed, key, value, mask)
        if self.sum is None or self.log_sum is None:
            self.sum, self.log_sum = answer.float(), log_sum
            return
        share = torch.sigmoid(log_sum - self.log_sum)[..., None]
        self.sum.lerp_(answer.float(), share)
        self.log_sum = torch.logaddexp(self.log_sum, log_sum)

    @property
    def answer(self) -> torch.Tensor:
        """(1, H, n, d)"""
        assert self.sum is not None
        return self.sum.to(self.packed.dtype).view(self.shape)


def attend_piece(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of (K, r, d) over (K, m, d), and its log-sum-exp, float32 (K, r)."""
    if query.device.type == "cpu":
        bias = None if mask is None else torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        answer, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[None], key[None], value[None], attn_mask=None if bias is None else bias[None, None]
        )
        return answer[0], log_sum.reshape(query.shape[:2])
    if mask is None and query.shape[1] >= LEAST_ROWS and is_trusted(flash, query.device, query.dtype, query.shape[2]):
        return flash(query, key, value)
    return attend_plainly(query, key, value, mask)


def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """CUDA's fused kernel, which torch keeps for its own use: see `is_trusted`."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    answer, log_sum, *_ = kernel(query[None], key[None], value[None])
    return answer[0], log_sum[0, :, : query.shape[1]]


@cache
def is_trusted(kernel: Kernel, device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether a private kernel is there and agrees with plain products, on this device and for this head size."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, rows, size, generator=generator).to(device, dtype) for rows in (96, 200, 200))
    expected = attend_plainly(query, key, value, None)
    try:
        given = kernel(query, key, value)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        log.warning("attention goes by plain products: %s", error)
        return False
    for one, other in zip(given, expected, strict=True):
        if one.shape != other.shape or not torch.allclose(one.float(), other.float(), atol=0.03, rtol=0.03):
            log.warning("attention goes by plain products: the fused kernel does not agree with them")
            return False
    return True


def attend_plainly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by matrix products, on any device; a bounded number of scores at once."""
    heads, rows, size = query.shape
    step = max(1, SCORES // (heads * key.shape[1]))
    answers, log_sums = [], []
    for at in range(0, rows, step):
        scores = (query[:, at : at + step] @ key.transpose(1, 2)).float().mul_(size**-0.5)  # (K, step, m)
        if mask is not None:
            scores.masked_fill_(~mask[at : at + step], -torch.inf)
        log_sum = scores.logsumexp(-1)
        answers.append(scores.sub_(log_sum[..., None]).exp_().to(value.dtype) @ value)
        log_sums.append(log_sum)
        del scores  # the next ones are made beside nothing
    return torch.cat(answers, 1), torch.cat(log_sums, 1)
