"""What one token of an answer costs, against transformers' own `generate` with its DynamicCache in the same run.

    python -m benchmarks.decode [--tokens 256] [--long 16384] [--decode eager]

Three random models: a thin one of 36 layers, where the work around the layers is what costs; one of 31 million
parameters; and a thin one with a long prompt, where the cache is. Both sides read the same prompt and write greedily;
the answers must be equal. Reading is not counted: the clock runs from the first token to the last. The first model also
answers four requests at once, of which the answers must be those of one alone. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.reuse import WORDS, Stock, build_checkpoint, device_name
from qwen3vl_webui.engine.contract import FinishEvent, GenerationRequest, Message, SamplingParams
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.model.loading import load
from qwen3vl_webui.settings import Decode

ROPE = {
    "rope_type": "default",
    "rope_theta": 5_000_000.0,
    "mrope_section": [8, 4, 4],
    "mrope_interleaved": True,
}
THIN: dict[str, Any] = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 36, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 32, "rope_parameters": ROPE, "scale": 3.0},
}
WIDE: dict[str, Any] = {
    **{"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
    **{"num_key_value_heads": 2},
}
LONG: dict[str, Any] = {  # heads like those of the 4B: 128 wide, four of them to each KV head
    **{"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8},
    **{"num_key_value_heads": 2, "head_dim": 128},
    "rope_parameters": {**ROPE, "mrope_section": [24, 20, 20]},
}
ANSWERS_AT_ONCE = 4


@dataclass
class Marks:
    """When each token's logits were there: (wall, processor) seconds, all threads together."""

    times: list[tuple[float, float]] = field(default_factory=list)

    def note(self) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any, **named: Any) -> Any:
            self.note()
            return function(*given, **named)

        return noted

    def milliseconds(self) -> dict[str, float]:
        (wall, processor), (last_wall, last_processor) = self.times[0], self.times[-1]
        steps = len(self.times) - 1
        return {
            "wall_ms": round(1000 * (last_wall - wall) / steps, 2),
            "cpu_ms": round(1000 * (last_processor - processor) / steps, 2),
        }


def stock_answer(stock: Stock, ids: list[int], tokens: int) -> tuple[Marks, list[int]]:
    marks = Marks()

    def note(written: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        marks.note()
        return torch.zeros(len(written), dtype=torch.bool, device=written.device)

    prompt = torch.tensor([ids], device=stock.model.device)
    output = stock.model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        mm_token_type_ids=torch.zeros_like(prompt),
        do_sample=False,
        max_new_tokens=tokens,
        suppress_tokens=stock.forbidden,
        stopping_criteria=[note],
    )
    return marks, output[0, len(ids) :].tolist()


def our_answer(engine: LocalEngine, request: GenerationRequest) -> tuple[Marks, list[int]]:
    marks, scheduler = Marks(), engine._scheduler
    scheduler._write = marks.before(type(scheduler)._write.__get__(scheduler))  # type: ignore[method-assign]
    *_, finish = engine.generate(request)
    assert isinstance(finish, FinishEvent)
    return marks, ids_written(engine, request, finish)


def ids_written(engine: LocalEngine, request: GenerationRequest, finish: FinishEvent) -> list[int]:
    (slot,) = [slot for slot in engine._cache.slots if slot.conversation == request.conversation]
    return list(slot.keys[finish.prompt_tokens :])  # all but the last token, which no other followed


def at_once(engine: LocalEngine, requests: list[GenerationRequest]) -> tuple[float, list[list[int]]]:
    """Tokens per second of all together, from the first one's first to the last one's last; and what each wrote."""
    marks, scheduler = Marks(), engine._scheduler
    scheduler._write = marks.before(type(scheduler)._write.__get__(scheduler))  # type: ignore[method-assign]
    written: list[list[int]] = [[] for _ in requests]

    def follow(place: int) -> None:
        *_, finish = engine.generate(requests[place])
        assert isinstance(finish, FinishEvent)
        written[place] = ids_written(engine, requests[place], finish)

    threads = [threading.Thread(target=follow, args=(place,)) for place in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(map(len, written)) / (marks.times[-1][0] - marks.times[0][0]), written


def measure(
    folder: Path, prompt_tokens: int, tokens: int, decode: Decode, *, together: bool = False, **text: Any
) -> dict[str, Any]:
    build_checkpoint(folder, **text)
    loaded = replace(load(str(folder), quantization="none"), eos_ids=frozenset())
    engine = LocalEngine(loaded, prompt_tokens + tokens + 1024, decode=decode)
    stock = Stock(folder, loaded)
    per_repeat = len(loaded.tokenizer.encode(WORDS * 2).ids) - len(loaded.tokenizer.encode(WORDS).ids)
    words = WORDS * max(1, prompt_tokens // per_repeat)
    sampling = SamplingParams(temperature=0, presence_penalty=0, max_tokens=tokens, loop_guard=False)

    def ask(name: str) -> GenerationRequest:
        return GenerationRequest((Message("user", (words,)),), sampling, conversation=name)

    short = replace(ask("warm"), messages=(Message("user", ("Warm up.",)),))
    for _ in range(2):
        our_answer(engine, short)
        stock_answer(stock, engine._encode(short).ids.tolist(), 16)
    ids = engine._encode(ask("chat")).ids.tolist()
    ours, our_ids = our_answer(engine, ask("chat"))
    theirs, stock_ids = stock_answer(stock, ids, tokens)
    mine, other = ours.milliseconds(), theirs.milliseconds()
    row: dict[str, Any] = {
        "parameters_millions": round(sum(weight.numel() for weight in loaded.model.parameters()) / 1e6, 1),
        "prompt_tokens": len(ids),
        "answer_tokens": tokens,
        "ours_per_token": mine,
        "stock_per_token": other,
        "wall_ratio": round(other["wall_ms"] / mine["wall_ms"], 2),
        "cpu_ratio": round(other["cpu_ms"] / mine["cpu_ms"], 2),
        "answers_equal": our_ids == stock_ids[:-1],
    }
    if together:
        speed, written = at_once(engine, [ask(f"chat {place}") for place in range(ANSWERS_AT_ONCE)])
        row["at_once"] = {
            "answers": ANSWERS_AT_ONCE,
            "tokens_per_second": round(speed, 1),
            "against_one": round(speed * mine["wall_ms"] / 1000, 2),
            "against_stock": round(speed * other["wall_ms"] / 1000, 2),
            "answers_equal": all(each == our_ids for each in written),
        }
    engine.close()
    return row


def heading(benchmark: str) -> dict[str, Any]:
    """What every figure needs beside it: when, where, and what else ran."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--tokens", type=int, default=256, help="tokens written")
    flags.add_argument("--long", type=int, default=16_384, help="length of the long prompt; 0 leaves it out")
    flags.add_argument("--decode", choices=["auto", "eager"], default="auto", help="as the server's")
    given = flags.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows["36_layers"] = measure(Path(folder), 256, given.tokens, given.decode, together=True, **THIN)
    with tempfile.TemporaryDirectory() as folder:
        rows["8_layers_wide"] = measure(Path(folder), 256, given.tokens, given.decode, **WIDE)
    if given.long:
        with tempfile.TemporaryDirectory() as folder:
            rows["long_prompt"] = measure(Path(folder), given.long, min(given.tokens, 64), given.decode, **LONG)
    print(json.dumps({**heading("decode"), **rows}, indent=2))


if __name__ == "__main__":
    main()
