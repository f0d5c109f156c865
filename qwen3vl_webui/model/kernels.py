"""Triton kernels for writing: one new row of each of up to four conversations is stored and attends to its whole slot.

Keys and values are read as they are held: the codes of int8 and int4 become numbers in registers and nowhere else. The
context of a KV head is cut into splits, each read by a program of its own, and their answers are joined by log-sum-exp.
All lengths are read on the device, and every grid and shape depends only on how many conversations there are, so that
the launches can be recorded in a CUDA graph.

Shapes: B conversations, H query heads, K KV heads, g = H / K, d head size. Imported only where Triton is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl

from qwen3vl_webui.model.cache import KVCache
from qwen3vl_webui.model.formats import Places
from qwen3vl_webui.model.planner import GROUP, KVFormat

log = logging.getLogger(__name__)

SIZES = (32, 64, 128)  # of a head; int4 packs halves of it, and a matrix product wants 16 columns
BLOCK = 64  # tokens read at once, which in int4 share the scales of their keys
MOST_SPLITS = 64
PROGRAMS = 4  # wanted on each multiprocessor: enough reads in flight to fill its share of the memory bus
TRIED = 3 * GROUP - 2  # tokens read before the kernels are tried over the end of a group
TOLERANCE = 0.03  # of bfloat16 answers about 1, which the formats round in other places


@triton.jit
def nearest(numbers):
    """Whole numbers, halves to the even one as in torch: from 2 ** 23 on float32 has no places behind the point."""
    return (numbers + 12582912.0) - 12582912.0


@triton.jit
def line_of(rows, one, head, KV_HEADS: tl.constexpr):
    """Which of the slab's contexts is that of a conversation's KV head."""
    return tl.load(rows + one).to(tl.int64) * KV_HEADS + head


@triton.jit
def stored_full(
    key, value, keys, values, rows, starts, capacity, key_stride, value_stride,
    KV_HEADS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    one, head, channel = tl.program_id(0), tl.program_id(1), tl.arange(0, SIZE)
    entry = line_of(rows, one, head, KV_HEADS) * capacity + tl.load(starts + one)
    tl.store(keys + entry * SIZE + channel, tl.load(key + one * key_stride + head * SIZE + channel))
    tl.store(values + entry * SIZE + channel, tl.load(value + one * value_stride + head * SIZE + channel))


@triton.jit
def stored_int8(
    key, value, keys, key_scales, values, value_scales, rows, starts, capacity, key_stride, value_stride,
    KV_HEADS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    one, head, channel = tl.program_id(0), tl.program_id(1), tl.arange(0, SIZE)
    entry = line_of(rows, one, head, KV_HEADS) * capacity + tl.load(starts + one)
    for which in tl.static_range(2):
        row = tl.load((key + one * key_stride if which == 0 else value + one * value_stride) + head * SIZE + channel)
        row = row.to(tl.float32)
        scale = tl.div_rn(tl.max(tl.abs(row), 0), 127.0).to(tl.float16)
        codes = nearest(tl.div_rn(row, tl.maximum(scale.to(tl.float32), 5.9604644775390625e-08)))
        codes = tl.minimum(tl.maximum(codes, -127.0), 127.0).to(tl.int8)
        tl.store((keys if which == 0 else values) + entry * SIZE + channel, codes)
        tl.store((key_scales if which == 0 else value_scales) + entry, scale)


@triton.jit
def codes_of(numbers, low, high):
    """Codes 0-15, float16 scale and zero, of float32 numbers between low and high, which broadcast over them."""
    scale, zero = tl.div_rn(high - low, 15.0).to(tl.float16), low.to(tl.float16)
    codes = tl.div_rn(numbers - zero.to(tl.float32), tl.maximum(scale.to(tl.float32), 5.9604644775390625e-08))
    return tl.minimum(tl.maximum(nearest(codes), 0.0), 15.0).to(tl.int32), scale, zero


@triton.jit
def group_of_keys(tail, new, scales, inside, token, channel, SIZE: tl.constexpr, GROUP: tl.constexpr):
    """Codes (64, d / 2) of the group that `new` fills, for half of the channels; their scales and zeros are stored."""
    there = tl.load(tail + token[:, None] * SIZE + channel[None, :], mask=token[:, None] < inside, other=0.0)
    rows = tl.where(token[:, None] == inside, new[None, :], there).to(tl.float32)
    codes, scale, zero = codes_of(rows, tl.min(rows, 0)[None, :], tl.max(rows, 0)[None, :])
    tl.store(scales + channel[None, :], scale)
    tl.store(scales + SIZE + channel[None, :], zero)
    return codes


@triton.jit
def stored_int4(
    key, value, keys, key_scales, values, value_scales, key_tail, value_tail, rows, starts, halves, capacity, groups,
    key_stride, value_stride, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    one, head = tl.program_id(0), tl.program_id(1)
    HALF: tl.constexpr = SIZE // 2
    lower = tl.arange(0, HALF)
    upper = HALF + lower
    line = line_of(rows, one, head, KV_HEADS)
    start = tl.load(starts + one)
    inside = start % GROUP
    ring = (line * 2 + tl.load(halves + one)) * GROUP * SIZE

    key += one * key_stride + head * SIZE
    key_lower, key_upper = tl.load(key + lower), tl.load(key + upper)
    if inside == GROUP - 1:
        token = tl.arange(0, GROUP)
        scales = key_scales + (line * groups + start // GROUP) * 2 * SIZE
        codes = group_of_keys(key_tail + ring, key_lower, scales, inside, token, lower, SIZE, GROUP)
        codes |= group_of_keys(key_tail + ring, key_upper, scales, inside, token, upper, SIZE, GROUP) << 4
        entry = line * capacity + start - inside
        tl.store(keys + entry * HALF + token[:, None] * HALF + lower[None, :], codes.to(tl.uint8))
    tl.store(key_tail + ring + inside * SIZE + lower, key_lower)
    tl.store(key_tail + ring + inside * SIZE + upper, key_upper)

    value += one * value_stride + head * SIZE
    value_lower, value_upper = tl.load(value + lower), tl.load(value + upper)
    tl.store(value_tail + ring + inside * SIZE + lower, value_lower)
    tl.store(value_tail + ring + inside * SIZE + upper, value_upper)
    value_lower, value_upper = value_lower.to(tl.float32), value_upper.to(tl.float32)
    low_lower, high_lower = tl.min(value_lower, 0), tl.max(value_lower, 0)
    low_upper, high_upper = tl.min(value_upper, 0), tl.max(value_upper, 0)
    entry = line * capacity + start
    if SIZE > GROUP:  # each half has its own scale
        codes, scale, zero = codes_of(value_lower, low_lower, high_lower)
        others, other_scale, other_zero = codes_of(value_upper, low_upper, high_upper)
        tl.store(value_scales + entry * 4, scale)
        tl.store(value_scales + entry * 4 + 1, zero)
        tl.store(value_scales + entry * 4 + 2, other_scale)
        tl.store(value_scales + entry * 4 + 3, other_zero)
    else:
        low, high = tl.minimum(low_lower, low_upper), tl.maximum(high_lower, high_upper)
        codes, scale, zero = codes_of(value_lower, low, high)
        others, scale, zero = codes_of(value_upper, low, high)
        tl.store(value_scales + entry * 2, scale)
        tl.store(value_scales + entry * 2 + 1, zero)
    tl.store(values + entry * HALF + lower, (codes | (others << 4)).to(tl.uint8))


@triton.jit
def part_of(tokens, split, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """The first token of a split and the first behind it; both equal where it has none."""
    share = tl.cdiv(tl.cdiv(tokens, SPLITS), BLOCK) * BLOCK
    begin = tl.minimum(split * share, tokens)
    return begin, tl.minimum(begin + share, tokens)


@triton.jit
def weighed(scores, most, total):
    """Online softmax in base 2: weights of these scores, what the sums so far shrink by, the new largest and total."""
    larger = tl.maximum(most, tl.max(scores, 1))
    weights = tl.exp2(scores - larger[:, None])
    shrunk = tl.exp2(most - larger)
    return weights, shrunk, larger, total * shrunk + tl.sum(weights, 1)


@triton.jit
def total_of(log_sums, most, total, mine):
    """What the sums of a split are divided by, 0 never; the logarithm of its weights together is stored."""
    total = tl.maximum(total, 1e-38)
    tl.store(log_sums, most + tl.log2(total), mask=mine)
    return total


@triton.jit
def read_full(
    query, keys, values, rows, starts, answers, log_sums, capacity, query_stride, scale,
    KV_HEADS: tl.constexpr, GROUPS: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    one, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    member, channel, step = tl.arange(0, PADDED), tl.arange(0, SIZE), tl.arange(0, BLOCK)
    mine = (member < GROUPS)[:, None]
    heads = head * GROUPS + member
    asked = tl.load(query + one * query_stride + heads[:, None] * SIZE + channel[None, :], mask=mine, other=0.0)
    line = line_of(rows, one, head, KV_HEADS)
    keys += line * capacity * SIZE
    values += line * capacity * SIZE
    most = tl.full((PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    answer = tl.zeros((PADDED, SIZE), tl.float32)
    begin, end = part_of(tl.load(starts + one) + 1, split, SPLITS, BLOCK)
    for at in range(begin, end, BLOCK):
        token = at + step
        there = token < end
        key = tl.load(keys + token[None, :] * SIZE + channel[:, None], mask=there[None, :], other=0.0)
        scores = tl.dot(asked, key, input_precision="ieee") * scale
        weights, shrunk, most, total = weighed(tl.where(there[None, :], scores, float("-inf")), most, total)
        value = tl.load(values + token[:, None] * SIZE + channel[None, :], mask=there[:, None], other=0.0)
        answer = answer * shrunk[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    place = (one * KV_HEADS * GROUPS + heads) * SPLITS + split
    total = total_of(log_sums + place, most, total, member < GROUPS)
    tl.store(answers + place[:, None] * SIZE + channel[None, :], answer / total[:, None], mask=mine)


@triton.jit
def read_int8(
    query, keys, key_scales, values, value_scales, rows, starts, answers, log_sums, capacity, query_stride, scale,
    KV_HEADS: tl.constexpr, GROUPS: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    one, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    member, channel, step = tl.arange(0, PADDED), tl.arange(0, SIZE), tl.arange(0, BLOCK)
    mine = (member < GROUPS)[:, None]
    heads = head * GROUPS + member
    asked = tl.load(query + one * query_stride + heads[:, None] * SIZE + channel[None, :], mask=mine, other=0.0)
    line = line_of(rows, one, head, KV_HEADS)
    keys += line * capacity * SIZE
    values += line * capacity * SIZE
    key_scales += line * capacity
    value_scales += line * capacity
    most = tl.full((PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    answer = tl.zeros((PADDED, SIZE), tl.float32)
    begin, end = part_of(tl.load(starts + one) + 1, split, SPLITS, BLOCK)
    for at in range(begin, end, BLOCK):
        token = at + step
        there = token < end
        codes = tl.load(keys + token[None, :] * SIZE + channel[:, None], mask=there[None, :], other=0)
        scales = tl.load(key_scales + token, mask=there, other=0.0).to(tl.float32)
        # A code is exact in bfloat16 (127 < 2 ** 8), so the scale waits until after the product.
        scores = tl.dot(asked, codes.to(asked.dtype), input_precision="ieee") * (scales * scale)[None, :]
        weights, shrunk, most, total = weighed(tl.where(there[None, :], scores, float("-inf")), most, total)
        codes = tl.load(values + token[:, None] * SIZE + channel[None, :], mask=there[:, None], other=0)
        scales = tl.load(value_scales + token, mask=there, other=0.0).to(tl.float32)
        weights = (weights * scales[None, :]).to(asked.dtype)
        answer = answer * shrunk[:, None] + tl.dot(weights, codes.to(asked.dtype), input_precision="ieee")
    place = (one * KV_HEADS * GROUPS + heads) * SPLITS + split
    total = total_of(log_sums + place, most, total, member < GROUPS)
    tl.store(answers + place[:, None] * SIZE + channel[None, :], answer / total[:, None], mask=mine)


@triton.jit
def read_int4(
    query, keys, key_scales, values, value_scales, key_tail, value_tail, rows, starts, halves, answers, log_sums,
    capacity, groups, query_stride, scale, KV_HEADS: tl.constexpr, GROUPS: tl.constexpr, PADDED: tl.constexpr,
    SIZE: tl.constexpr, GROUP: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    one, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    HALF: tl.constexpr = SIZE // 2
    WIDTH: tl.constexpr = 4 if SIZE > GROUP else 2  # scales and zeros of one token's values
    member, lower, step = tl.arange(0, PADDED), tl.arange(0, HALF), tl.arange(0, GROUP)
    mine = (member < GROUPS)[:, None]
    heads = head * GROUPS + member
    query += one * query_stride
    asked_lower = tl.load(query + heads[:, None] * SIZE + lower[None, :], mask=mine, other=0.0)
    asked_upper = tl.load(query + heads[:, None] * SIZE + HALF + lower[None, :], mask=mine, other=0.0)
    line = line_of(rows, one, head, KV_HEADS)
    keys += line * capacity * HALF
    values += line * capacity * HALF
    key_scales += line * groups * 2 * SIZE
    value_scales += line * capacity * WIDTH
    ring = (line * 2 + tl.load(halves + one)) * GROUP * SIZE
    most = tl.full((PADDED,), float("-inf"), tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    answer_lower = tl.zeros((PADDED, HALF), tl.float32)
    answer_upper = tl.zeros((PADDED, HALF), tl.float32)
    start = tl.load(starts + one)
    begin, end = part_of(start // GROUP * GROUP, split, SPLITS, GROUP)
    for at in range(begin, end, GROUP):  # whole groups, as stored
        token = at + step
        packed = tl.load(keys + token[None, :] * HALF + lower[:, None])
        shared = key_scales + at // GROUP * 2 * SIZE + lower
        # query x (code x scale + zero): the scales go to the query, of which there is less.
        turned = asked_lower.to(tl.float32)
        scores = tl.sum(turned * tl.load(shared + SIZE).to(tl.float32)[None, :], 1)[:, None]
        turned = (turned * tl.load(shared).to(tl.float32)[None, :]).to(asked_lower.dtype)
        scores += tl.dot(turned, (packed & 15).to(asked_lower.dtype), input_precision="ieee")
        turned = asked_upper.to(tl.float32)
        scores += tl.sum(turned * tl.load(shared + SIZE + HALF).to(tl.float32)[None, :], 1)[:, None]
        turned = (turned * tl.load(shared + HALF).to(tl.float32)[None, :]).to(asked_lower.dtype)
        scores += tl.dot(turned, (packed >> 4).to(asked_lower.dtype), input_precision="ieee")
        weights, shrunk, most, total = weighed(scores * scale, most, total)

        packed = tl.load(values + token[:, None] * HALF + lower[None, :])
        shared = value_scales + token * WIDTH
        scaled = (weights * tl.load(shared).to(tl.float32)[None, :]).to(asked_lower.dtype)
        zeros = tl.sum(weights * tl.load(shared + 1).to(tl.float32)[None, :], 1)[:, None]
        product = tl.dot(scaled, (packed & 15).to(asked_lower.dtype), input_precision="ieee")
        answer_lower = answer_lower * shrunk[:, None] + product + zeros
        if SIZE > GROUP:
            scaled = (weights * tl.load(shared + 2).to(tl.float32)[None, :]).to(asked_lower.dtype)
            zeros = tl.sum(weights * tl.load(shared + 3).to(tl.float32)[None, :], 1)[:, None]
        product = tl.dot(scaled, (packed >> 4).to(asked_lower.dtype), input_precision="ieee")
        answer_upper = answer_upper * shrunk[:, None] + product + zeros
    if split == SPLITS - 1:  # the group being filled, exactly
        there = step <= start % GROUP
        tail = key_tail + ring + step[None, :] * SIZE + lower[:, None]
        scores = tl.dot(asked_lower, tl.load(tail, mask=there[None, :], other=0.0), input_precision="ieee")
        scores += tl.dot(asked_upper, tl.load(tail + HALF, mask=there[None, :], other=0.0), input_precision="ieee")
        scores = tl.where(there[None, :], scores * scale, float("-inf"))
        weights, shrunk, most, total = weighed(scores, most, total)
        tail = value_tail + ring + step[:, None] * SIZE + lower[None, :]
        weights = weights.to(asked_lower.dtype)
        product = tl.dot(weights, tl.load(tail, mask=there[:, None], other=0.0), input_precision="ieee")
        answer_lower = answer_lower * shrunk[:, None] + product
        product = tl.dot(weights, tl.load(tail + HALF, mask=there[:, None], other=0.0), input_precision="ieee")
        answer_upper = answer_upper * shrunk[:, None] + product
    place = (one * KV_HEADS * GROUPS + heads) * SPLITS + split
    total = total_of(log_sums + place, most, total, member < GROUPS)
    answers += place[:, None] * SIZE + lower[None, :]
    tl.store(answers, answer_lower / total[:, None], mask=mine)
    tl.store(answers + HALF, answer_upper / total[:, None], mask=mine)


@triton.jit
def join(answers, log_sums, joined, SIZE: tl.constexpr, SPLITS: tl.constexpr):
    """One answer of all splits, for one head of one conversation; a split without tokens has a log-sum of -inf."""
    place, split, channel = tl.program_id(0), tl.arange(0, SPLITS), tl.arange(0, SIZE)
    log_sum = tl.load(log_sums + place * SPLITS + split)
    shares = tl.exp2(log_sum - tl.max(log_sum, 0))
    parts = tl.load(answers + (place * SPLITS + split[:, None]) * SIZE + channel[None, :])
    answer = tl.sum(parts * shares[:, None], 0) / tl.sum(shares, 0)
    tl.store(joined + place * SIZE + channel, answer.to(joined.dtype.element_ty))


@cache
def splits_for(pairs: int, device: torch.device) -> int:
    """Into how many parts each of `pairs` contexts is cut, a power of two; whatever their length."""
    if device.type != "cuda":
        return 2
    wanted = PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count // pairs
    return max(1, min(MOST_SPLITS, triton.next_power_of_2(wanted)))


def decode(
    kv: KVFormat,
    held: Mapping[str, torch.Tensor],
    places: Places,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    """Stores key and value (B, K, d) at `places` of one layer's tensors (slots, K, entries, width), and gives the
    answer (B, H, d) of query (B, H, d) to all rows of each slot so far. The last two axes must be contiguous."""
    (count, heads, size), kv_heads = query.shape, key.shape[1]
    splits = splits_for(count * kv_heads, query.device)
    answers = query.new_empty((count, heads, splits, size), dtype=torch.float32)
    log_sums = query.new_empty((count, heads, splits), dtype=torch.float32)
    joined = torch.empty_like(query, memory_format=torch.contiguous_format)
    groups = heads // kv_heads
    padded = max(16, triton.next_power_of_2(groups))
    capacity = held["keys"].shape[2]
    scale = size**-0.5 * 1.4426950408889634  # exp2 is what the hardware has
    stored, read = (count, kv_heads), (count, kv_heads, splits)
    where, strides = (places.rows, places.starts), (key.stride(0), value.stride(0))
    results = (answers, log_sums, capacity)
    if kv == "bf16":
        parts = held["keys"], held["values"]
        stored_full[stored](key, value, *parts, *where, capacity, *strides, kv_heads, size, num_warps=1)
        rest = (query.stride(0), scale, kv_heads, groups, padded, size, BLOCK, splits)
        read_full[read](query, *parts, *where, *results, *rest, num_warps=4, num_stages=2)
    elif kv == "int8":
        coded = held["keys"], held["key_scales"], held["values"], held["value_scales"]
        stored_int8[stored](key, value, *coded, *where, capacity, *strides, kv_heads, size, num_warps=1)
        rest = (query.stride(0), scale, kv_heads, groups, padded, size, BLOCK, splits)
        read_int8[read](query, *coded, *where, *results, *rest, num_warps=4, num_stages=3)
    else:
        packed = [held[part] for part in ("keys", "key_scales", "values", "value_scales", "key_tail", "value_tail")]
        there = (*where, places.halves)
        scaled = held["key_scales"].shape[2]
        stored_int4[stored](key, value, *packed, *there, capacity, scaled, *strides, kv_heads, size, GROUP, num_warps=4)
        rest = (query.stride(0), scale, kv_heads, groups, padded, size, GROUP, splits)
        read_int4[read](query, *packed, *there, *results, scaled, *rest, num_warps=4, num_stages=3)
    join[(count * heads,)](answers, log_sums, joined, size, splits, num_warps=4)
    return joined


@cache
def is_trusted(kv: KVFormat, heads: int, kv_heads: int, size: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels can be built for this device and agree there with torch's operations."""
    if size not in SIZES:
        return False
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(TRIED + 4, heads + 2 * kv_heads, size, generator=generator).to(device, dtype)
    query, key, value = rows.split((heads, kv_heads, kv_heads), 1)
    try:
        answers = []
        for kernel in (None, decode):
            cache = KVCache(
                layers=1, kv_heads=kv_heads, head_dim=size, dtype=dtype, device=device, kv=kv, kernel=kernel
            )
            slot, _ = cache.take(np.arange(1))
            cache.reserve(slot, len(rows))
            cache.attend(0, slot, 0, query[:TRIED].transpose(0, 1)[None], key[:TRIED], value[:TRIED])
            for at in range(TRIED, len(rows)):
                here = slice(at, at + 1)
                if kernel is None:
                    answer = cache.attend(0, slot, at, query[here].transpose(0, 1)[None], key[here], value[here])
                    answers.append(answer[0].transpose(0, 1))
                else:
                    answers.append(cache.decode(0, cache.places([(slot, at)]), query[here], key[here], value[here]))
        expected, given = (torch.cat(part).float() for part in (answers[:4], answers[4:]))
        if torch.allclose(given, expected, atol=TOLERANCE, rtol=TOLERANCE):
            return True
        log.warning("answers are written without Triton: its kernels do not agree with torch")
    except Exception as error:  # a compiler, a driver or a build of Triton that fails in its own way
        log.warning("answers are written without Triton: %s: %s", type(error).__name__, error)
    return False
