"""How keys and values are held: as they were computed, in 8 bits, or in 4 bits.

Shapes: n new rows after `start` rows, H query heads, K KV heads, g = H / K, d head size. A part of a slot is a tensor
(K, entries, width). What a row reads never depends on how a prompt was cut into chunks: in int8 it reads everything as
it is stored, itself included; in int4 it reads its own group of 64 tokens exactly and every earlier one as stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from qwen3vl_webui.model.attention import Partial, attend
from qwen3vl_webui.model.planner import CUDA_BLOCK, GROUP, KVFormat

Held = Mapping[str, torch.Tensor]  # part of one slot and layer -> (K, entries, width)
BLOCK = {"cpu": 2048, "cuda": CUDA_BLOCK}  # stored tokens made exact at once


@dataclass(frozen=True)
class Places:
    """Where the new rows of B conversations are written, one each: int32 (B,) on the device. `rows` of the slab;
    `starts` tokens stand before them; `halves` of the ring that holds their group exactly (0 in formats without)."""

    rows: torch.Tensor
    starts: torch.Tensor
    halves: torch.Tensor


@dataclass(frozen=True)
class Part:
    """One entry of `width` values for every `tokens` tokens, or, with `tokens` 0, for the rows of two groups."""

    name: str
    width: int
    dtype: torch.dtype
    tokens: int = 1

    def entries(self, tokens: int) -> int:
        return -(-tokens // self.tokens) if self.tokens else 2 * GROUP


def keepable(length: int, group: int, tails: Sequence[int]) -> int:
    """How much of the first `length` tokens stays when the rest goes: a group that is cut needs its exact rows, which
    are held of the groups `tails`."""
    whole = length // group * group
    return length if length == whole or length // group in tails else whole


class Format(Protocol):
    """`group` is how many tokens share a scale: cutting inside such a group needs its exact rows."""

    name: KVFormat
    group: int
    parts: tuple[Part, ...]

    def attend(
        self,
        held: Held,
        halves: tuple[int, int],
        start: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        """Stores key and value (n, K, d) at `start`; the answer (1, H, n, d) of query (1, H, n, d) to all rows."""
        ...

    def restore(self, held: Held, length: int) -> None:
        """Puts the stored rows of the group that `length` cuts into the first half of the ring, as if exact."""
        ...


def format_of(name: KVFormat, head_dim: int, dtype: torch.dtype) -> Format:
    if name == "bf16":
        return Full(head_dim, dtype)
    return Int8(head_dim, dtype) if name == "int8" else Int4(head_dim, dtype)


class Full:
    """As computed."""

    name: KVFormat = "bf16"
    group = 1

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        self.parts: tuple[Part, ...] = (Part("keys", head_dim, dtype), Part("values", head_dim, dtype))

    def attend(
        self,
        held: Held,
        halves: tuple[int, int],
        start: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        count = key.shape[0]
        keys, values = held["keys"], held["values"]
        keys.narrow(1, start, count).copy_(key.transpose(0, 1))
        values.narrow(1, start, count).copy_(value.transpose(0, 1))
        return attend(query, keys.narrow(1, 0, start + count)[None], values.narrow(1, 0, start + count)[None])

    def restore(self, held: Held, length: int) -> None:
        """Every token stands for itself here."""


def to_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and float16 scales (..., 1) of rows (..., d): symmetric, one scale a row."""
    scales = (rows.float().abs().amax(-1, keepdim=True) / 127).half()
    codes = (rows.float() / scales.float().clamp(min=2**-24)).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scales


