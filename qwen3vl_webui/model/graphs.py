"""One token of each of up to four answers, or a few answers with what they may say next, over buffers that stay where
they are: recorded once as a CUDA graph for each number of rows, then replayed as a whole.

A step that is launched operation by operation costs some hundreds of launches, which is most of its time in a small
model. A replayed one does the same work at the same addresses, so all that changes from token to token (ids, places,
cos and sin, noise, settings of the sampling) is copied into the buffers first, and only token ids come back. Nothing in
the step depends on a length: the attention of `kernels.py` reads lengths on the device.

Shapes: B answers, V vocabulary, d head size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qwen3vl_webui.model.cache import KVCache, Slot
from qwen3vl_webui.model.decode import TOP, Sampler, draw_together
from qwen3vl_webui.model.formats import Places
from qwen3vl_webui.model.forward import TextModel

log = logging.getLogger(__name__)

WARM = 2  # runs before one is recorded: kernels are built, libraries get their workspace
GUESSING = (8, 16)  # rows of a step with guesses; those left over are read and forgotten


@dataclass(frozen=True)
class Next:
    """An answer's last token, which stands at the end of `slot`, or a guess, `ahead` tokens behind it; its cos and sin
    (1, d).

    With a `sampler` the token after it is drawn in the step; without, its logits are asked for.
    """

    token: int
    slot: Slot
    cos_sin: tuple[torch.Tensor, torch.Tensor]
    sampler: Sampler | None
    ahead: int = 0


class Decoder:
    """`most` answers at once; guesses in formats that keep every token for itself. Works on any device that
    `cache.kernel` works on; records on CUDA, where it can."""

    def __init__(
        self,
        text: TextModel,
        embed: Callable[[torch.Tensor], torch.Tensor],
        cache: KVCache,
        *,
        vocabulary_size: int,
        forbidden: torch.Tensor,
        dtype: torch.dtype,
        most: int = 4,
    ) -> None:
        device = cache.device
        rows = GUESSING[-1] if cache.format.group == 1 else most
        self.records = device.type == "cuda"
        self._most = most
        self._text, self._embed, self._cache = text, embed, cache
        self._forbidden = torch.zeros(vocabulary_size, dtype=torch.bool, device=device)  # (V,)
        self._forbidden[forbidden] = True
        self._numbers = torch.zeros((4, rows), dtype=torch.int32, device=device)  # ids, rows, starts, halves
        self._settings = torch.ones((6, most), device=device)
        self._cos, self._sin = torch.zeros((2, rows, text.head_dim), dtype=dtype, device=device)
        self._noise = torch.ones((most, TOP), device=device)
        self._drawn = torch.zeros((most, vocabulary_size), dtype=torch.bool, device=device)
        self._logits = torch.zeros((rows, vocabulary_size), device=device)
        self._tokens = torch.zeros(most, dtype=torch.int64, device=device)
        self._given = torch.zeros((4, rows), dtype=torch.int32, pin_memory=self.records)
        self._given_settings = torch.ones((6, most), pin_memory=self.records)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._moves = cache.moves  # when they were recorded
        self._pool: Any = None

    def step(self, answers: Sequence[Next]) -> tuple[list[int], torch.Tensor]:
        """The next token of each, and its float32 logits (B, V), which may be changed and hold until the next step.

        A token counts only where its answer gave a sampler. The KV of the last tokens is written; the slots must have
        room, and their `keys` are the caller's to extend.
        """
        count = len(answers)
        self._fill(answers)
        self._fill_drawing([answer.sampler for answer in answers])
        self._compute(count)
        return self._tokens[:count].tolist(), self._logits[:count]

    def check(self, rows: Sequence[Next]) -> torch.Tensor:
        """The float32 logits (n, V) behind each row: an answer's last token, then what was guessed after it.

        At most `GUESSING[-1]` rows; the last slot must have room for the rest of them too. What a wrong guess leaves
        behind a slot's end is written over. The logits may be changed and hold until the next step.
        """
        count = next(count for count in GUESSING if count >= len(rows))
        last = rows[-1]
        self._fill([*rows, *(replace(last, ahead=last.ahead + more) for more in range(1, count - len(rows) + 1))])
        self._compute(count)
        return self._logits[: len(rows)]

    def _compute(self, count: int) -> None:
        if self._moves != self._cache.moves:  # the slab has been given other memory
            self._graphs.clear()
            self._moves = self._cache.moves
        if self.records and count not in self._graphs:
            self._try_to_record(count)
        if count in self._graphs:
            self._graphs[count].replay()
        else:
            self._run(count)

    def _fill(self, answers: Sequence[Next]) -> None:
        """Every step ends with its tokens on the host, so what was given to the last one has been read."""
        count = len(answers)
        places = self._cache.numbers([(answer.slot, answer.slot.length + answer.ahead) for answer in answers])
        self._given[:, :count] = torch.tensor([[answer.token for answer in answers], *places])
        self._numbers.copy_(self._given, non_blocking=True)
        torch.cat([answer.cos_sin[0] for answer in answers], out=self._cos[:count])
        torch.cat([answer.cos_sin[1] for answer in answers], out=self._sin[:count])

    def _fill_drawing(self, samplers: Sequence[Sampler | None]) -> None:
        count = len(samplers)
        self._given_settings[:, :count] = torch.tensor(
            [sampler.settings if sampler is not None else Sampler.GREEDY for sampler in samplers]
        ).t()
        self._settings.copy_(self._given_settings, non_blocking=True)
        for row, sampler in enumerate(samplers):
            if sampler is None:
                continue
            if sampler.sampling.temperature > 0:
                sampler.noise(self._noise[row, : sampler.sampling.top_k])
            if sampler.penalizes:
                self._drawn[row].copy_(sampler.drawn)

    def _run(self, count: int) -> None:
        ids, rows, starts, halves = self._numbers[:, :count]
        hidden = self._text.forward(
            self._embed(ids),
            (self._cos[:count], self._sin[:count]),
            self._cache,
            (),
            places=Places(rows, starts, halves),
        )
        self._logits[:count].copy_(self._text.logits(hidden))
        if count > self._most:
            return  # what is behind a guess is drawn once it has proved right
        tokens = draw_together(
            self._logits[:count], self._forbidden, self._drawn[:count], self._settings[:, :count], self._noise[:count]
        )
        self._tokens[:count].copy_(tokens)

    def _try_to_record(self, count: int) -> None:
        """A run that is run again writes the same again, so warming up with the real inputs changes nothing."""
        try:
            self._graphs[count] = self._record(count)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an operation that waits for the device cannot be recorded: mixtures, LLM.int8
            log.warning("answers are written without CUDA graphs: %s: %s", type(error).__name__, error)
            self.records = False
            self._graphs.clear()

    def _record(self, count: int) -> torch.cuda.CUDAGraph:
        beside, now = torch.cuda.Stream(), torch.cuda.current_stream()
        beside.wait_stream(now)
        with torch.cuda.stream(beside):
            for _ in range(WARM):
                self._run(count)
        now.wait_stream(beside)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Threads that decode pictures go on allocating meanwhile; only what this one does is recorded.
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._run(count)
        finally:
            torch.cuda.set_stream(now)  # leaving a recording that failed may not have gone back to it
        return graph
