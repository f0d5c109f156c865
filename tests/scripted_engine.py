"""An engine that answers from a script, without torch: it keeps the contract and can be held, stopped and broken.

ScriptedEngine("Hello.")                          every request is answered "Hello."
ScriptedEngine(["Hel", "lo."])                    the same, in these pieces (one piece is one token)
ScriptedEngine(lambda request: "at <12.5 seconds>")
ScriptedEngine("Hello.", thinking="Hm.")          reasoning first
ScriptedEngine("la ", endless=True)               sings until stopped or out of max_tokens
engine = ScriptedEngine("Hello.", gate=Gate(prefill=True)); ...; engine.gate.reached.wait(5); engine.gate.release()
engine = ScriptedEngine("a b c", gate=Gate(after=2))   held after two tokens
ScriptedEngine(refuse=TooLong("..."))             raised before the first event
ScriptedEngine("a b c", fail=EngineError("..."), fail_after=2)
ScriptedEngine(alike=lambda plan, question: ...)  what `likeness` tells; without it the engine cannot tell
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle

from qwen3vl_webui.engine.contract import (
    Budget,
    Event,
    FinishEvent,
    GenerationRequest,
    Message,
    ModelInfo,
    PrefillEvent,
    SamplingParams,
    Timings,
    TokenEvent,
)
from qwen3vl_webui.errors import EngineError, TooLong, UserError
from qwen3vl_webui.media.values import FramePlan, Image, Part

Script = str | Iterable[str] | Callable[[GenerationRequest], str | Iterable[str]]

HEARTBEAT = 0.05  # seconds; far below the half second of the contract, so that a close is seen at once


@dataclass
class Gate:
    """Holds requests in prefill, or after `after` tokens of the answer, until `release()`; with `only` just some.

    `reached` is set as soon as a request stands at the gate.
    """

    prefill: bool = False
    after: int | None = None
    only: Callable[[GenerationRequest], bool] | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self.released.set()

    def hold_again(self) -> None:
        self.reached.clear()
        self.released.clear()


def split(text: str) -> list[str]:
    """Text in pieces about as long as tokens; joined they are the text again."""
    return re.findall(r"\s*[^\s]{1,4}|\s+", text)


def count_tokens(part: Part) -> int:
    """Text is counted at four characters a token, pictures and frames exactly."""
    match part:
        case str():
            return -(-len(part) // 4)
        case Image():
            return part.tokens + 2
        case FramePlan():
            return part.tokens + len(part.patches) * 12 + sum(-(-len(caption) // 4) for caption in part.captions)


def count_positions(part: Part) -> int:
    match part:
        case str():
            return -(-len(part) // 4)
        case Image():
            return max(part.grid) + 2
        case FramePlan():
            return len(part.patches) * (max(part.grid) + 12)


def count_message(message: Message) -> int:
    return 5 + sum(count_tokens(part) for part in message.parts)


class ScriptedEngine:
    """`requests`: all accepted, in order. `stopped`: those closed before their end. `finished`: those answered whole.

    `running` is the request being answered (None: idle), `waiting` how many stand behind it. `wait_for(condition)`
    blocks until a change makes the condition true. All options are attributes and may be changed between requests.
    """

    def __init__(
        self,
        script: Script = "Hello from the script.",
        *,
        thinking: str = "",
        endless: bool = False,
        gate: Gate | None = None,
        note: str = "",
        seconds_left: float | None = None,
        pace: float = 0.0,
        refuse: UserError | None = None,
        fail: UserError | None = None,
        fail_after: int = 0,
        context_length: int = 262_144,
        model: ModelInfo | None = None,
        alike: Callable[[FramePlan, str], tuple[float, ...]] | None = None,
    ) -> None:
        self.script = script
        self.alike = alike
        self.thinking = thinking
        self.endless = endless
        self.gate = gate or Gate()
        self.seconds_left = seconds_left  # what a request held in prefill tells
        self.note = note  # what the FinishEvent tells the person
        self.pace = pace  # seconds between tokens; for looking at the page by eye, not for tests
        self.refuse = refuse
        self.fail = fail
        self.fail_after = fail_after
        self.model = model or ModelInfo(
            name="scripted",
            checkpoint="tests/scripted_engine.py",
            context_length=context_length,
            thinking=bool(thinking),
            sampling_text=SamplingParams(temperature=1.0, top_p=1.0, top_k=40, presence_penalty=2.0),
        )
        self.context_length = context_length
        self.requests: list[GenerationRequest] = []
        self.stopped: list[GenerationRequest] = []
        self.finished: list[GenerationRequest] = []
        self.closed = False
        self._changed = threading.Condition()
        self._queue: list[object] = []
        self._running: GenerationRequest | None = None
        self._read: dict[str, tuple[Message, ...]] = {}

    @property
    def running(self) -> GenerationRequest | None:
        return self._running

    @property
    def waiting(self) -> int:
        return max(0, len(self._queue) - 1)

    def wait_for(self, condition: Callable[[], object], timeout: float = 10.0) -> bool:
        with self._changed:
            return bool(self._changed.wait_for(condition, timeout))

    def plan(self, request: GenerationRequest) -> Budget:
        tokens = 3 + sum(count_message(message) for message in request.messages)
        positions = 3 + sum(5 + sum(map(count_positions, message.parts)) for message in request.messages)
        left = max(0, self.context_length - tokens)
        return Budget(tokens, positions, self.context_length, min(request.sampling.max_tokens, left))

    def likeness(self, plan: FramePlan, question: str) -> tuple[float, ...]:
        return self.alike(plan, question) if self.alike else ()

    def generate(self, request: GenerationRequest) -> Generator[Event, None, None]:
        budget = self.plan(request)
        if self.refuse is not None:
            raise self.refuse
        if not budget.fits:
            raise TooLong(
                f"The prompt has {budget.tokens:,} tokens; the model reads {budget.context_length:,}. "
                "Choose a shorter span, fewer pages or smaller pictures."
            )
        ticket = object()
        with self._changed:
            if self.closed:
                raise EngineError("The engine is closed.")
            self.requests.append(request)
            self._queue.append(ticket)
            self._changed.notify_all()
        try:
            yield from self._answer(request, budget, ticket)
            self.finished.append(request)
        except GeneratorExit:
            self.stopped.append(request)
            raise
        finally:
            with self._changed:
                self._queue.remove(ticket)
                if self._running is request:
                    self._running = None
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _answer(self, request: GenerationRequest, budget: Budget, ticket: object) -> Iterator[Event]:
        total, entered = budget.tokens, time.monotonic()
        yield PrefillEvent(0, total, self._queue.index(ticket))
        while (ahead := self._queue.index(ticket)) > 0:
            self._check_open()
            with self._changed:
                self._changed.wait_for(lambda: self._queue.index(ticket) < ahead or self.closed, HEARTBEAT)
            yield PrefillEvent(0, total, self._queue.index(ticket))
        with self._changed:
            self._running = request
            self._changed.notify_all()

        started = time.monotonic()
        reused = self._reused(request)
        yield PrefillEvent(reused, total)
        if self.gate.prefill:
            half = PrefillEvent((reused + total) // 2, total, seconds_left=self.seconds_left)
            yield from self._hold(request, half)
        yield PrefillEvent(total, total)
        self._read[request.conversation] = request.messages

        read = time.monotonic()
        done = 0
        reason = "stop"
        for event in self._tokens(request):
            self._check_open()
            if self.fail is not None and done >= self.fail_after:
                raise self.fail
            if done == budget.answer_tokens:
                reason = "length"
                break
            if self.gate.after == done:
                yield from self._hold(request, TokenEvent("") if done else PrefillEvent(total, total))
            if self.pace:
                time.sleep(self.pace)
            done += 1
            yield event
        else:
            if self.fail is not None:
                raise self.fail
            if self.gate.after == done:
                yield from self._hold(request, TokenEvent("") if done else PrefillEvent(total, total))
        now = time.monotonic()
        timings = Timings(queued=started - entered, prefill=read - started, decode=now - read)
        yield FinishEvent("stop" if reason == "stop" else "length", total, reused, done, timings, self.note)

    def _tokens(self, request: GenerationRequest) -> Iterator[TokenEvent]:
        yield from (TokenEvent(piece, thinking=True) for piece in split(self.thinking))
        script = self.script(request) if callable(self.script) else self.script
        pieces = split(script) if isinstance(script, str) else list(script)
        if self.endless:
            yield from map(TokenEvent, cycle(pieces))
        text = "".join(pieces)
        ends = [at for stop in request.sampling.stop if (at := text.find(stop)) >= 0]
        left = min(ends, default=len(text))
        for piece in pieces:
            if left > 0:
                yield TokenEvent(piece[:left])
            left -= len(piece)

    def _hold(self, request: GenerationRequest, heartbeat: Event) -> Iterator[Event]:
        if self.gate.only is not None and not self.gate.only(request):
            return
        self.gate.reached.set()
        while not self.gate.released.wait(HEARTBEAT):
            self._check_open()
            yield heartbeat

    def _check_open(self) -> None:
        if self.closed:
            raise EngineError("The engine was closed while it answered.")

    def _reused(self, request: GenerationRequest) -> int:
        before = self._read.get(request.conversation, ())
        shared = 0
        for old, new in zip(before, request.messages, strict=False):
            if old != new:
                break
            shared += count_message(new)
        return shared
