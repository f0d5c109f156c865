"""Memory and speed of a real shape at a long context, with random weights, beside what the planner says.

    python -m benchmarks.long_context --shape 4b --kv int4 --tokens 262144 --cap 21.3     # a CUDA device
    python -m benchmarks.long_context --shape thin --kv int4 --tokens 8192                # any machine

Reads a text of that many tokens, answers, and is asked again. `--cap` GB bounds the process's device memory, so that a
plan that is too small fails. Weights are random and unquantized. `thin` is a small model with heads like the 4B's.
Prints one JSON object: bytes by part as planned, the measured peak, seconds to the first token of both turns, tokens a
second of both phases; on CUDA also what share of the card's copy bandwidth the writing is, if every weight of the text
model and every key and value is read once a token. `--decode eager` leaves out the kernels and CUDA graphs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.decode_attention import bandwidth
from benchmarks.reuse import WORDS, device_name
from qwen3vl_webui.engine.contract import (
    FinishEvent,
    GenerationRequest,
    Message,
    ModelInfo,
    SamplingParams,
    TokenEvent,
)
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.model.inputs import Vocabulary
from qwen3vl_webui.model.loading import LoadedModel
from qwen3vl_webui.model.planner import FORMATS, KNOWN, KVFormat, Shape, kv_bytes_per_token, plan, weight_parts
from qwen3vl_webui.model.rope import native
from qwen3vl_webui.settings import Decode
from tests.shapes import text_config, vision_config
from tests.tiny import SPECIAL_TOKENS, train_tokenizer

THIN = replace(KNOWN["4b"], layers=4, hidden=256, intermediate=512, heads=8, kv_heads=2, vision_depth=3)
SAMPLING = SamplingParams(temperature=0, presence_penalty=0, max_tokens=64)


def random_model(shape: Shape, device: torch.device, folder: Path) -> LoadedModel:
    """The modules of a shape on the device, never on disk; the vocabulary is a tiny one, the head the real one."""
    from transformers import (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
    )

    tokenizer = train_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    config = (Qwen3VLMoeConfig if shape.experts else Qwen3VLConfig)(
        text_config=text_config(shape),
        vision_config=vision_config(shape),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        tie_word_embeddings=shape.tied,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model: Any = (Qwen3VLMoeForConditionalGeneration if shape.experts else Qwen3VLForConditionalGeneration)(config)
    torch.set_default_dtype(torch.float32)
    model.requires_grad_(False).eval()
    return LoadedModel(
        folder=folder,
        model=model,
        text=model.model.language_model,
        vision=model.model.visual,
        embed=model.get_input_embeddings(),
        lm_head=model.lm_head,
        config=config,
        shape=Shape.of(config.to_dict()),
        vocabulary=Vocabulary.of(tokenizer.backend_tokenizer),
        eos_ids=frozenset(),
        rope=native(config.text_config),
        trained_positions=shape.positions,
        device=device,
        dtype=dtype,
        info=ModelInfo("random", "random", device=str(device), trained=False),
    )


def long_text(engine: LocalEngine, tokens: int) -> str:
    """As many words as fit into `tokens`, question and answer included."""
    low, high = 1, tokens
    while low < high:
        middle = (low + high + 1) // 2
        asked = GenerationRequest((Message("user", (WORDS * middle,)),), SAMPLING)
        low, high = (middle, high) if engine.plan(asked).tokens <= tokens - 256 else (low, middle - 1)
    return WORDS * low


def ask(engine: LocalEngine, request: GenerationRequest) -> tuple[dict[str, float], str]:
    began, first, text = time.perf_counter(), 0.0, ""
    for event in engine.generate(request):
        if isinstance(event, TokenEvent):
            first = first or time.perf_counter() - began
            text += event.text
        if isinstance(event, FinishEvent):
            finish = event
    read = finish.prompt_tokens - finish.reused_tokens
    figures = {
        "prompt_tokens": finish.prompt_tokens,
        "reused_tokens": finish.reused_tokens,
        "first_token_seconds": round(first, 3),
        "read_tokens_per_second": round(read / max(finish.timings.prefill, 1e-9), 1),
        "written_tokens_per_second": round(finish.completion_tokens / max(finish.timings.decode, 1e-9), 2),
    }
    return figures, text


def share_of_bandwidth(shape: Shape, kv: KVFormat, figures: dict[str, float], peak: float) -> float:
    """Of `peak` bytes a second, at the length the turn was written at."""
    weights = weight_parts(shape, "none")
    head = weights["head"] or weights["embeddings"]
    read = weights["text"] + head + figures["prompt_tokens"] * kv_bytes_per_token(shape, kv)
    return round(read * figures["written_tokens_per_second"] / peak, 3)


def measure(
    shape: Shape, kv: KVFormat, tokens: int, cap: float | None, decode: Decode, device: torch.device
) -> dict[str, Any]:
    bytes_per_second = 0.0
    if device.type == "cuda":
        bytes_per_second = bandwidth(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        total = torch.cuda.get_device_properties(device).total_memory
        if cap:
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 1e9 / total), device)
    with tempfile.TemporaryDirectory() as folder:
        engine = LocalEngine(random_model(shape, device, Path(folder)), tokens, kv_cache=kv, decode=decode)
        try:
            question = GenerationRequest((Message("user", (long_text(engine, tokens),)),), SAMPLING, conversation="a")
            first, text = ask(engine, question)
            messages = (*question.messages, Message("assistant", (text,)), Message("user", ("And then?",)))
            second, _ = ask(engine, replace(question, messages=messages))
            if device.type == "cuda":
                for turn in (first, second):
                    turn["share_of_bandwidth"] = share_of_bandwidth(shape, kv, turn, bytes_per_second)
            slab = engine._cache.bytes
        finally:
            engine.close()
    planned = plan(shape, "none", tokens, kv)
    peak: dict[str, float] = {"process_GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)}
    if device.type == "cuda":
        peak["allocated_GB"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
        peak["reserved_GB"] = round(torch.cuda.max_memory_reserved(device) / 1e9, 2)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device_name(device),
        "load_average": round(os.getloadavg()[0], 1),
        "planned_GB": {
            "total": round(planned.bytes / 1e9, 2),
            **{name: round(each / 1e9, 3) for name, each in planned.parts.items()},
        },
        "kv_slab_GB": round(slab / 1e9, 3),
        "peak": peak,
        "turn_1": first,
        "turn_2": second,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*KNOWN, "thin"], default="thin")
    parser.add_argument("--kv", choices=FORMATS, default="int4")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--decode", choices=["auto", "eager"], default="auto", help="as the server's")
    parser.add_argument("--cap", type=float, help="GB of device memory this process may take")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = THIN if args.shape == "thin" else KNOWN[args.shape]
    print(json.dumps(measure(shape, args.kv, args.tokens, args.cap, args.decode, device)))


if __name__ == "__main__":
    main()
