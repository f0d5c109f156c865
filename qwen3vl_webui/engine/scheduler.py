"""The inference thread: up to four requests at once, one forward pass per step for all of them.

A step reads at most one chunk of one prompt and writes one token of every answer. A prompt and the answers share the
time by halves, so that nobody stalls while a long video is read, and the video is not starved by those who talk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import chain

import numpy as np
import torch

from qwen3vl_webui.engine.contract import FinishEvent, PrefillEvent, Timings
from qwen3vl_webui.engine.queue import RequestQueue, Work
from qwen3vl_webui.engine.running import Prepared, Running
from qwen3vl_webui.errors import EngineError, OutOfMemory, UserError
from qwen3vl_webui.model.cache import KVCache, SlabFull
from qwen3vl_webui.model.drafts import Drafts
from qwen3vl_webui.model.forward import Run, TextModel
from qwen3vl_webui.model.graphs import GUESSING, Decoder, Next
from qwen3vl_webui.model.loading import LoadedModel
from qwen3vl_webui.model.planner import round_up, weight_bytes
from qwen3vl_webui.model.reading import Chunk, PromptReading
from qwen3vl_webui.model.streaming import AnswerText
from qwen3vl_webui.model.vision import Vision
from qwen3vl_webui.model.writing import AnswerWriting

log = logging.getLogger(__name__)

CHUNK = {"cuda": 2048, "cpu": 512}  # most prompt tokens of one step
LEAST_CHUNK = 64
CHUNK_SECONDS = 1.0  # what a chunk may take when nobody else is being answered, so that stopping stays prompt
SHARED_SECONDS = 0.25  # ... when others are: they wait for it at each token
WRITING_SHARE = 1.0  # seconds of writing for each second of reading, while there is both
RESERVED = 1024  # tokens of answer that are given room before anything is read
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class Scheduler:
    """Answers what comes through `queue`. `remember` is given the text of every answer that ends, however it does."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        text: TextModel,
        vision: Vision,
        cache: KVCache,
        queue: RequestQueue[Prepared],
        forbidden: torch.Tensor,
        remember: Callable[[str, AnswerText], None],
    ) -> None:
        self.loaded = loaded
        self.eos_ids = loaded.eos_ids
        self._text, self._vision, self._cache = text, vision, cache
        self._queue, self._forbidden, self._remember = queue, forbidden, remember
        self._running: list[Running] = []
        self._threads: list[threading.Thread] = []
        self._steps = 0
        self._rate: float | None = None  # prompt tokens a second, of late
        self._most_chunk = CHUNK[loaded.device.type]
        self._decoder: Decoder | None = None  # made on the inference thread
        self._never = forbidden.cpu().numpy()
        # A guess that proves wrong leaves rows behind; a format that works in groups of tokens may not have them.
        self.drafting = cache.format.group == 1
        self._weight_bytes = weight_bytes(loaded.shape, loaded.weights, loaded.dtype.itemsize)
        self._owed = 0.0  # seconds of writing before the next chunk
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """After the queue was closed: waits until nothing runs, decoders included."""
        self._thread.join()
        for thread in self._threads:
            thread.join()

    @torch.inference_mode()
    def _serve(self) -> None:
        if self._cache.kernel is not None:
            self._decoder = Decoder(
                self._text,
                self.loaded.embed,
                self._cache,
                vocabulary_size=self.loaded.config.text_config.vocab_size,
                forbidden=self._forbidden,
                dtype=self.loaded.dtype,
                most=self._cache.most_slots,
            )
        while True:
            self._queue.news.clear()
            for running in [running for running in self._running if running.work.cancelled.is_set()]:
                log.info("in %s  cancelled", f"{running.work.total:,}")
                self._leave(running)
            self._admit()
            if self._step():
                continue
            if self._queue.closed and not self._running:
                return
            self._queue.news.wait()

    # Who is answered

    def _admit(self) -> None:
        while (work := self._queue.take(self._has_memory)) is not None:
            try:
                self._running.append(self._begin(work))
            except Exception as error:  # the thread serves everyone: one request's failure must not end it
                if isinstance(error, OUT_OF_MEMORY):
                    self._make_room()
                self._queue.done(work)
                work.tell(refusal(error))

    def _has_memory(self, work: Work[Prepared]) -> bool:
        """Whether every answer can be written to its end when this one comes in: else it waits for one to leave."""
        most = self._cache.most_tokens
        longest = max(each.plan.tokens for each in [work, *(running.work for running in self._running)])
        return most is None or (len(self._running) + 1) * round_up(longest) <= most

    def _begin(self, work: Work[Prepared]) -> Running:
        inputs, loaded = work.plan.inputs, self.loaded
        given = inputs.keys, work.request.conversation, work.plan.chosen.rope.plan.name
        try:
            slot, reused = self._cache.take(*given)
        except SlabFull:  # all slots are as long as the longest was, which may be gone
            self._cache.clear()
            slot, reused = self._cache.take(*given)
        try:
            self._cache.reserve(slot, inputs.tokens + min(work.plan.budget.answer_tokens, RESERVED))
            reading = PromptReading(
                inputs,
                reused,
                embed=loaded.embed,
                make=lambda spans, check: self._vision.features(spans, check=check),
                news=self._queue.news.set,
                device=loaded.device,
                growth=loaded.shape.growth,
            )
            self._watch(reading)
        except BaseException:
            self._cache.release(slot)
            raise
        writing = AnswerWriting(
            work.request.sampling,
            loaded.vocabulary,
            self.eos_ids,
            most_tokens=work.plan.budget.answer_tokens,
            vocabulary_size=loaded.config.text_config.vocab_size,
            device=loaded.device,
            forbidden=self._forbidden,
        )
        work.tell(PrefillEvent(reused, inputs.tokens))
        return Running(work, slot, reused, reading, writing)

    def _watch(self, reading: PromptReading) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if reading.thread is not None:
            self._threads.append(reading.thread)

    def _leave(self, running: Running) -> None:
        """Its place and its slot are free; what was read and written stays for the next turn."""
        if running.reading is not None:
            running.reading.close()
        self._remember(running.work.request.conversation, running.writing.text)
        self._cache.release(running.slot)
        self._running.remove(running)
        if not self._running:
            self._most_chunk = CHUNK[self.loaded.device.type]
        self._queue.done(running.work)

    def _fail(self, running: Running, error: BaseException) -> None:
        self._leave(running)
        running.work.tell(refusal(error))

    # One step

    def _step(self) -> bool:
        """False when there is nothing to do until there is news."""
        writers = [running for running in self._running if running.reading is None]
        reader = self._next_reader(writers)
        if reader is None and not writers:
            return False
        self._steps += 1
        began = time.monotonic()
        rows = self._chunk_rows(bool(writers)) if reader is not None else 0
        self._advance(reader, rows, writers)
        seconds = time.monotonic() - began
        if reader is None:
            self._owed -= seconds
        else:
            before = any(writer.priority <= reader.priority for writer in writers)
            self._owed = seconds * WRITING_SHARE if before else 0.0  # those who go first do not wait for others' tokens
        return True

    def _next_reader(self, writers: list[Running]) -> Running | None:
        """Of the highest priority whose pictures are ready, the one that has waited longest for its chunk."""
        rows = self._chunk_rows(bool(writers))
        readers = [running for running in self._running if running.reading is not None and running.reading.ready(rows)]
        if not readers:
            return None
        first = min(readers, key=lambda running: (running.priority, running.served))
        wait = self._owed > 0 and any(writer.priority <= first.priority for writer in writers)
        return None if wait else first

    def _chunk_rows(self, shared: bool) -> int:
        """Prompt tokens of the next chunk, so that it takes about as long as it may."""
        most = self._most_chunk
        if self._rate is None:
            return max(LEAST_CHUNK, most // 4) if shared else most
        rows = int(self._rate * (SHARED_SECONDS if shared else CHUNK_SECONDS))
        return max(LEAST_CHUNK, min(most, rows // LEAST_CHUNK * LEAST_CHUNK))

    def _advance(self, reader: Running | None, rows: int, writers: list[Running]) -> None:
        """One forward pass for all; when it fails, smaller and then one by one, so that only who causes it fails."""
        try:
            return self._forward(reader, rows, writers)
        except OUT_OF_MEMORY as error:
            log.warning("out of memory, once more with less: %s", error)
            self._make_room()
            rows = max(1, rows // 2)
            self._most_chunk = max(LEAST_CHUNK, self._most_chunk // 2)
        except Exception as error:  # told apart below
            if not isinstance(error, UserError | SlabFull):
                log.warning("a step failed, once more one by one: %s: %s", type(error).__name__, error)
        for writer in writers:
            self._alone(writer, None, 0, [writer])
        if reader is not None:
            self._alone(reader, reader, rows, [])

    def _alone(self, running: Running, reader: Running | None, rows: int, writers: list[Running]) -> None:
        try:
            self._forward(reader, rows, writers)
        except Exception as error:  # the thread serves everyone: one request's failure must not end it
            if isinstance(error, OUT_OF_MEMORY):
                self._make_room()
                if running.reading is not None and running.reading.failed and not running.retried:
                    running.retried = True
                    running.reading.restart()  # its pictures were what was too much
                    self._watch(running.reading)
                    return
            self._fail(running, error)

    def _make_room(self) -> None:
        self._cache.clear()
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(self, reader: Running | None, rows: int, writers: list[Running]) -> None:
        """Nothing of any request has changed when this raises."""
        drafts = [self._draft(writer) for writer in writers]
        if self._decoder is not None and reader is None and not any(drafts):
            return self._write_together(self._decoder, writers)
        if self._decoder is not None and reader is None and self._few_and_short(writers, drafts):
            return self._check_together(self._decoder, writers, drafts)
        embedded, cos_sin, runs = [], [], []
        chunk: Chunk | None = None
        began = time.monotonic()
        if reader is not None:
            assert reader.reading is not None
            chunk = reader.reading.chunk(rows)
            self._cache.reserve(reader.slot, chunk.end)  # after memory ran out it may be gone
            embedded.append(chunk.rows)
            cos_sin.append(reader.work.plan.chosen.rope.cos_sin(chunk.positions))
            runs.append(Run(reader.slot, chunk.start, chunk.end - chunk.start))
        for writer, draft in zip(writers, drafts, strict=True):
            count = 1 + len(draft)
            self._cache.reserve(writer.slot, writer.slot.length + count)
            cos_sin.append(writer.turns(count))
            runs.append(Run(writer.slot, writer.slot.length, count))
        if writers:
            tokens = [[writer.writing.ids[-1], *draft] for writer, draft in zip(writers, drafts, strict=True)]
            ids = torch.tensor(list(chain.from_iterable(tokens)), device=self.loaded.device)
            embedded.append(self.loaded.embed(ids))  # (n, hidden)
        cos, sin = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*cos_sin, strict=True))
        hidden = self._text.forward(
            torch.cat(embedded) if len(embedded) > 1 else embedded[0],
            (cos, sin),
            self._cache,
            runs,
            chunk.deepstack if chunk is not None else None,
        )
        ready = list(zip(writers, drafts, strict=True))
        if reader is not None and chunk is not None:
            read = chunk.end - chunk.start
            whole = chunk.end == reader.work.total
            hidden = hidden[read - 1 :] if whole else hidden[read:]  # only the last row of a prompt is looked at
            ready = [(reader, []), *ready] if whole else ready
        logits = self._text.logits(hidden) if ready else torch.empty(0)  # (n, vocabulary)
        if reader is not None and chunk is not None:
            if self.loaded.device.type == "cuda":
                torch.cuda.synchronize()
            self._was_read(reader, chunk, time.monotonic() - began)
        for writer in writers:
            writer.slot.keys.append(writer.writing.ids[-1])
        self._write_each(ready, logits)

    def _write_each(self, ready: list[tuple[Running, list[int]]], logits: torch.Tensor) -> None:
        """`logits` (rows, vocabulary): of each the row of its last token, then those of what was guessed after it."""
        for (running, draft), rows_of in zip(ready, logits.split([1 + len(draft) for _, draft in ready]), strict=True):
            try:
                self._write(running, rows_of, draft)
            except Exception as error:  # the others of this step are whole
                self._fail(running, error)

    def _write_together(self, decoder: Decoder, writers: list[Running]) -> None:
        """As `_forward` for one row of each; most of the tokens are drawn there too."""
        for writer in writers:
            self._cache.reserve(writer.slot, writer.slot.length + 1)
        answers = []
        for writer in writers:
            sampler = writer.writing.sampler if writer.writing.few else None
            answers.append(Next(writer.writing.ids[-1], writer.slot, writer.turns(1), sampler))
        tokens, logits = decoder.step(answers)
        for writer in writers:
            writer.slot.keys.append(writer.writing.ids[-1])
        for writer, answer, token, row in zip(writers, answers, tokens, logits, strict=True):
            try:
                self._write(writer, row[None], [], token if answer.sampler is not None else None)
            except Exception as error:  # the others of this step are whole
                self._fail(writer, error)

    def _few_and_short(self, writers: list[Running], drafts: list[list[int]]) -> bool:
        """Whether guesses are read in the step that is recorded. There each row reads its whole conversation anew,
        which must not be more than reading the weights once more; and the slab must have room as it is."""
        rows = sum(1 + len(draft) for draft in drafts)
        padded = next((count for count in GUESSING if count >= rows), None)
        longest = max(writer.slot.length for writer in writers)
        if padded is None or longest + padded > self._cache.capacity:
            return False
        return (padded - len(writers)) * longest * self._cache.bytes_per_token <= self._weight_bytes

    def _check_together(self, decoder: Decoder, writers: list[Running], drafts: list[list[int]]) -> None:
        """As `_forward` for the last token of each and what was guessed after it."""
        rows: list[Next] = []
        for writer, draft in zip(writers, drafts, strict=True):
            tokens = [writer.writing.ids[-1], *draft]
            turns = zip(*(part.split(1) for part in writer.turns(len(tokens))), strict=True)
            for ahead, (token, (cos, sin)) in enumerate(zip(tokens, turns, strict=True)):
                rows.append(Next(token, writer.slot, (cos, sin), None, ahead))
        logits = decoder.check(rows)
        for writer in writers:
            writer.slot.keys.append(writer.writing.ids[-1])
        self._write_each(list(zip(writers, drafts, strict=True)), logits)

    def _was_read(self, reader: Running, chunk: Chunk, seconds: float) -> None:
        assert reader.reading is not None
        reader.slot.keys.frombytes(np.ascontiguousarray(chunk.keys).tobytes())
        reader.reading.advance(chunk.end)
        reader.served, reader.waits_since = self._steps, time.monotonic()
        rate = (chunk.end - chunk.start) / max(seconds, 1e-6)
        if chunk.end - chunk.start >= LEAST_CHUNK or self._rate is None:
            self._rate = rate if self._rate is None else 0.5 * (self._rate + rate)
        reader.work.tell(PrefillEvent(chunk.end, reader.work.total, seconds_left=reader.reading.seconds_left))
        if chunk.end == reader.work.total:
            reader.reading.close()
            reader.reading = None
            reader.read = time.monotonic()

    def _draft(self, writer: Running) -> list[int]:
        """What the answer may say next, to be read along with its last token."""
        if not self.drafting:
            return []
        writing = writer.writing
        if writer.drafts is None:
            writer.drafts = Drafts(writer.work.plan.inputs.ids, self._never)
        return writer.drafts.guess(writing.ids, writing.most_tokens - len(writing.ids) - 1)

    def _write(self, running: Running, logits: torch.Tensor, draft: list[int], token: int | None = None) -> None:
        """The next token of an answer, and those after it as far as `draft` guessed right; its end when it has come.

        `logits` (1 + guessed, vocabulary) follow the last token and each guessed one; `token` was drawn already.
        """
        work, writing = running.work, running.writing
        right = 0
        while True:
            for event in writing.draw(logits[right]) if token is None else writing.take(token):
                work.tell(event)
            wanted = work.total + len(writing.ids) == running.slot.length + 1  # nothing ended, nothing was cut off
            if writing.reason or right == len(draft) or not wanted or writing.ids[-1] != draft[right]:
                break
            running.slot.keys.append(draft[right])
            right += 1
        if draft and running.drafts is not None:
            running.drafts.learn(right, len(draft))
        if running.slot.length > work.total + len(writing.ids):  # a loop was cut off: its last token is read again
            self._cache.rewind(running.slot, work.total + len(writing.ids) - 1)
        if not writing.reason:
            return
        self._leave(running)
        ended = time.monotonic()
        inputs, reused = work.plan.inputs, running.reused
        timings = Timings(running.started - work.entered, running.read - running.started, ended - running.read)
        note = "\n".join(filter(None, (work.plan.chosen.sentence, writing.sentence)))
        work.tell(FinishEvent(writing.reason, inputs.tokens, reused, writing.count, timings, note))
        log.info(
            "in %s (%s kept)  prefill %s tok/s  out %s  %s tok/s  %s",
            f"{inputs.tokens:,}",
            f"{reused:,}",
            f"{(inputs.tokens - reused) / max(timings.prefill, 1e-9):,.0f}",
            f"{writing.count:,}",
            f"{writing.count / max(timings.decode, 1e-9):,.0f}",
            writing.reason,
        )


def refusal(error: BaseException) -> UserError:
    """What its consumer is told; a traceback would hold the inference thread's tensors."""
    if isinstance(error, UserError):
        return error.with_traceback(None)
    if isinstance(error, (SlabFull, *OUT_OF_MEMORY)):
        return out_of_memory(error)
    log.error("a request failed", exc_info=error)
    return EngineError(f"The model failed on this request ({type(error).__name__}); the log has more.")


def out_of_memory(error: BaseException) -> OutOfMemory:
    log.warning("out of memory: %s", error)
    return OutOfMemory(
        "There is not enough memory for this prompt now. Choose a shorter span or fewer pages, or try again when other "
        "answers are done."
    )
