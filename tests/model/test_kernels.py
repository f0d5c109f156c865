"""Triton's kernels against torch's operations: in the interpreter on a CPU, for real where there is CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3vl_webui.model.cache import KVCache, Slot
from qwen3vl_webui.model.planner import FORMATS, KVFormat

if sys.platform != "linux":
    pytest.skip("Triton is made for Linux", allow_module_level=True)
from qwen3vl_webui.model import kernels

torch.set_num_threads(1)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EXACT = torch.float32
MOST = 1100


class Case:
    """Slots read by torch's operations, twice over: one side goes on with those, the other with the kernels."""

    def __init__(
        self,
        kv: KVFormat,
        lengths: Sequence[int],
        *,
        heads: int = 4,
        kv_heads: int = 2,
        size: int = 32,
        dtype: torch.dtype = EXACT,
    ) -> None:
        generator = torch.Generator().manual_seed(sum(lengths))
        rows = torch.randn(len(lengths), MOST, heads + 2 * kv_heads, size, generator=generator)
        rows[:, :, heads : heads + kv_heads, ::7] *= 4  # channels of keys that are outliers, as in real models
        self.query, self.key, self.value = rows.to(DEVICE, dtype).split((heads, kv_heads, kv_heads), 2)
        self.sides = [
            KVCache(layers=1, kv_heads=kv_heads, head_dim=size, dtype=dtype, device=DEVICE, kv=kv, kernel=kernel)
            for kernel in (None, kernels.decode)
        ]
        self.slots: list[list[Slot]] = []
        for cache in self.sides:
            slots = [cache.take(np.arange(1), str(index))[0] for index in range(len(lengths))]
            for index, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
                cache.reserve(slot, MOST)
                if length:
                    here = slice(0, length)
                    query = self.query[index, here].transpose(0, 1)[None]
                    cache.attend(0, slot, 0, query, self.key[index, here], self.value[index, here])
                slot.keys.extend(range(length))
            self.slots.append(slots)

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next row of every slot: (B, H, d) as torch answers it, and as the kernels do."""
        (exact, ours), expected = self.sides, []
        now = [
            tuple(part[index, slot.length] for part in (self.query, self.key, self.value))
            for index, slot in enumerate(self.slots[1])
        ]
        for slot, (query, key, value) in zip(self.slots[0], now, strict=True):
            expected.append(exact.attend(0, slot, slot.length, query[None, :, None], key[None], value[None])[0, :, 0])
            slot.keys.append(slot.length)
        query, key, value = (torch.stack(part) for part in zip(*now, strict=True))
        places = ours.places([(slot, slot.length) for slot in self.slots[1]])
        given = ours.decode(0, places, query, key, value)
        for slot in self.slots[1]:
            slot.keys.append(slot.length)
        return torch.stack(expected), given

    def held_alike(self) -> bool:
        """Whether both sides hold the same bytes for every token."""
        for one, other in zip(*self.slots, strict=True):
            for part in self.sides[0].format.parts:
                mine, theirs = (
                    cache.layers[0][part.name][slot.row, :, : part.entries(slot.length) if part.tokens else None]
                    for cache, slot in zip(self.sides, (one, other), strict=True)
                )
                if part.name == "key_scales" and part.tokens > 1:  # of whole groups only
                    mine, theirs = (each[:, : one.length // part.tokens] for each in (mine, theirs))
                if part.name == "keys" and self.sides[0].format.group > 1:
                    mine, theirs = (each[:, : one.length // 64 * 64] for each in (mine, theirs))
                if part.tokens and not torch.equal(mine, theirs):
                    return False
        return True


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(4, 2, 32), (2, 2, 64), (8, 1, 128), (10, 2, 32), (32, 1, 32)], ids=str
)
def test_a_step_equals_torch_for_every_shape_of_heads(kv: KVFormat, heads: int, kv_heads: int, size: int) -> None:
    case = Case(kv, [150, 3], heads=heads, kv_heads=kv_heads, size=size)
    expected, given = case.step()
    torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-5)
    assert case.held_alike()


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize(
    "lengths",
    [[0], [1], [62], [63], [64], [127], [128], [200, 0], [5, 64, 129], [63, 1, 190, 127], [1025, 130]],
    ids=str,
)
def test_a_step_equals_torch_for_every_length_and_batch(kv: KVFormat, lengths: list[int]) -> None:
    case = Case(kv, lengths)
    for _ in range(3):
        expected, given = case.step()
        torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-5)
    assert case.held_alike()


@pytest.mark.parametrize("kv", FORMATS)
def test_half_precision_is_as_near_as_its_rounding(kv: KVFormat) -> None:
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # the interpreter cannot multiply bfloat16
    case = Case(kv, [130, 64], size=64, dtype=dtype)
    expected, given = case.step()
    assert given.dtype == dtype
    torch.testing.assert_close(given.float(), expected.float(), atol=0.03, rtol=0.03)


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("splits", [1, 8])
def test_any_number_of_splits_gives_one_answer(monkeypatch: pytest.MonkeyPatch, kv: KVFormat, splits: int) -> None:
    monkeypatch.setattr(kernels, "splits_for", lambda *_: splits)
    case = Case(kv, [300, 7], kv_heads=1)
    expected, given = case.step()
    torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-5)


def test_rows_of_one_number_are_stored_alike() -> None:
    for kv in FORMATS:
        case = Case(kv, [62])
        case.key[:, 62:] = 2.5
        case.value[:, 62:] = 0
        for _ in range(3):
            expected, given = case.step()
        torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-5)
        assert case.held_alike()


@pytest.mark.parametrize("kv", FORMATS)
def test_they_are_trusted_where_they_agree(kv: KVFormat) -> None:
    assert kernels.is_trusted(kv, 4, 2, 32, EXACT, DEVICE)
    assert not kernels.is_trusted(kv, 4, 2, 48, EXACT, DEVICE)  # no kernel has this shape


def test_they_are_not_trusted_where_they_fail(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trusted = kernels.is_trusted.__wrapped__

    def fails(*_: object) -> torch.Tensor:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(kernels, "decode", fails)
    assert not trusted("int8", 4, 2, 32, EXACT, DEVICE)
    assert "no C compiler" in caplog.text
    monkeypatch.setattr(kernels, "decode", lambda kv, held, places, query, key, value: torch.zeros_like(query))
    assert not trusted("int8", 4, 2, 32, EXACT, DEVICE)
    assert "do not agree" in caplog.text


def test_they_build_for_real_gpus() -> None:
    """To machine code, without spilling registers: what the interpreter cannot tell."""
    from tests.model.build_kernels import LAUNCHES

    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.model.build_kernels", "90"]
    built = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=280
    )
    assert built.returncode == 0, built.stderr
    lines = built.stdout.splitlines()
    assert sorted(line.split()[1].rstrip(":") for line in lines) == sorted(LAUNCHES)
    assert all(", local 0," in line for line in lines), built.stdout
