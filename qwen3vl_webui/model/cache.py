"""Keys and values of the conversations being answered, in slots of one slab that grows; and which prefix is reused.

One tensor per layer: (2, slots, kv_heads, capacity, head_dim), keys first. A slot holds one conversation from its
first token; cropping moves a length and touches no memory. `capacity` is in tokens and is the same for all slots.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
import torch

ROUND = 256  # tokens; capacity is a multiple of it


class SlabFull(Exception):
    """The tokens asked for do not fit, even with every other conversation dropped."""

    def __init__(self, needed: int, most: int) -> None:
        super().__init__(f"{needed} tokens needed, {most} at most")
        self.needed = needed
        self.most = most


@dataclass(eq=False)
class Slot:
    """`keys` are the content keys of the tokens whose KV is held, one each, from the first token on.

    `rope` names the plan its keys were rotated under: under another one nothing of it can be reused.
    """

    row: int
    keys: array[int] = field(default_factory=lambda: array("q"))
    conversation: str = ""
    rope: str = ""
    used: int = 0  # ticks when it was last taken
    busy: bool = False

    @property
    def length(self) -> int:
        return len(self.keys)

    def crop(self, length: int) -> None:
        del self.keys[length:]


def common_prefix(held: array[int], keys: np.ndarray) -> int:
    """How many leading content keys agree."""
    shorter = min(len(held), len(keys))
    if shorter == 0:
        return 0
    different = np.nonzero(np.frombuffer(held, np.int64, shorter) != keys[:shorter])[0]
    return int(different[0]) if len(different) else shorter


def round_up(tokens: int) -> int:
    return -(-tokens // ROUND) * ROUND


class KVCache:
    """`most_tokens` bounds slots x capacity (None: no bound); conversations used longest ago make room."""

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        most_slots: int = 4,
        most_tokens: int | None = None,
    ) -> None:
        self.shape = (kv_heads, head_dim)
        self.dtype = dtype
        self.device = device
        self.most_slots = most_slots
        self.most_tokens = most_tokens
        self.capacity = 0
        self.slots: list[Slot] = []
        self.slabs: list[torch.Tensor] = [self._empty(0, 0) for _ in range(layers)]
        self._ticks = 0

    @property
    def bytes_per_token(self) -> int:
        kv_heads, head_dim = self.shape
        return 2 * len(self.slabs) * kv_heads * head_dim * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        return len(self.slots) * self.capacity * self.bytes_per_token

    def take(self, keys: np.ndarray, conversation: str = "", rope: str = "") -> tuple[Slot, int]:
        """A slot for a prompt with these content keys under the plan `rope`, cropped to the prefix it shares; and how
        long that prefix is.

        At most len(keys) - 1 tokens are reused: the last one must be read again for its logits. When another
        conversation holds a longer prefix (the same video in a new chat), it is copied, not taken away.
        """
        shared = {
            slot.row: min(common_prefix(slot.keys, keys), len(keys) - 1) if slot.rope == rope else 0
            for slot in self.slots
        }
        slot = self._choose(shared, conversation)
        reused = shared.get(slot.row, 0)
        source = max(self.slots, key=lambda other: shared.get(other.row, 0))
        if shared.get(source.row, 0) > reused:
            reused = shared[source.row]
            for slab in self.slabs:
                slab[:, slot.row, :, :reused].copy_(slab[:, source.row, :, :reused])
            slot.keys = source.keys[:reused]
        slot.crop(reused)
        slot.conversation, slot.rope = conversation, rope
        slot.busy = True
        self._ticks += 1
        slot.used = self._ticks
        return slot, reused

    def release(self, slot: Slot) -> None:
        """The work on this slot has ended; its prefix stays until the room is needed."""
        slot.busy = False

    def reserve(self, slot: Slot, tokens: int) -> None:
        """Room for `tokens` in this slot. Raises SlabFull; may drop the prefix of idle conversations."""
        if tokens <= self.capacity:
            return
        wanted = max(round_up(tokens), 2 * self.capacity)
        if not self._allows(len(self.slots), wanted):
            wanted = round_up(tokens)
        while not self._allows(len(self.slots), wanted):
            idle = [other for other in self.slots if other is not slot and not other.busy]
            if not idle:
                assert self.most_tokens is not None
                raise SlabFull(tokens, self.most_tokens)
            self.slots.remove(min(idle, key=lambda other: other.used))
        self._resize(len(self.slots), wanted)

    def write(
        self, layer: int, slot: Slot, start: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts key and value (n, kv_heads, head_dim) at `start`; views (1, kv_heads, start + n, head_dim) of all."""
        count = key.shape[0]
        keys, values = self.slabs[layer][:, slot.row].unbind(0)  # (kv_heads, capacity, head_dim)
        keys.narrow(1, start, count).copy_(key.transpose(0, 1))
        values.narrow(1, start, count).copy_(value.transpose(0, 1))
        return keys.narrow(1, 0, start + count)[None], values.narrow(1, 0, start + count)[None]

    def clear(self) -> None:
        """Forgets every idle conversation and gives their memory back."""
        self.slots = [slot for slot in self.slots if slot.busy]
        longest = max((slot.length for slot in self.slots), default=0)
        self._resize(len(self.slots), round_up(longest))

    def _choose(self, shared: dict[int, int], conversation: str) -> Slot:
        """The chat's own slot; for a nameless request one it continues; else a new one, or the one used longest ago."""
        idle = [slot for slot in self.slots if not slot.busy]
        own = [slot for slot in idle if slot.conversation == conversation]
        if not conversation:
            own = [slot for slot in own if shared[slot.row] * 2 > slot.length]
        if own:
            return max(own, key=lambda slot: shared[slot.row])
        count = len(self.slots)
        if count < self.most_slots and self._allows(count + 1, self.capacity):
            self._resize(count + 1, self.capacity)
            self.slots.append(Slot(count))
            return self.slots[-1]
        if not idle:
            raise SlabFull(self.capacity, self.most_tokens or self.capacity)
        return min(idle, key=lambda slot: slot.used)

    def _allows(self, rows: int, capacity: int) -> bool:
        return self.most_tokens is None or rows * capacity <= self.most_tokens

    def _resize(self, rows: int, capacity: int) -> None:
        """One layer at a time, so that no more than one layer is held twice."""
        if (rows, capacity) == (self.slabs[0].shape[1], self.slabs[0].shape[3]):
            return
        assert all(slot.length <= capacity for slot in self.slots)
        for layer, slab in enumerate(self.slabs):
            larger = self._empty(rows, capacity)
            for row, slot in enumerate(self.slots):
                larger[:, row, :, : slot.length] = slab[:, slot.row, :, : slot.length]
            self.slabs[layer] = larger
        for row, slot in enumerate(self.slots):
            slot.row = row
        self.capacity = capacity

    def _empty(self, rows: int, capacity: int) -> torch.Tensor:
        kv_heads, head_dim = self.shape
        return torch.empty((2, rows, kv_heads, capacity, head_dim), dtype=self.dtype, device=self.device)
