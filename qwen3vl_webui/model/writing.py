"""One answer while it is written: from logits to the next token, its text, and why it ended."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from tokenizers import Tokenizer

from qwen3vl_webui.engine.contract import SamplingParams, TokenEvent
from qwen3vl_webui.model.decode import Sampler
from qwen3vl_webui.model.inputs import Vocabulary
from qwen3vl_webui.model.loops import CONTEXT, LoopGuard, continuations
from qwen3vl_webui.model.streaming import AnswerText

MOST_REWINDS = 2


class AnswerWriting:
    """`reason` is empty until the answer has ended; `ids` are its tokens so far, the ending one not among them.

    `most_tokens` is what the context leaves. Nothing here is shared with another answer.

    While the answer repeats itself its text is held back. When that was no loop the text follows; when it was one, it
    is forgotten (`ids` grow shorter), the loop's tokens are banned where they would come next, and the answer goes on.
    A loop that comes back once more than `MOST_REWINDS`, or that counts, ends the reasoning or the answer.
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
        self.count = 0  # tokens of the answer, the ending one included
        self.reason: Literal["", "stop", "length"] = ""
        self.rewinds = 0
        self.given_up = False
        self._shown = 0  # of `ids`
        self._banned: dict[tuple[int, ...], set[int]] = {}
        self._end_of_thinking = False  # is forced next
        self._guard = self._new_guard()

    @property
    def sentence(self) -> str:
        """What a person is told of loops; empty when there was none."""
        if self.given_up:
            return (
                "The model kept repeating itself, so the answer was ended here. Ask for a smaller part, or in other "
                "words."
            )
        if self.rewinds:
            return "The model began to repeat itself; the repetition was cut off and it was made to go on differently."
        return ""

    def draw(self, logits: torch.Tensor) -> list[TokenEvent]:
        """Draws one token from float32 logits (vocabulary,), which may be changed, and gives what it adds."""
        return self._add(self._next(logits))

    @property
    def few(self) -> bool:
        """Whether the next token may be drawn elsewhere, with this answer's `sampler`, and be given to `take`: nothing
        but the sampling has a say in it."""
        if self._must_end_thinking or self._banned.get(tuple(self.ids[-CONTEXT:])):
            return False
        return self.sampler.few

    def take(self, token: int) -> list[TokenEvent]:
        """As `draw`, of a token that was drawn with this answer's sampler."""
        self.sampler.note(token)
        return self._add(token)

    def _add(self, token: int) -> list[TokenEvent]:
        self.count = len(self.ids) + 1
        if token in self.eos_ids:
            self.reason = "stop"
            return self._show() + self.text.end()
        self.ids.append(token)
        if self._guard is not None:
            self._guard.push(token)
            if (period := self._guard.loop) is not None or self._guard.counting:
                return self._leave_loop(period)
            if self.count == self.most_tokens and (period := self._guard.stuck(self.rewinds > 0)):
                return self._leave_loop(period)
            if self._guard.repeating and self.count < self.most_tokens:
                return []
        events = self._show()
        if not self.reason and self.count == self.most_tokens:
            self.reason = "length"
        return events + (self.text.end() if self.reason else [])

    @property
    def _must_end_thinking(self) -> bool:
        budget = self.sampling.thinking_budget
        thought = self.text.thinking_tokens + len(self.ids) - self._shown
        return self._end_of_thinking or (self.text.thinking and budget is not None and thought >= budget)

    def _next(self, logits: torch.Tensor) -> int:
        if self._must_end_thinking:
            assert self.vocabulary.end_think is not None
            self._end_of_thinking = False
            self.sampler.note(self.vocabulary.end_think)
            return self.vocabulary.end_think
        if self._banned and (banned := self._banned.get(tuple(self.ids[-CONTEXT:]))):
            logits[list(banned)] = -torch.inf
        return self.sampler.draw(logits)

    def _show(self) -> list[TokenEvent]:
        """The text of what was held back, up to a stop string."""
        events: list[TokenEvent] = []
        for token in self.ids[self._shown :]:
            self._shown += 1
            events += self.text.push(token)
            if self.text.stopped:
                self.reason = "stop"
                break
        return events

    def _leave_loop(self, period: list[int] | None) -> list[TokenEvent]:
        """Forgets what was held back; goes on without `period`, or ends when there is none or it did not help."""
        del self.ids[self._shown :]
        self.count = len(self.ids)
        self.sampler.forget_all_but(self.ids)
        self._guard = self._new_guard()
        if self._guard is not None:
            for token in self.ids:
                self._guard.push(token)
        self.rewinds += 1
        if period is not None and self.rewinds <= MOST_REWINDS:
            for context, token in continuations(period).items():
                self._banned.setdefault(context, set()).add(token)
        elif self.text.thinking and self.vocabulary.end_think is not None:
            self.rewinds = 1
            self._end_of_thinking = True
        else:
            self.given_up, self.reason = True, "stop"
            return self.text.end()
        return []

    def _new_guard(self) -> LoopGuard | None:
        if not self.sampling.loop_guard:
            return None
        tokenizer = self.vocabulary.tokenizer
        digits = {tokenizer.token_to_id(str(value)): value for value in range(10)}
        known = {token: value for token, value in digits.items() if token is not None}
        return LoopGuard(known, lambda token: letters_of(tokenizer, token))


@lru_cache(4096)
def letters_of(tokenizer: Tokenizer, token: int) -> int:
    """Part of a character counts as one letter: most of those are."""
    return sum(
        character.isalpha() or character == "\N{REPLACEMENT CHARACTER}" for character in tokenizer.decode([token])
    )
