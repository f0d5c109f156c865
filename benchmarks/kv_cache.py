"""What keys and values in 8 and 4 bits save, what they cost, and whether the answers stay the same.

    python -m benchmarks.kv_cache [--cases 60] [--tokens 4096 16384]

Agreement: fresh cases of `benchmarks.accuracy` through the whole product with the demo model, each answered greedily by
three engines over the same weights; `right` is judged as there. Time: one decode step of one layer in the shape of
Qwen3-VL-4B (32 heads, 8 KV heads of 128), random rows, on this machine's CPU. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy import LEVEL, draw
from qwen3vl_webui.draft import Attached, Draft
from qwen3vl_webui.engine.contract import TokenEvent
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.model.cache import KVCache
from qwen3vl_webui.model.loading import load
from qwen3vl_webui.model.planner import FORMATS, KNOWN, KVFormat, kv_bytes, kv_bytes_per_token
from qwen3vl_webui.prompt import lay_out
from training.evaluate import is_right

HEADS, KV_HEADS, SIZE = 32, 8, 128


def agreement(cases: int, seed: str) -> dict[str, Any]:
    """Of each format: answers equal to the exact ones, and right answers, of those asked."""
    loaded = load("demo", device="cpu")
    engines = {kv: LocalEngine(loaded, kv_cache=kv) for kv in FORMATS}
    asked = 0
    equal = dict.fromkeys(FORMATS, 0)
    right = dict.fromkeys(FORMATS, 0)
    tokens: list[int] = []
    kinds, weights = zip(*LEVEL.kinds, strict=True)
    for number in range(cases):
        with tempfile.TemporaryDirectory() as folder:
            drawn = draw(Path(folder), f"kv:{seed}:{number}", kinds, weights)
            for exchange in drawn.exchanges:
                items = tuple(Attached(open_upload(path), name=path.name) for path in drawn.files)
                answers: dict[KVFormat, str] = {}
                for kv, engine in engines.items():
                    prompt = lay_out([Draft("user", (*items, exchange.question))], engine)
                    events = engine.generate(prompt.request)
                    answers[kv] = "".join(event.text for event in events if isinstance(event, TokenEvent))
                    right[kv] += is_right(exchange, answers[kv])
                    equal[kv] += answers[kv] == answers["bf16"]
                tokens.append(prompt.budget.tokens)
                asked += 1
    for engine in engines.values():
        engine.close()
    return {
        "questions": asked,
        "median_prompt_tokens": statistics.median(tokens),
        "equal_answers": {kv: round(equal[kv] / asked, 4) for kv in FORMATS},
        "right_answers": {kv: round(right[kv] / asked, 4) for kv in FORMATS},
        "right_to_exact": {kv: round(right[kv] / max(1, right["bf16"]), 4) for kv in FORMATS},
    }


def decode_step(kv: KVFormat, tokens: int) -> dict[str, float]:
    """Milliseconds of one attention step after `tokens`, bytes a token, and how far the answer is from exact."""
    generator = torch.Generator().manual_seed(0)
    cache = KVCache(layers=1, kv_heads=KV_HEADS, head_dim=SIZE, dtype=torch.float32, device=torch.device("cpu"), kv=kv)
    slot, _ = cache.take(np.arange(1))
    cache.reserve(slot, tokens + 1)
    rows = torch.randn(2, tokens + 1, KV_HEADS, SIZE, generator=generator)
    query = torch.randn(1, HEADS, tokens + 1, SIZE, generator=generator)
    while slot.length < tokens:
        here = slice(slot.length, min(tokens, slot.length + 512))
        cache.attend(0, slot, slot.length, query[:, :, here], rows[0, here], rows[1, here])
        slot.keys.extend(range(here.start, here.stop))
    times = []
    for _ in range(7):
        began = time.perf_counter()
        answer = cache.attend(0, slot, tokens, query[:, :, tokens:], rows[0, tokens:], rows[1, tokens:])
        times.append(time.perf_counter() - began)
    keys, values = (each.transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, 0) for each in rows)
    exact = torch.softmax(query[0, :, tokens:] @ keys.transpose(1, 2) * SIZE**-0.5, -1) @ values
    return {
        "ms": round(1000 * statistics.median(times), 2),
        "bytes_per_token": cache.bytes_per_token,
        "relative_error": round(float((answer[0] - exact).norm() / exact.norm()), 4),
    }


def measure(cases: int, tokens: Sequence[int], seed: str) -> dict[str, Any]:
    four = KNOWN["4b"]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "load_average": round(os.getloadavg()[0], 1),
        "demo_model": agreement(cases, seed) if cases else None,
        "one_layer_of_4b": {str(count): {kv: decode_step(kv, count) for kv in FORMATS} for count in tokens},
        "4b_calculated": {
            kv: {
                "bytes_per_token": kv_bytes_per_token(four, kv),
                "GB_at_262144": round(kv_bytes(four, kv, 262_144) / 1e9, 2),
            }
            for kv in FORMATS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--tokens", type=int, nargs="*", default=[4096, 16_384])
    parser.add_argument("--seed", default="1")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(measure(args.cases, args.tokens, args.seed)))


if __name__ == "__main__":
    main()
