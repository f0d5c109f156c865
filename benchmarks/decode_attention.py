"""Attention of one written token over a long KV cache: Triton's kernels against torch's operations, on CUDA.

    python -m benchmarks.decode_attention [--tokens 1024 32768 131072 262144] [--batch 1 4]

One layer in the shape of Qwen3-VL-4B (32 heads, 8 KV heads of 128), random rows, every format. Microseconds of one step
of each side (storing the row included), the bytes that must be read, and what share of the device's copy bandwidth,
measured in the same run, that is. Without CUDA it prints that nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.decode import heading
from qwen3vl_webui.model.cache import KVCache
from qwen3vl_webui.model.planner import FORMATS, KVFormat

HEADS, KV_HEADS, SIZE = 32, 8, 128
CHUNK = 2048


def microseconds(step: Callable[[], Any], repeats: int = 30) -> float:
    """Median of the device's own clock."""
    times = []
    for turn in range(repeats + 5):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        step()
        ended.record()
        torch.cuda.synchronize()
        if turn >= 5:
            times.append(1000 * began.elapsed_time(ended))
    return statistics.median(times)


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * 2**30 / (microseconds(lambda: target.copy_(source)) / 1e6)


def step(kv: KVFormat, tokens: int, batch: int, peak: float, device: torch.device) -> dict[str, float]:
    from qwen3vl_webui.model import kernels

    generator = torch.Generator(device).manual_seed(0)
    cache = KVCache(
        layers=1,
        kv_heads=KV_HEADS,
        head_dim=SIZE,
        dtype=torch.bfloat16,
        device=device,
        kv=kv,
        kernel=kernels.decode,
    )
    slots = [cache.take(np.arange(1), str(one))[0] for one in range(batch)]
    for slot in slots:
        cache.reserve(slot, tokens + 1)
        for at in range(0, tokens, CHUNK):
            count = min(CHUNK, tokens - at)
            rows = torch.randn(count, HEADS + 2 * KV_HEADS, SIZE, generator=generator, device=device).bfloat16()
            query, key, value = rows.split((HEADS, KV_HEADS, KV_HEADS), 1)
            cache.attend(0, slot, at, query.transpose(0, 1)[None], key, value)
            slot.keys.extend(range(at, at + count))
    rows = torch.randn(batch, HEADS + 2 * KV_HEADS, SIZE, generator=generator, device=device).bfloat16()
    query, key, value = rows.split((HEADS, KV_HEADS, KV_HEADS), 1)
    places = cache.places([(slot, tokens) for slot in slots])

    def by_torch() -> torch.Tensor:
        answers = [
            cache.attend(0, slot, tokens, query[one, None, :, None], key[one, None], value[one, None])[0, :, 0]
            for one, slot in enumerate(slots)
        ]
        return torch.stack(answers)

    difference = float((cache.decode(0, places, query, key, value).float() - by_torch().float()).abs().max())
    ours = microseconds(lambda: cache.decode(0, places, query, key, value))
    theirs = microseconds(by_torch)
    read = batch * tokens * cache.bytes_per_token
    return {
        "triton_us": round(ours, 1),
        "torch_us": round(theirs, 1),
        "ratio": round(theirs / ours, 2),
        "MB_read": round(read / 1e6, 1),
        "share_of_bandwidth": round(read / (ours / 1e6) / peak, 3),
        "largest_difference": round(difference, 4),
    }


def measure(tokens: list[int], batches: list[int]) -> dict[str, Any]:
    device = torch.device("cuda")
    peak = bandwidth(device)
    rows = {
        f"{kv}, {count} tokens, batch {batch}": step(kv, count, batch, peak, device)
        for kv in FORMATS
        for count in tokens
        for batch in batches
    }
    return {"copy_GB_per_second": round(peak / 1e9), **rows}


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--tokens", type=int, nargs="*", default=[1024, 32_768, 131_072, 262_144])
    flags.add_argument("--batch", type=int, nargs="*", default=[1, 4])
    given = flags.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({**heading("decode attention"), "measured": "nothing: this needs a CUDA device"}))
        return
    print(json.dumps({**heading("decode attention"), **measure(given.tokens, given.batch)}, indent=2))


if __name__ == "__main__":
    main()
