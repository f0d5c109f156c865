"""LocalEngine: one model in this process, one inference thread, a fair queue, prefixes kept between turns."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from qwen3vl_webui.engine.contract import (
    Budget,
    Event,
    FinishEvent,
    GenerationRequest,
    ModelInfo,
    PrefillEvent,
    SamplingParams,
    Timings,
)
from qwen3vl_webui.engine.queue import Cancelled, RequestQueue, Work
from qwen3vl_webui.errors import EngineError, OutOfMemory, TooLong, UserError
from qwen3vl_webui.media.image import read_pixels
from qwen3vl_webui.media.video import read_frames
from qwen3vl_webui.model.cache import KVCache, SlabFull, Slot, round_up
from qwen3vl_webui.model.decode import Sampler, check
from qwen3vl_webui.model.forward import DeepStack, Run, TextModel
from qwen3vl_webui.model.inputs import Inputs, VisualSpan, encode
from qwen3vl_webui.model.loading import LoadedModel
from qwen3vl_webui.model.rope import Chosen, Rope, Ropes, head_dim_of
from qwen3vl_webui.model.streaming import AnswerText
from qwen3vl_webui.model.vision import ReadFrames, ReadPixels, Vision
from qwen3vl_webui.settings import RopeScaling

log = logging.getLogger(__name__)

CHUNK = {"cuda": 2048, "cpu": 512}  # prompt tokens between two looks at the cancel flag
LEAST_CHUNK = 64
CHUNK_SECONDS = 1.0  # a slower chunk is halved, so that stopping stays prompt on a slow machine
AHEAD = 256  # positions whose cos and sin are computed at once while decoding
RESERVED = 1024  # tokens of answer that are given room before anything is read
ANSWERS_KEPT = 512  # ids of earlier answers, so that the next turn continues the cache to the letter
CGROUP = "/sys/fs/cgroup/memory."
OVERHEAD = 2**30  # bytes of CUDA memory for a prefill chunk and fragmentation (calculated)


@dataclass(frozen=True)
class Prepared:
    inputs: Inputs
    budget: Budget
    chosen: Chosen


class LocalEngine:
    """Answers with the model in `loaded`. `context_length` None: what the positions and the memory give.

    Positions are those trained on; with `rope_scaling` yarn or ntk those it stretches to. `auto` stretches (YaRN) only
    where `context_length` asks for more.
    Media is read by `read_pixels` and `read_frames`, and only when the prompt reaches it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        context_length: int | None = None,
        *,
        rope_scaling: RopeScaling = "auto",
        read_pixels: ReadPixels = read_pixels,
        read_frames: ReadFrames = read_frames,
    ) -> None:
        self._loaded = loaded
        text = loaded.config.text_config
        self._text = TextModel(loaded.model)
        self._ropes = Ropes(text, rope_scaling, loaded.device, loaded.dtype)
        self._vision = Vision(loaded, read_pixels=read_pixels, read_frames=read_frames)
        self._cache = KVCache(
            layers=text.num_hidden_layers,
            kv_heads=text.num_key_value_heads,
            head_dim=head_dim_of(text),
            dtype=loaded.dtype,
            device=loaded.device,
        )
        room = self._memory_free() // self._cache.bytes_per_token
        stretched = rope_scaling in ("yarn", "ntk")
        positions = self._ropes.most_positions if stretched else loaded.trained_positions
        self.context_length = context_length or max(1, min(positions, room))
        self._cache.most_tokens = max(room, round_up(self.context_length))
        self.model = with_context(loaded.info, self.context_length)
        self._forbidden = forbidden_ids(loaded)
        self._chunk = CHUNK[loaded.device.type]
        self._answers: OrderedDict[tuple[str, str], list[int]] = OrderedDict()
        self._answers_lock = threading.Lock()
        self._queue: RequestQueue[Prepared] = RequestQueue()
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    def plan(self, request: GenerationRequest) -> Budget:
        return self._budget(self._encode(request), request.sampling)

    def generate(self, request: GenerationRequest) -> Generator[Event, None, None]:
        check(request.sampling)
        inputs = self._encode(request)
        budget = self._budget(inputs, request.sampling)
        refuse_too_long(budget)
        chosen = self._ropes.choose(request.conversation, budget.positions + budget.answer_tokens)
        yield from self._queue.follow(Work(request, Prepared(inputs, budget, chosen), inputs.tokens))

    def close(self) -> None:
        """Ends what runs and what waits, and joins the inference thread."""
        self._queue.close()
        self._thread.join()

    # What a request costs

    def _encode(self, request: GenerationRequest) -> Inputs:
        with self._answers_lock:
            known = {text: ids for (chat, text), ids in self._answers.items() if chat == request.conversation}
        return encode(request.messages, self._loaded.vocabulary, known_answers=known)

    def _budget(self, inputs: Inputs, sampling: SamplingParams) -> Budget:
        tokens, positions = inputs.tokens, inputs.next_position
        most = self._ropes.most_positions
        answer = max(0, min(sampling.max_tokens, self.context_length - tokens, most - positions))
        budget = Budget(tokens, positions, self.context_length, answer, most_positions=most)
        if self._loaded.device.type != "cuda":
            return budget
        needed = round_up(tokens + answer) * self._cache.bytes_per_token + OVERHEAD
        return replace(budget, memory_bytes=needed, memory_free=self._memory_free() + OVERHEAD)

    def _memory_free(self) -> int:
        """Bytes that keys and values may take, those of idle conversations included."""
        if self._loaded.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._loaded.device)
            unused = torch.cuda.memory_reserved(self._loaded.device) - torch.cuda.memory_allocated(self._loaded.device)
            return max(0, free + unused + self._cache.bytes - OVERHEAD)
        return host_memory_free() // 2  # the page and the decoders live here too

    # The inference thread

    @torch.inference_mode()
    def _serve(self) -> None:
        while (work := self._queue.next()) is not None:
            try:
                self._answer(work)
            except Cancelled:
                log.info("in %s  cancelled", f"{work.total:,}")
            except UserError as error:
                work.tell(error.with_traceback(None))  # a traceback would hold this thread's tensors
            except SlabFull as error:
                work.tell(out_of_memory(error))
            except (torch.OutOfMemoryError, MemoryError) as error:
                self._cache.clear()
                if self._loaded.device.type == "cuda":
                    torch.cuda.empty_cache()
                work.tell(out_of_memory(error))
            except Exception as error:  # the thread serves everyone: one request's failure must not end it
                log.exception("a request failed")
                work.tell(EngineError(f"The model failed on this request ({type(error).__name__}); the log has more."))
            finally:
                self._queue.done()

    def _answer(self, work: Work[Prepared]) -> None:
        work.check()
        started = time.monotonic()
        inputs, chosen = work.plan.inputs, work.plan.chosen
        slot, reused = self._cache.take(inputs.keys, work.request.conversation, chosen.rope.plan.name)
        try:
            last = self._prefill(work, slot, reused)
            read = time.monotonic()
            reason, count = self._decode(work, slot, last)
        finally:
            self._cache.release(slot)
        ended = time.monotonic()
        timings = Timings(started - work.entered, read - started, ended - read)
        ended_by: Literal["stop", "length"] = "stop" if reason == "stop" else "length"
        work.tell(FinishEvent(ended_by, inputs.tokens, reused, count, timings, chosen.sentence))
        log.info(
            "in %s (%s kept)  prefill %s tok/s  out %s  %s tok/s  %s",
            f"{inputs.tokens:,}",
            f"{reused:,}",
            f"{(inputs.tokens - reused) / max(timings.prefill, 1e-9):,.0f}",
            f"{count:,}",
            f"{count / max(timings.decode, 1e-9):,.0f}",
            reason,
        )

    def _prefill(self, work: Work[Prepared], slot: Slot, reused: int) -> torch.Tensor:
        """Reads the prompt from `reused` on, chunk by chunk; the last hidden state (1, hidden)."""
        inputs, device = work.plan.inputs, self._loaded.device
        total = inputs.tokens
        work.tell(PrefillEvent(reused, total))
        self._cache.reserve(slot, total + min(work.plan.budget.answer_tokens, RESERVED))
        missing = [span for span in inputs.spans if span.end > reused]
        with closing(self._vision.features(missing, check=work.check)) as features:
            pictures = Pictures(missing, features)
            last = torch.empty(0)
            while slot.length < total:
                work.check()
                start, end = slot.length, min(total, slot.length + self._chunk)
                rows = self._loaded.embed(torch.from_numpy(inputs.ids[start:end]).to(device))  # (n, hidden)
                deepstack = pictures.place(rows, start, end)
                encoded = time.monotonic()
                cos_sin = work.plan.chosen.rope.cos_sin(torch.from_numpy(inputs.positions[:, start:end]).to(device))
                hidden = self._text.forward(rows, cos_sin, self._cache, [Run(slot, start, end - start)], deepstack)
                last = hidden[-1:]
                slot.keys.frombytes(np.ascontiguousarray(inputs.keys[start:end]).tobytes())
                work.tell(PrefillEvent(end, total))
                self._pace(time.monotonic() - encoded, end - start)
        return last

    def _pace(self, seconds: float, rows: int) -> None:
        """Smaller chunks where one takes long, back to the usual size where they do not."""
        if seconds > CHUNK_SECONDS and rows == self._chunk:
            self._chunk = max(LEAST_CHUNK, self._chunk // 2)
        elif seconds < CHUNK_SECONDS / 4 and rows == self._chunk:
            self._chunk = min(CHUNK[self._loaded.device.type], self._chunk * 2)

    def _decode(self, work: Work[Prepared], slot: Slot, last: torch.Tensor) -> tuple[str, int]:
        """Writes the answer; why it ended and how many tokens it has, the ending one included."""
        loaded, sampling, device = self._loaded, work.request.sampling, self._loaded.device
        logits = self._text.logits(last)[0]  # (vocabulary,)
        sampler = Sampler(sampling, len(logits), device, self._forbidden)
        answer = AnswerText(loaded.vocabulary, sampling.stop)
        turns = self._turns(work.plan.chosen.rope, work.plan.inputs.next_position)
        most, budget, end_think = work.plan.budget.answer_tokens, sampling.thinking_budget, loaded.vocabulary.end_think
        count, reason = 0, ""
        try:
            while not reason:
                work.check()
                if answer.thinking and budget is not None and answer.thinking_tokens >= budget:
                    assert end_think is not None
                    token = end_think
                    sampler.note(token)
                else:
                    token = sampler.draw(logits)
                count += 1
                if token in loaded.eos_ids:
                    reason = "stop"
                    break
                for event in answer.push(token):
                    work.tell(event)
                if answer.stopped or count == most:
                    reason = "stop" if answer.stopped else "length"
                    break
                self._cache.reserve(slot, slot.length + 1)
                rows = loaded.embed(torch.tensor([token], device=device))
                hidden = self._text.forward(rows, next(turns), self._cache, [Run(slot, slot.length, 1)])
                slot.keys.append(token)
                logits = self._text.logits(hidden)[0]
            for event in answer.end():
                work.tell(event)
        finally:
            self._remember(work.request.conversation, answer)
        return reason, count

    def _turns(self, rope: Rope, position: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """cos and sin (1, head_dim) of each text position from `position` on."""
        while True:
            ahead = torch.arange(position, position + AHEAD, device=self._loaded.device).expand(3, -1)
            cos, sin = rope.cos_sin(ahead)
            yield from zip(cos.split(1), sin.split(1), strict=True)
            position += AHEAD

    def _remember(self, conversation: str, answer: AnswerText) -> None:
        if answer.known is None:
            return
        text, ids = answer.known
        with self._answers_lock:
            self._answers[conversation, text] = ids
            self._answers.move_to_end((conversation, text))
            while len(self._answers) > ANSWERS_KEPT:
                self._answers.popitem(last=False)


class Pictures:
    """Hands each prompt chunk the vision features that lie in it; a span may cross the border of two chunks."""

    def __init__(self, spans: Sequence[VisualSpan], features: Iterator[tuple[VisualSpan, torch.Tensor]]) -> None:
        self._coming = deque(spans)
        self._features = features
        self._held: list[tuple[VisualSpan, torch.Tensor]] = []

    def place(self, rows: torch.Tensor, start: int, end: int) -> DeepStack | None:
        """Writes features into the embedded rows (n, hidden) of prompt tokens [start, end); what is added later."""
        while self._coming and self._coming[0].start < end:
            self._coming.popleft()
            self._held.append(next(self._features))
        pieces, indexes = [], []
        for span, features in self._held:
            first, after = max(start, span.start), min(end, span.end)
            if first < after:
                pieces.append(features[:, first - span.start : after - span.start])
                indexes.append(torch.arange(first - start, after - start))
        self._held = [(span, features) for span, features in self._held if span.end > end]
        if not pieces:
            return None
        visual = torch.cat(pieces, 1).to(rows.device, rows.dtype)  # (1 + taps, visual rows, hidden)
        where = torch.cat(indexes).to(rows.device)
        rows.index_copy_(0, where, visual[0])
        return DeepStack(where, list(visual[1:]))


def forbidden_ids(loaded: LoadedModel) -> torch.Tensor:
    """Tokens an answer never holds: pads and marks of vision, the start of a turn, and rows without a token."""
    names = loaded.vocabulary
    control = [names.im_start, names.vision_start, names.vision_end, names.image_pad, names.video_pad]
    control += [names.added[name] for name in ("<|vision_pad|>",) if name in names.added]
    unnamed = range(names.tokenizer.get_vocab_size(with_added_tokens=True), loaded.config.text_config.vocab_size)
    return torch.tensor([*control, *unnamed], device=loaded.device)


def host_memory_free() -> int:
    """Bytes this process may still take; within the container's limit where there is one."""
    meminfo, limit, used = (Path(name) for name in ("/proc/meminfo", CGROUP + "max", CGROUP + "current"))
    if not meminfo.exists():  # macOS tells what is installed, not what is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return max(0, free)


def refuse_too_long(budget: Budget) -> None:
    """Raises TooLong with the numbers and what to do, OutOfMemory when only the memory is short."""
    advice = "Choose a shorter span, fewer pages or smaller pictures, or start a new chat."
    if budget.tokens >= budget.context_length:
        raise TooLong(f"The prompt has {budget.tokens:,} tokens; the model reads {budget.context_length:,}. {advice}")
    if budget.most_positions is not None and budget.positions >= budget.most_positions:
        raise TooLong(
            f"The prompt has {budget.positions:,} positions; the model knows {budget.most_positions:,}. {advice}"
        )
    if not budget.fits:
        assert budget.memory_bytes is not None and budget.memory_free is not None
        raise TooLong(
            f"The prompt and its answer need {budget.memory_bytes / 2**30:.1f} GiB of memory; "
            f"{budget.memory_free / 2**30:.1f} GiB are free. {advice}"
        )


def out_of_memory(error: BaseException) -> OutOfMemory:
    log.warning("out of memory: %s", error)
    return OutOfMemory(
        "There is not enough memory for this prompt now. Choose a shorter span or fewer pages, or try again when other "
        "answers are done."
    )


def with_context(info: ModelInfo, context_length: int) -> ModelInfo:
    """The same model as this engine runs it: the default answers leave room for a prompt."""
    most = max(1, context_length // 4)
    return replace(
        info,
        context_length=context_length,
        sampling=replace(info.sampling, max_tokens=min(info.sampling.max_tokens, most)),
        sampling_text=replace(info.sampling_text, max_tokens=min(info.sampling_text.max_tokens, most)),
    )