def from_int8(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return codes.to(dtype) * scales.to(dtype)


class Int8:
    """A row of keys or values shares one scale, so that every token stands for itself."""

    name: KVFormat = "int8"
    group = 1

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.parts: tuple[Part, ...] = (
            Part("keys", head_dim, torch.int8),
            Part("key_scales", 1, torch.float16),
            Part("values", head_dim, torch.int8),
            Part("value_scales", 1, torch.float16),
        )

    def attend(
        self,
        held: Held,
        halves: tuple[int, int],
        start: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        count = key.shape[0]
        for name, rows in (("key", key), ("value", value)):
            codes, scales = to_int8(rows.transpose(0, 1))  # (K, n, d)
            held[name + "s"].narrow(1, start, count).copy_(codes)
            held[name + "_scales"].narrow(1, start, count).copy_(scales)
        partial = Partial(query, key.shape[1])
        before = start if count > 1 else start + 1  # one row reads everything, without a mask
        block = BLOCK[query.device.type]
        for at in range(0, before, block):
            partial.add(*self.exact(held, at, min(block, before - at)))
        if count > 1:
            partial.add(*self.exact(held, start, count), causal(count, query.device))
        return partial.answer

    def restore(self, held: Held, length: int) -> None:
        """Every token stands for itself here."""

    def exact(self, held: Held, at: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (K, count, d) of stored tokens."""
        keys, key_scales, values, value_scales = (held[part.name].narrow(1, at, count) for part in self.parts)
        return from_int8(keys, key_scales, self.dtype), from_int8(values, value_scales, self.dtype)


def causal(count: int, device: torch.device) -> torch.Tensor:
    """bool (n, n): which of the new rows each new row reads."""
    return torch.ones((count, count), dtype=torch.bool, device=device).tril_()


def to_int4(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes 0-15 of (..., w), and (..., 2): float16 scale and zero of those w values together."""
    low, high = rows.float().aminmax(dim=-1, keepdim=True)
    scale, zero = ((high - low) / 15).half(), low.half()
    codes = ((rows.float() - zero.float()) / scale.float().clamp(min=2**-24)).round_().clamp_(0, 15)
    return codes.to(torch.uint8), torch.cat((scale, zero), -1)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Two codes a byte: channel i and channel i + d/2."""
    low, high = codes.chunk(2, -1)
    return low | (high << 4)


def unpack(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.cat((packed & 15, packed >> 4), -1).to(dtype)


class Int4:
    """Keys share scale and zero over 64 tokens of one channel (their outliers are channels), values over at most 64
    channels of one token. The exact rows of the last two groups are kept in a ring of two halves: the group being
    filled, and the one before, so that a few tokens can be taken back."""

    name: KVFormat = "int4"
    group = GROUP

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.channels = min(GROUP, head_dim)  # of a value that share a scale
        self.parts: tuple[Part, ...] = (
            Part("keys", head_dim // 2, torch.uint8),
            Part("key_scales", 2 * head_dim, torch.float16, GROUP),
            Part("values", head_dim // 2, torch.uint8),
            Part("value_scales", 2 * (head_dim // self.channels), torch.float16),
            Part("key_tail", head_dim, dtype, 0),
            Part("value_tail", head_dim, dtype, 0),
        )

    def attend(
        self,
        held: Held,
        halves: tuple[int, int],
        start: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        count, kv_heads = key.shape[0], key.shape[1]
        first = start // GROUP * GROUP  # where the first group that is written begins
        inside = start - first
        keys = self.extend(held["key_tail"], halves, inside, key)
        values = self.extend(held["value_tail"], halves, inside, value)
        whole = (inside + count) // GROUP * GROUP
        if whole:
            self.store_keys(held, first, keys[:, :whole])
        self.store_values(held, start, values[:, inside:])

        partial = Partial(query, kv_heads)
        block = BLOCK[query.device.type]
        for at in range(0, first, block):
            partial.add(*self.exact(held, at, min(block, first - at)))
        stored = (inside + count - 1) // GROUP * GROUP  # tokens of these groups that a later new row reads as stored
        mask = None
        if count > 1:
            mask = own_group(inside, count, stored, query.device)
        if stored:
            stored_keys, stored_values = self.exact(held, first, stored)
            keys, values = torch.cat((stored_keys, keys), 1), torch.cat((stored_values, values), 1)
        partial.add(keys, values, mask)
        return partial.answer

    def restore(self, held: Held, length: int) -> None:
        keys, values = self.exact(held, length // GROUP * GROUP, GROUP)
        held["key_tail"].narrow(1, 0, GROUP).copy_(keys)
        held["value_tail"].narrow(1, 0, GROUP).copy_(values)

    def extend(self, tail: torch.Tensor, halves: tuple[int, int], inside: int, rows: torch.Tensor) -> torch.Tensor:
        """Exact rows (K, inside + n, d) from the beginning of the first group; its ring is brought up to date."""
        begin, end = (half * GROUP for half in halves)
        rows = torch.cat((tail.narrow(1, begin, inside), rows.transpose(0, 1)), 1)
        total = rows.shape[1]
        kept = min(total, GROUP)
        tail.narrow(1, begin + inside, kept - inside).copy_(rows[:, inside:kept])
        if halves[0] != halves[1]:
            last = (total - 1) // GROUP * GROUP
            tail.narrow(1, end, total - last).copy_(rows[:, last:])
        return rows

    def store_keys(self, held: Held, first: int, keys: torch.Tensor) -> None:
        """Whole groups, from token `first` on."""
        kv_heads, count, size = keys.shape
        groups = keys.view(kv_heads, count // GROUP, GROUP, size).transpose(2, 3)  # (K, groups, d, 64)
        codes, scales = to_int4(groups)
        held["keys"].narrow(1, first, count).copy_(pack(codes.transpose(2, 3).reshape(kv_heads, count, size)))
        held["key_scales"].narrow(1, first // GROUP, count // GROUP).copy_(scales.transpose(2, 3).flatten(2))

    def store_values(self, held: Held, start: int, values: torch.Tensor) -> None:
        kv_heads, count, size = values.shape
        codes, scales = to_int4(values.reshape(kv_heads, count, size // self.channels, self.channels))
        held["values"].narrow(1, start, count).copy_(pack(codes.view(kv_heads, count, size)))
        held["value_scales"].narrow(1, start, count).copy_(scales.flatten(2))

    def exact(self, held: Held, at: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (K, count, d) of stored tokens; both numbers are multiples of 64."""
        kv_heads = held["keys"].shape[0]
        keys = unpack(held["keys"].narrow(1, at, count), self.dtype).view(kv_heads, count // GROUP, GROUP, -1)
        scales = held["key_scales"].narrow(1, at // GROUP, count // GROUP).to(self.dtype)
        scale, zero = scales[:, :, None].chunk(2, -1)  # (K, groups, 1, d)
        keys = torch.addcmul(zero, keys, scale).view(kv_heads, count, -1)
        values = unpack(held["values"].narrow(1, at, count), self.dtype).view(kv_heads, count, -1, self.channels)
        scales = held["value_scales"].narrow(1, at, count).to(self.dtype).view(kv_heads, count, -1, 2)
        values = torch.addcmul(scales[..., 1:], values, scales[..., :1]).view(kv_heads, count, -1)
        return keys, values


def own_group(inside: int, count: int, stored: int, device: torch.device) -> torch.Tensor:
    """bool (n, stored + inside + n): new rows read stored tokens of earlier groups, and exact ones of their own."""
    exact = torch.arange(inside + count, device=device)
    rows = exact[inside:, None]
    earlier = torch.arange(stored, device=device) // GROUP < rows // GROUP
    own = (exact // GROUP == rows // GROUP) & (exact <= rows)
    return torch.cat((earlier, own), 1)
