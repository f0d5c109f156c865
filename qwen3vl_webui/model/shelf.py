"""Conversations put away: their keys and values in CPU memory, and on disk, until they are asked about again.

A slot of the slab is taken by whoever needs it. What it held goes here, the least recently used first to disk and then
away; whoever asks with the same beginning gets it back instead of reading it again.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from qwen3vl_webui.model.formats import keepable
from qwen3vl_webui.model.snapshots import Snapshots, Tensors

log = logging.getLogger(__name__)

LEAST_TOKENS = 1024  # a shorter prompt is read again sooner than a file is


def common_prefix(held: array[int], keys: np.ndarray) -> int:
    """How many leading content keys agree."""
    shorter = min(len(held), len(keys))
    if shorter == 0:
        return 0
    different = np.nonzero(np.frombuffer(held, np.int64, shorter) != keys[:shorter])[0]
    return int(different[0]) if len(different) else shorter


@dataclass(eq=False)
class Held:
    """What is known of a conversation out of the slab without its keys and values; names as in a slot."""

    keys: array[int]
    rope: str
    group: int
    tails: tuple[int, int]

    def shared(self, keys: np.ndarray, rope: str) -> int:
        """How much of a prompt is held; its last token is always read again."""
        if self.rope != rope:
            return 0
        return keepable(min(common_prefix(self.keys, keys), len(keys) - 1), self.group, self.tails)

    def begins(self, other: Held) -> bool:
        """Whether the other holds all of this."""
        return self.rope == other.rope and other.keys[: len(self.keys)] == self.keys


@dataclass(eq=False)
class Parked(Held):
    """`layers` hold each part's entries (kv_heads, entries, width) in CPU memory."""

    layers: list[Tensors]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.values()) + 8 * len(self.keys)


@dataclass(eq=False)
class OnDisk(Held):
    """As the header of a snapshot says; it is checked when it is read."""

    name: str


class Shelf:
    """`most_bytes` of CPU memory; `snapshots` for what leaves it. `revision` names everything that must be the same for
    a snapshot to be good: weights, format, type. Used by the inference thread alone; files are written in another."""

    def __init__(
        self,
        most_bytes: int = 0,
        snapshots: Snapshots | None = None,
        revision: str = "",
        *,
        least_tokens: int = LEAST_TOKENS,
    ) -> None:
        self.most_bytes = most_bytes
        self.snapshots = snapshots
        self.prefix = f"kv/{hashlib.sha256(revision.encode()).hexdigest()[:24]}"
        self.least_tokens = least_tokens
        self.parked: list[Parked] = []  # the least recently used first
        self._on_disk: dict[str, OnDisk] = {}
        self._writer = ThreadPoolExecutor(1, "snapshots") if snapshots else None
        for name in snapshots.names(self.prefix) if snapshots else ():
            self._index(name)

    @property
    def wanted(self) -> bool:
        """Whether there is any place for what leaves the slab."""
        return self.most_bytes > 0 or self.snapshots is not None

    @property
    def bytes(self) -> int:
        return sum(parked.bytes for parked in self.parked)

    def put(self, parked: Parked) -> None:
        """What is a beginning of something else here is not kept twice."""
        if any(parked.begins(other) for other in self.parked):
            return
        self.parked = [other for other in self.parked if not other.begins(parked)] + [parked]
        while self.bytes > self.most_bytes:
            self._write(self.parked.pop(0))

    def best(self, keys: np.ndarray, rope: str) -> tuple[int, Callable[[], Parked | None]]:
        """The longest beginning of this prompt that was put away, and how to get it: None when it was damaged."""
        longest = 0
        get: Callable[[], Parked | None] = nothing
        for parked in self.parked:
            count = parked.shared(keys, rope)
            if count > longest:
                longest, get = count, self._take(parked)
        for entry in list(self._on_disk.values()):
            count = entry.shared(keys, rope)
            if count > longest:
                longest, get = count, self._read(entry)
        return longest, get

    def close(self) -> None:
        """Everything that is worth it is on disk when this returns."""
        while self.parked:
            self._write(self.parked.pop(0))
        if self._writer is not None:
            self._writer.shutdown(wait=True)

    def _take(self, parked: Parked) -> Callable[[], Parked]:
        def take() -> Parked:
            self.parked.remove(parked)
            self.parked.append(parked)  # used now; it stays for others who begin alike
            return parked

        return take

    def _read(self, entry: OnDisk) -> Callable[[], Parked | None]:
        def read() -> Parked | None:
            assert self.snapshots is not None
            found = self.snapshots.get(entry.name)
            if found is None:
                self._on_disk.pop(entry.name, None)
                return None
            tensors, about = found
            keys = array("q", tensors.pop("keys").numpy().tobytes())
            layers: list[Tensors] = [{} for _ in range(int(about["layers"]))]
            for name, tensor in tensors.items():
                layer, _, part = name.partition(".")
                layers[int(layer)][part] = tensor
            log.info("%s tokens of an earlier conversation are read from disk", f"{len(keys):,}")
            return Parked(keys, about["rope"], int(about["group"]), tails_of(about["tails"]), layers)

        return read

    def _write(self, parked: Parked) -> None:
        if self.snapshots is None or self._writer is None or len(parked.keys) < self.least_tokens:
            return
        name = f"{self.prefix}/{hashlib.sha256(parked.rope.encode() + parked.keys.tobytes()).hexdigest()[:32]}"
        self._writer.submit(self._write_now, name, parked)

    def _write_now(self, name: str, parked: Parked) -> None:
        assert self.snapshots is not None
        if self.snapshots.has(name):
            return
        tensors = {
            f"{index}.{part}": tensor for index, layer in enumerate(parked.layers) for part, tensor in layer.items()
        }
        tensors["keys"] = torch.frombuffer(bytearray(parked.keys.tobytes()), dtype=torch.int64)
        about = {
            "layers": str(len(parked.layers)),
            "rope": parked.rope,
            "group": str(parked.group),
            "tails": f"{parked.tails[0]},{parked.tails[1]}",
        }
        if self.snapshots.put(name, tensors, about):
            self._drop_beginnings(parked)
            self._on_disk[name] = OnDisk(parked.keys, parked.rope, parked.group, parked.tails, name)

    def _drop_beginnings(self, parked: Parked) -> None:
        """Snapshots of the same conversation when it was shorter."""
        assert self.snapshots is not None
        for entry in list(self._on_disk.values()):
            if entry.begins(parked) and len(entry.keys) < len(parked.keys):
                self._on_disk.pop(entry.name, None)
                self.snapshots.drop(entry.name)

    def _index(self, name: str) -> None:
        assert self.snapshots is not None
        found = self.snapshots.peek(name, "keys")
        if found is None:
            return
        keys, about = found
        try:
            held = array("q", keys.numpy().tobytes())
            entry = OnDisk(held, about["rope"], int(about["group"]), tails_of(about["tails"]), name)
        except (KeyError, ValueError) as error:
            self.snapshots.drop(name, f"its header is damaged ({error})")
            return
        self._on_disk[name] = entry


def nothing() -> None:
    """What is got when there is nothing."""


def tails_of(text: str) -> tuple[int, int]:
    first, second = text.split(",")
    return int(first), int(second)
