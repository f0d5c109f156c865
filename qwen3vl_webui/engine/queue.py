"""Who is answered next: requests wait by priority, then in the order they came; each can be cancelled at any moment."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qwen3vl_webui.engine.contract import Event, FinishEvent, GenerationRequest, PrefillEvent, TokenEvent
from qwen3vl_webui.errors import EngineError, Overloaded, UserError

HEARTBEAT = 0.25  # seconds; half of what the contract allows
MOST_WAITING = 64
PRIORITIES = {"interactive": 0, "chat": 1, "batch": 2}

Plan = TypeVar("Plan")


class Cancelled(Exception):
    """Nobody waits for this answer any more."""


@dataclass(eq=False)
class Work(Generic[Plan]):
    """One request on its way: the inference thread tells events, the consumer follows them."""

    request: GenerationRequest
    plan: Plan
    total: int  # prompt tokens
    entered: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    events: queue.SimpleQueue[Event | UserError] = field(default_factory=queue.SimpleQueue)
    latest: PrefillEvent | TokenEvent = field(init=False)

    def __post_init__(self) -> None:
        self.latest = PrefillEvent(0, self.total)

    def tell(self, event: Event | UserError) -> None:
        if isinstance(event, PrefillEvent):
            self.latest = event
        elif isinstance(event, TokenEvent):
            self.latest = TokenEvent("", event.thinking)  # a heartbeat between tokens changes no text
        self.events.put(event)

    def check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled


class RequestQueue(Generic[Plan]):
    """One request is answered at a time. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Work[Plan]] = []
        self._running: Work[Plan] | None = None
        self._closed = False

    def follow(self, work: Work[Plan]) -> Generator[Event, None, None]:
        """Enters the queue and yields the events until the FinishEvent; closing cancels the work.

        Raises Overloaded or EngineError before any event, and whatever error the work was told.
        """
        self._enter(work)
        try:
            yield PrefillEvent(0, work.total, self.position(work))
            while True:
                try:
                    event = work.events.get(timeout=HEARTBEAT)
                except queue.Empty:
                    event = work.latest
                if isinstance(event, UserError):
                    raise event
                if isinstance(event, PrefillEvent):
                    event = PrefillEvent(event.done, event.total, self.position(work))
                yield event
                if isinstance(event, FinishEvent):
                    return
        finally:
            self._abandon(work)

    def position(self, work: Work[Plan]) -> int:
        """How many requests stand before this one; 0 when it is being answered."""
        with self._changed:
            if work not in self._waiting:
                return 0
            return self._waiting.index(work) + (self._running is not None)

    def next(self) -> Work[Plan] | None:
        """Blocks until there is work, which is then running until `done`; None when the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            self._running = self._waiting.pop(0)
            for waiting in tuple(self._waiting):
                waiting.tell(waiting.latest)
            return self._running

    def done(self) -> None:
        with self._changed:
            self._running = None
            for waiting in tuple(self._waiting):
                waiting.tell(waiting.latest)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the work that runs and refuses what waits."""
        with self._changed:
            self._closed = True
            ended = [*self._waiting, *([self._running] if self._running else [])]
            self._waiting = []
            for work in ended:
                work.cancelled.set()
                work.tell(EngineError("The server is closing; ask again when it is back."))
            self._changed.notify_all()

    def _enter(self, work: Work[Plan]) -> None:
        with self._changed:
            if self._closed:
                raise EngineError("The server is closing; ask again when it is back.")
            if len(self._waiting) >= MOST_WAITING:
                raise Overloaded(f"{MOST_WAITING} requests wait already; try again in a minute.")
            self._waiting = sorted(
                [*self._waiting, work], key=lambda each: (PRIORITIES[each.request.priority], each.entered)
            )
            self._changed.notify_all()

    def _abandon(self, work: Work[Plan]) -> None:
        with self._changed:
            work.cancelled.set()
            if work in self._waiting:
                self._waiting.remove(work)
                for waiting in tuple(self._waiting):
                    waiting.tell(waiting.latest)
