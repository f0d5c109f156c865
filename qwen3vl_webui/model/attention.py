"""Causal attention of new rows over the KV held before them: no mask is built and no KV head is repeated.

Shapes: n new rows, p rows before them, H query heads, K KV heads, g = H / K query heads per KV head, d head size.
Query head h reads KV head h // g. Scale is d ** -0.5.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right


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
