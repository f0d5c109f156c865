"""Keys and values of the conversations being answered, in slots of one slab that grows; and which prefix is reused.

One tensor per layer and part of the format: (slots, kv_heads, entries, width). A slot holds one conversation from its
first token; cropping moves a length and touches no memory. `capacity` is in tokens and is the same for all slots.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from qwen3vl_webui.model.formats import Held, Part, Places, format_of, keepable
from qwen3vl_webui.model.planner import ROUND, KVFormat, round_up
from qwen3vl_webui.model.shelf import Parked, Shelf, common_prefix

Kernel = Callable[
    [KVFormat, Mapping[str, torch.Tensor], Places, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]


class SlabFull(Exception):
    """The tokens asked for do not fit, even with every other conversation dropped."""

    def __init__(self, needed: int, most: int) -> None:
        super().__init__(f"{needed} tokens needed, {most} at most")
        self.needed = needed
        self.most = most


@dataclass(eq=False)
class Slot:
    """`keys` are the content keys of the tokens whose KV is held, one each, from the first token on.

    `rope` names the plan its keys were rotated under: under another one nothing of it can be reused. Where the format
    works in groups of tokens, `tails` names the two groups whose exact rows are held.
    """

    row: int
    group: int = 1
    keys: array[int] = field(default_factory=lambda: array("q"))
    conversation: str = ""
    rope: str = ""
    used: int = 0  # ticks when it was last taken
    busy: bool = False
    tails: list[int] = field(default_factory=lambda: [-1, -1])

    @property
    def length(self) -> int:
        return len(self.keys)

    def keepable(self, length: int) -> int:
        return keepable(length, self.group, self.tails)

    def crop(self, length: int) -> int:
        """Keeps at most the first `length` tokens; how many it kept (all of them, or up to 63 fewer in int4)."""
        kept = min(self.length, self.keepable(length))
        del self.keys[kept:]
        return kept

    def halves(self, start: int, count: int) -> tuple[int, int]:
        """Which half of the ring holds the exact rows of the first group written, and of the last one.

        Asked again for the same `start` it gives the same first half, whose rows before `start` are untouched: a
        failed write can be repeated.
        """
        first, last = start // self.group, (start + count - 1) // self.group
        if first not in self.tails:
            assert start % self.group == 0
            half = 1 - self.tails.index(first - 1) if first - 1 in self.tails else 0
            self.tails[half] = first
        half = self.tails.index(first)
        if first == last:
            return half, half
        self.tails[1 - half] = last
        return half, 1 - half


class KVCache:
    """`most_tokens` bounds slots x capacity (None: no bound); conversations used longest ago make room. What leaves the
    slab is put on the `shelf`, if it has any place. With a `kernel` (`kernels.decode`) single rows of several slots can
    be stored and answered together."""

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        kv: KVFormat = "bf16",
        most_slots: int = 4,
        most_tokens: int | None = None,
        shelf: Shelf | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        self.format = format_of(kv, head_dim, dtype)
        self.kv_heads = kv_heads
        self.device = device
        self.most_slots = most_slots
        self.most_tokens = most_tokens
        self.shelf = shelf or Shelf()
        self.kernel = kernel
        self.capacity = 0
        self.slots: list[Slot] = []
        self.layers: list[dict[str, torch.Tensor]] = [
            {part.name: self._empty(part, 0, 0) for part in self.format.parts} for _ in range(layers)
        ]
        self.moves = 0  # how often its tensors were replaced by others
        self._ticks = 0

    @property
    def bytes_per_token(self) -> int:
        parts = [part for part in self.format.parts if part.tokens]
        return sum(self._bytes(part, ROUND) for part in parts) // ROUND

    @property
    def bytes_per_slot(self) -> int:
        """Beside its tokens."""
        return sum(self._bytes(part, 0) for part in self.format.parts if not part.tokens)

    @property
    def bytes(self) -> int:
        return len(self.slots) * (self.capacity * self.bytes_per_token + self.bytes_per_slot)

    def take(self, keys: np.ndarray, conversation: str = "", rope: str = "") -> tuple[Slot, int]:
        """A slot for a prompt with these content keys under the plan `rope`, cropped to the prefix it shares; and how
        long that prefix is.

        At most len(keys) - 1 tokens are reused: the last one must be read again for its logits. When another
        conversation holds a longer prefix (the same video in a new chat), it is copied, not taken away.
        """
        shared = {
            slot.row: slot.keepable(min(common_prefix(slot.keys, keys), len(keys) - 1)) if slot.rope == rope else 0
            for slot in self.slots
        }
        slot = self._choose(shared, conversation)
        if slot.conversation != conversation or 2 * shared.get(slot.row, 0) < slot.length:
            self._park(slot)
        reused = shared.get(slot.row, 0)
        source = max(self.slots, key=lambda other: shared.get(other.row, 0))
        if shared.get(source.row, 0) > reused:
            reused = shared[source.row]
            for layer in self.layers:
                for part in self.format.parts:
                    tensor, entries = layer[part.name], part.entries(reused)
                    tensor[slot.row, :, :entries].copy_(tensor[source.row, :, :entries])
            slot.keys, slot.tails = source.keys[:reused], list(source.tails)
        reused = self._unpark(slot, keys, rope, reused)
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
            leaving = min(idle, key=lambda other: other.used)
            self._park(leaving)
            self.slots.remove(leaving)
        self._resize(len(self.slots), wanted)

    def attend(
        self, layer: int, slot: Slot, start: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Stores key and value (n, kv_heads, head_dim) at `start`, where query (1, heads, n, head_dim) stands too, and
        gives its causal attention (1, heads, n, head_dim) over all rows so far."""
        held: Held = {name: tensor[slot.row] for name, tensor in self.layers[layer].items()}
        halves = slot.halves(start, key.shape[0]) if self.format.group > 1 else (0, 0)
        return self.format.attend(held, halves, start, query, key, value)

    def numbers(self, rows: Sequence[tuple[Slot, int]]) -> tuple[list[int], list[int], list[int]]:
        """What `Places` holds of the next row of each slot, which stands at that many tokens."""
        halves = [slot.halves(start, 1)[0] if self.format.group > 1 else 0 for slot, start in rows]
        return [slot.row for slot, _ in rows], [start for _, start in rows], halves

    def places(self, rows: Sequence[tuple[Slot, int]]) -> Places:
        return Places(*torch.tensor(self.numbers(rows), dtype=torch.int32).to(self.device))

    def decode(
        self, layer: int, places: Places, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """As `attend`, for one row of each of B slots at once: key and value (B, kv_heads, head_dim), query and answer
        (B, heads, head_dim). Only with a `kernel`."""
        assert self.kernel is not None
        return self.kernel(self.format.name, self.layers[layer], places, query, key, value)

    def rewind(self, slot: Slot, length: int) -> None:
        """Keeps exactly the first `length` tokens of an answer that is being written. Where their group has no exact
        rows any more, they go on as they are stored."""
        if slot.keepable(length) < length:
            slot.tails[0] = length // slot.group
            for layer in self.layers:
                self.format.restore({name: tensor[slot.row] for name, tensor in layer.items()}, length)
        slot.crop(length)

    def clear(self) -> None:
        """Puts every idle conversation away and gives their memory back."""
        for slot in self.slots:
            if not slot.busy:
                self._park(slot)
        self.slots = [slot for slot in self.slots if slot.busy]
        longest = max((slot.length for slot in self.slots), default=0)
        self._resize(len(self.slots), round_up(longest))

    def close(self) -> None:
        """Puts every conversation on the shelf, and the shelf on disk where it has one."""
        if not self.shelf.wanted:
            return
        for slot in sorted(self.slots, key=lambda slot: slot.used):
            self._park(slot)
        self.slots = []
        self._resize(0, 0)
        self.shelf.close()

    def _park(self, slot: Slot) -> None:
        if not self.shelf.wanted or not slot.length:
            return
        layers = [
            {
                part.name: copied(layer[part.name][slot.row, :, : part.entries(slot.length)])
                for part in self.format.parts
            }
            for layer in self.layers
        ]
        first, second = slot.tails
        self.shelf.put(Parked(array("q", slot.keys), slot.rope, slot.group, (first, second), layers))

    def _unpark(self, slot: Slot, keys: np.ndarray, rope: str, reused: int) -> int:
        """What the shelf knows beyond the `reused` tokens that are here already; how many there are now."""
        longest, get = self.shelf.best(keys, rope)
        if longest <= reused or (parked := get()) is None:
            return reused
        try:
            self.reserve(slot, longest)
        except SlabFull:
            return reused
        slot.crop(0)  # should copying fail half way, nothing wrong is left
        for layer, held in zip(self.layers, parked.layers, strict=True):
            for part in self.format.parts:
                entries = part.entries(longest)
                copy_heads(layer[part.name][slot.row, :, :entries], held[part.name][:, :entries])
        slot.keys, slot.tails = array("q", parked.keys[:longest]), list(parked.tails)
        return longest

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
            self.slots.append(Slot(count, self.format.group))
            return self.slots[-1]
        if not idle:
            raise SlabFull(self.capacity, self.most_tokens or self.capacity)
        return min(idle, key=lambda slot: slot.used)

    def _allows(self, rows: int, capacity: int) -> bool:
        return self.most_tokens is None or rows * capacity <= self.most_tokens

    def _resize(self, rows: int, capacity: int) -> None:
        """One layer at a time, so that no more than one layer is held twice.

        Memory may run out in between: then some layers have the new size already, and every row stands where it did.
        """
        assert all(slot.length <= capacity for slot in self.slots)
        self._close_ranks()
        self.capacity = min(self.capacity, capacity)
        for layer in self.layers:
            for part in self.format.parts:
                held = layer[part.name]
                if (held.shape[0], held.shape[2]) == (rows, part.entries(capacity)):
                    continue
                self.moves += 1
                larger = self._empty(part, rows, capacity)
                for slot in self.slots:
                    entries = part.entries(slot.length)
                    larger[slot.row, :, :entries] = held[slot.row, :, :entries]
                layer[part.name] = larger
        self.capacity = capacity

    def _close_ranks(self) -> None:
        """Moves rows down to where slots have been removed; needs no memory."""
        for row, slot in enumerate(self.slots):
            if slot.row == row:
                continue
            for layer in self.layers:
                for part in self.format.parts:
                    entries = part.entries(slot.length)
                    layer[part.name][row, :, :entries] = layer[part.name][slot.row, :, :entries]
            slot.row = row

    def _empty(self, part: Part, rows: int, capacity: int) -> torch.Tensor:
        shape = (rows, self.kv_heads, part.entries(capacity), part.width)
        return torch.empty(shape, dtype=part.dtype, device=self.device)

    def _bytes(self, part: Part, tokens: int) -> int:
        return len(self.layers) * self.kv_heads * part.entries(tokens) * part.width * part.dtype.itemsize


def copied(rows: torch.Tensor) -> torch.Tensor:
    """In CPU memory."""
    copy = torch.empty(rows.shape, dtype=rows.dtype)
    copy_heads(copy, rows)
    return copy


def copy_heads(target: torch.Tensor, source: torch.Tensor) -> None:
    """Head by head: each is one piece of memory, so that no device makes a copy of its own on the way."""
    for there, here in zip(target, source, strict=True):
        there.copy_(here)
