"""Time to the first token of a second question, against transformers' own processor and `generate` in the same run.

    python -m benchmarks.reuse [--tokens 16384] [--answer 64]

A random checkpoint of some 12 million parameters reads one picture and a long text, answers, and is asked again. Stock
means what a plain script does each turn: chat template, tokenizer, image processor, `generate` over the whole prompt.
Both sides see identical prompts (checked) and write greedily; the answers must be equal. The earlier answer in the
second prompt is a fixed sentence, because random weights write half characters. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen3vl_webui.engine.contract import FinishEvent, GenerationRequest, Message, SamplingParams, TokenEvent
from qwen3vl_webui.engine.local import LocalEngine, forbidden_ids
from qwen3vl_webui.media.values import Image
from qwen3vl_webui.model.inputs import encode
from qwen3vl_webui.model.loading import LoadedModel, load
from tests.tiny import chat_template, train_tokenizer, write_json

SIDE = 512  # px of the picture: 256 tokens
ANSWER = "It shows the lecture, page by page."
QUESTIONS = ("What does the picture have to do with the text?", "And what happens at 47 seconds?")
WORDS = "The lecturer opens the computer at 47 seconds and shows page 3 of the document. "


def build_checkpoint(folder: Path, *, scale: float = 4.0, **text: Any) -> Path:
    """Random weights, scaled so that greedy answers are not one repeated token. `text` changes the text model."""
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = train_tokenizer()
    tokenizer.chat_template = chat_template(thinking=False)
    tokenizer.save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": 262_144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [12, 10, 10],
                "mrope_interleaved": True,
            },
            **text,
        },
        vision_config={
            "depth": 6,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_heads": 6,
            "out_hidden_size": text.get("hidden_size", 384),
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [1, 2, 3],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(1)
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers." in name and weight.ndim >= 2:
                weight.mul_(scale)
        model.model.language_model.norm.weight.mul_(6)
    eos = [ids("<|im_end|>"), ids("<|endoftext|>")]
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=ids("<|endoftext|>"))
    model.save_pretrained(folder)
    write_json(folder / "config.json", qwen3vl_webui={"trained": False})
    pixels: dict[str, Any] = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    pixels |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    write_json(folder / "preprocessor_config.json", size=size, **pixels)
    return folder


@dataclass
class Turn:
    """What one side measured, and what it wrote. `cpu` counts processor seconds of all threads until the first token.

    On a machine that does other work too, only the ratio of `cpu` means something.
    """

    first_token: float  # seconds
    cpu: float
    tokens_per_second: float
    ids: list[int]
    reused_tokens: int = 0


class Clock:
    """A stopping criterion that never stops: it notes when each token was there."""

    def __init__(self) -> None:
        self.began, self.cpu_began, self.cpu = time.perf_counter(), time.process_time(), 0.0
        self.times: list[float] = []

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.cpu = self.cpu or time.process_time() - self.cpu_began
        self.times.append(time.perf_counter() - self.began)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


class Stock:
    """transformers alone: its weights, tokenizer, image processor and `generate`."""

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        model: Any = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=loaded.dtype)
        self.model: Any = model.to(loaded.device).eval()
        self.model.generation_config.eos_token_id = None  # both sides write the same number of tokens
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.processor: Any = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.forbidden = forbidden_ids(loaded).tolist()

    def answer(self, messages: tuple[Message, ...], pixels: np.ndarray, tokens: int) -> tuple[Turn, np.ndarray]:
        clock = Clock()
        given: dict[str, Any] = {}
        written = [{"role": m.role, "content": [self.part(part) for part in m.parts]} for m in messages]
        text = self.tokenizer.apply_chat_template(written, tokenize=False, add_generation_prompt=True)
        if "<|image_pad|>" in text:
            given = dict(self.processor(images=[pixels], return_tensors="pt"))
            count = int(given["image_grid_thw"].prod()) // 4
            text = text.replace("<|image_pad|>", "<|image_pad|>" * count)
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        kinds = (ids == self.model.config.image_token_id).long()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **given}
        output = self.model.generate(
            **{name: value.to(self.model.device) for name, value in inputs.items()},
            do_sample=False,
            max_new_tokens=tokens,
            suppress_tokens=self.forbidden,
            stopping_criteria=[clock],
        )
        first, last = clock.times[0], clock.times[-1]
        speed = (len(clock.times) - 1) / (last - first)
        return Turn(first, clock.cpu, speed, output[0, ids.shape[1] :].tolist()), ids[0].numpy()

    @staticmethod
    def part(part: Any) -> dict[str, str]:
        return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def ours(engine: LocalEngine, request: GenerationRequest) -> Turn:
    began, cpu_began, first, cpu = time.perf_counter(), time.process_time(), 0.0, 0.0
    for event in engine.generate(request):
        if isinstance(event, TokenEvent) and not first:
            first, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        if isinstance(event, FinishEvent):
            finish = event
    (slot,) = [slot for slot in engine._cache.slots if slot.conversation == request.conversation]
    ids = list(slot.keys[finish.prompt_tokens :])  # all but the last token, which no other followed
    return Turn(first, cpu, (finish.completion_tokens - 1) / finish.timings.decode, ids, finish.reused_tokens)


def report(turn: Turn) -> dict[str, float | int]:
    return {
        "first_token_seconds": round(turn.first_token, 4),
        "first_token_cpu_seconds": round(turn.cpu, 4),
        "decode_tokens_per_second": round(turn.tokens_per_second, 1),
    }


def measure(tokens: int, answer: int, folder: Path) -> dict[str, Any]:
    build_checkpoint(folder)
    loaded = replace(load(str(folder), quantization="none"), eos_ids=frozenset())
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    picture = Image(folder, "picture", SIDE, SIDE, seen=(SIDE, SIDE))
    engine = LocalEngine(loaded, tokens + 4096, read_pixels=lambda _: pixels)
    stock = Stock(folder, loaded)

    per_repeat = len(loaded.tokenizer.encode(WORDS * 2).ids) - len(loaded.tokenizer.encode(WORDS).ids)
    text = WORDS * max(1, (tokens - picture.tokens) // per_repeat)
    sampling = SamplingParams(temperature=0, presence_penalty=0, max_tokens=answer)
    first: tuple[Message, ...] = (Message("user", (picture, text, QUESTIONS[0])),)
    second = (*first, Message("assistant", (ANSWER,)), Message("user", (QUESTIONS[1],)))

    short: tuple[Message, ...] = (Message("user", (QUESTIONS[1],)),)
    for messages in (short, short):  # the second time everything is warm
        stock_short, _ = stock.answer(messages, pixels, answer)
        our_short = ours(engine, GenerationRequest(messages, sampling, conversation="short"))

    rows: dict[str, Any] = {}
    for name, messages in (("turn_1", first), ("turn_2", second)):
        request = GenerationRequest(messages, sampling, conversation="chat")
        mine = ours(engine, request)
        theirs, ids = stock.answer(messages, pixels, answer)
        assert np.array_equal(ids, encode(messages, loaded.vocabulary).ids), "the prompts differ"
        rows[name] = {
            "context_tokens": len(ids),
            "reused_tokens": mine.reused_tokens,
            "ours": report(mine),
            "stock": report(theirs),
            "first_token_ratio": round(theirs.first_token / mine.first_token, 1),
            "first_token_cpu_ratio": round(theirs.cpu / mine.cpu, 1),
            "answers_equal": mine.ids == theirs.ids[:-1],
        }
    engine.close()
    short_row = {
        "ours": report(our_short),
        "stock": report(stock_short),
        "answers_equal": our_short.ids == stock_short.ids[:-1],
    }
    return {
        "benchmark": "reuse",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device_name(loaded.device),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "parameters_millions": round(sum(weight.numel() for weight in loaded.model.parameters()) / 1e6, 1),
        "answer_tokens": answer,
        "short_prompt": short_row,
        **rows,
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--tokens", type=int, default=16_384, help="length of the first prompt")
    flags.add_argument("--answer", type=int, default=64, help="tokens written in each turn")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(given.tokens, given.answer, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
