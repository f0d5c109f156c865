"""One answer while it is written: from logits to the next token, its text, and why it ended."""

from __future__ import annotations

from typing import Literal

import torch

from qwen3vl_webui.engine.contract import SamplingParams, TokenEvent
from qwen3vl_webui.model.decode import Sampler
from qwen3vl_webui.model.inputs import Vocabulary
from qwen3vl_webui.model.streaming import AnswerText


class AnswerWriting:
    """`reason` is empty until the answer has ended; `ids` are its tokens so far, the ending one not among them.

    `most_tokens` is what the context leaves. Nothing here is shared with another answer.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        vocabulary: Vocabulary,
        eos_ids: frozenset[int],
        *,
        most_tokens: int,
        vocabulary_size: int,
        device: torch.device,
        forbidden: torch.Tensor | None = None,
    ) -> None:
        self.sampling = sampling
        self.vocabulary = vocabulary
        self.eos_ids = eos_ids
        self.most_tokens = most_tokens
        self.sampler = Sampler(sampling, vocabulary_size, device, forbidden)
        self.text = AnswerText(vocabulary, sampling.stop)
        self.ids: list[int] = []
        self.count = 0  # tokens drawn, the ending one included
        self.reason: Literal["", "stop", "length"] = ""

    def draw(self, logits: torch.Tensor) -> list[TokenEvent]:
        """Draws one token from float32 logits (vocabulary,), which may be changed, and gives what it adds."""
        token = self._next(logits)
        self.count += 1
        if token in self.eos_ids:
            self.reason = "stop"
            return self.text.end()
        self.ids.append(token)
        events = self.text.push(token)
        if self.text.stopped:
            self.reason = "stop"
        elif self.count == self.most_tokens:
            self.reason = "length"
        return events + (self.text.end() if self.reason else [])

    def _next(self, logits: torch.Tensor) -> int:
        budget = self.sampling.thinking_budget
        if self.text.thinking and budget is not None and self.text.thinking_tokens >= budget:
            assert self.vocabulary.end_think is not None
            self.sampler.note(self.vocabulary.end_think)
            return self.vocabulary.end_think
        return self.sampler.draw(logits)
