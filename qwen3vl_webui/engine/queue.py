"""Who is answered next: by priority, then each conversation in its turn; everyone can leave at any moment.

Who has waited long counts as more urgent, one class for each minute: whatever keeps coming, everybody is answered.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from qwen3vl_webui.engine.contract import Event, FinishEvent, GenerationRequest, PrefillEvent, TokenEvent
from qwen3vl_webui.errors import EngineError, Overloaded, UserError

HEARTBEAT = 0.25  # seconds; half of what the contract allows
MOST_WAITING = 64
PRIORITIES = {"interactive": 0, "chat": 1, "batch": 2}
PATIENCE = 60.0  # seconds

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

    @property
    def rank(self) -> int:
        """Of its priority; the smaller goes first."""
        return PRIORITIES[self.request.priority]

    def rank_since(self, served: float) -> int:
        """As `rank`, when nothing was done for it since time.monotonic() was `served`."""
        return max(0, self.rank - int((time.monotonic() - served) / PATIENCE))

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
    """`places` requests are answered at a time. Thread-safe.

    Requests of one conversation take turns with those of others: its second comes after everyone's first. Batches leave
    one place free, so that a person never waits for four of them. `news` is set whenever something happened that the
    inference thread should look at: a request came or left, or the queue was closed.
    """

    def __init__(self, places: int = 1) -> None:
        self.places = places
        self.news = threading.Event()
        self._lock = threading.RLock()
        self._waiting: list[Work[Plan]] = []  # as they came
        self._running: list[Work[Plan]] = []
        self._held_back = False  # the first one waits for memory
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

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
                    event = replace(event, waiting=self.position(work))
                yield event
                if isinstance(event, FinishEvent):
                    return
        finally:
            self._abandon(work)

    def position(self, work: Work[Plan]) -> int:
        """How many requests stand before this one; 0 when it is being answered."""
        with self._lock:
            order = self._order()
            if work not in order:
                return 0
            batches = work.request.priority == "batch" and not self._batch_may_run()
            full = len(self._running) >= self.places or self._held_back or batches
            return order.index(work) + full

    def take(self, admits: Callable[[Work[Plan]], bool] = lambda work: True) -> Work[Plan] | None:
        """The next request, which is then running until `done`; None when nobody waits or may run yet.

        `admits` tells whether there is memory for the first in the queue; nobody overtakes it meanwhile.
        """
        with self._lock:
            first = next(iter(self._order()), None)
            if first is None or len(self._running) >= self.places:
                return None
            if first.request.priority == "batch" and not self._batch_may_run():
                return None
            self._held_back = bool(self._running) and not admits(first)
            if self._held_back:
                return None
            self._waiting.remove(first)
            self._running.append(first)
            self._tell_waiting()
            return first

    def done(self, work: Work[Plan]) -> None:
        with self._lock:
            self._running.remove(work)
            self._held_back = False
            self._tell_waiting()

    def close(self) -> None:
        """Ends the work that runs and refuses what waits."""
        with self._lock:
            self._closed = True
            ended = [*self._waiting, *self._running]
            self._waiting = []
            for work in ended:
                work.cancelled.set()
                work.tell(EngineError("The server is closing; ask again when it is back."))
        self.news.set()

    def _order(self) -> list[Work[Plan]]:
        """Those who wait, the next one first."""
        turns = Counter(work.request.conversation for work in self._running)
        batches = self._batch_may_run()
        keyed = []
        for work in self._waiting:
            conversation = work.request.conversation
            barred = work.request.priority == "batch" and not batches  # it must not stand before those who may run
            keyed.append(((barred, work.rank_since(work.entered), turns[conversation], work.entered), work))
            turns[conversation] += 1
        return [work for _, work in sorted(keyed, key=lambda pair: pair[0])]

    def _batch_may_run(self) -> bool:
        batches = sum(work.request.priority == "batch" for work in self._running)
        return batches < max(1, self.places - 1)

    def _tell_waiting(self) -> None:
        """Wakes those who wait, who then ask for their place."""
        for waiting in self._waiting:
            waiting.tell(waiting.latest)

    def _enter(self, work: Work[Plan]) -> None:
        with self._lock:
            if self._closed:
                raise EngineError("The server is closing; ask again when it is back.")
            if len(self._waiting) >= MOST_WAITING:
                raise Overloaded(f"{MOST_WAITING} requests wait already; try again in a minute.")
            self._waiting.append(work)
        self.news.set()

    def _abandon(self, work: Work[Plan]) -> None:
        with self._lock:
            work.cancelled.set()
            if work in self._waiting:
                self._waiting.remove(work)
                self._tell_waiting()
        self.news.set()
