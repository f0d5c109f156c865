"""What guessing the next tokens from the prompt is worth, by how much of an answer quotes it.

    python -m benchmarks.drafts [--tokens 300] [--decode eager]

Random weights quote nothing, so which token comes next is prescribed here: pieces of the prompt of 40 tokens, and words
of its own between them. Everything else is the engine's work: the forward passes, with the guesses checked and without.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.decode import THIN, WIDE, heading, our_answer
from benchmarks.reuse import build_checkpoint
from qwen3vl_webui.engine.contract import GenerationRequest, Message, SamplingParams, TokenEvent
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.model.loading import load
from qwen3vl_webui.model.writing import AnswerWriting
from qwen3vl_webui.settings import Decode

QUOTE = 40  # tokens
SHARES = (0.0, 0.25, 0.5, 0.9)


class Prescribed(AnswerWriting):
    """Writes `script`, whatever the model would."""

    script: tuple[int, ...] = ()

    def _next(self, logits: torch.Tensor) -> int:
        super()._next(logits)  # what drawing costs is paid
        return self.script[len(self.ids)]

    def take(self, token: int) -> list[TokenEvent]:
        return super().take(self.script[len(self.ids)])


def answer_of(prompt: list[int], words: range, share: float, tokens: int) -> tuple[int, ...]:
    draw, written = random.Random(0), []
    while len(written) < tokens:
        if draw.random() < share:
            start = draw.randrange(len(prompt) - QUOTE)
            written += prompt[start : start + QUOTE]
        else:
            written += draw.choices(words, k=QUOTE)
    return tuple(written[:tokens])


def measure(folder: Path, tokens: int, decode: Decode, **text: Any) -> dict[str, Any]:
    import qwen3vl_webui.engine.scheduler as scheduler

    build_checkpoint(folder, **text)
    loaded = replace(load(str(folder), quantization="none"), eos_ids=frozenset())
    engine = LocalEngine(loaded, 8192, decode=decode)
    clock = 0 if loaded.device.type == "cuda" else 1  # wall time; on a CPU that of the processor
    draw, names = random.Random(1), range(100, 480)  # ordinary tokens
    words = loaded.tokenizer.decode(draw.choices(names, k=900))
    sampling = SamplingParams(temperature=0, presence_penalty=0, max_tokens=tokens, loop_guard=False)
    request = GenerationRequest((Message("user", (words,)),), sampling, conversation="chat")
    prompt = engine._encode(request).ids.tolist()
    scheduler.AnswerWriting = Prescribed  # type: ignore[misc]
    rows: dict[str, Any] = {"prompt_tokens": len(prompt)}
    for share in SHARES:
        Prescribed.script = answer_of(prompt[10:-10], names, share, tokens)
        spent: dict[bool, float] = {}
        for drafting in (False, True, False, True):  # the first two warm up
            engine._scheduler.drafting = drafting
            marks, _ = our_answer(engine, request)
            spent[drafting] = 1000 * (marks.times[-1][clock] - marks.times[0][clock]) / (tokens - 1)
        rows[f"quoting {share:.0%}"] = {
            "without_ms": round(spent[False], 2),
            "with_ms": round(spent[True], 2),
            "ratio": round(spent[False] / spent[True], 2),
        }
    engine.close()
    return rows


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--tokens", type=int, default=300, help="tokens of each answer")
    flags.add_argument("--decode", choices=["auto", "eager"], default="auto", help="as the server's")
    given = flags.parse_args()
    rows: dict[str, Any] = {}
    for name, text in (("36_layers", THIN), ("8_layers_wide", WIDE)):
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measure(Path(folder), given.tokens, given.decode, **text)
    print(json.dumps({**heading("drafts"), **rows}, indent=2))


if __name__ == "__main__":
    main()
