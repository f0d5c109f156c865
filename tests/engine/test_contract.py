"""What `engine/contract.py` promises, held by every engine."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from queue import SimpleQueue

import numpy as np
import pytest

from qwen3vl_webui.engine.contract import (
    Engine,
    Event,
    FinishEvent,
    GenerationRequest,
    PrefillEvent,
    TokenEvent,
)
from qwen3vl_webui.errors import EngineError, MediaError, TooLong, UserError
from qwen3vl_webui.media.values import Image
from tests.engine.conftest import GREEDY, Open, ask, finish_of, picture, read_pixels, text_of
from tests.scripted_engine import Gate, ScriptedEngine

LONG = replace(GREEDY, max_tokens=1500)


@dataclass
class Subject:
    """An engine whose `held` request stands in prefill until `release` is set, and whose `broken` one fails.

    It answers `places` requests at a time.
    """

    engine: Engine
    held: GenerationRequest
    reached: threading.Event
    release: threading.Event
    broken: GenerationRequest
    failure: type[UserError]
    places: int = 1

    def fill(self) -> list[Consumer]:
        """Every place is taken until `release`."""
        consumers = [Consumer(self.engine, self.held) for _ in range(self.places)]
        assert self.reached.wait(20)
        for consumer in consumers:
            consumer.wait_for(lambda event: isinstance(event, PrefillEvent) and event.waiting == 0)
        return consumers


def scripted() -> Iterator[Subject]:
    held, broken = ask(picture("held")), ask(picture("broken"))

    def script(request: GenerationRequest) -> str:
        if request == broken:
            raise MediaError("This picture cannot be read; upload it again.")
        return "la "

    gate = Gate(prefill=True, only=lambda request: request == held)
    engine = ScriptedEngine(script, endless=True, gate=gate, context_length=4096)
    yield Subject(engine, held, gate.reached, gate.released, broken, MediaError)
    engine.close()


def local(open_engine: Open) -> Iterator[Subject]:
    reached, release = threading.Event(), threading.Event()

    def read(image: Image) -> np.ndarray:
        if image.digest == "held":
            reached.set()
            assert release.wait(30)
        if image.digest == "broken":
            raise MediaError("This picture cannot be read; upload it again.")
        return read_pixels(image)

    engine = open_engine(endless=True, read_pixels=read, context_length=4096)
    yield Subject(engine, ask(picture("held")), reached, release, ask(picture("broken")), MediaError, places=4)
    release.set()


@pytest.fixture(params=["scripted", "local"])
def subject(request: pytest.FixtureRequest, open_engine: Open) -> Iterator[Subject]:
    yield from scripted() if request.param == "scripted" else local(open_engine)


class Consumer(threading.Thread):
    """Drains a request in a thread; `events` arrive with the second they came."""

    def __init__(self, engine: Engine, request: GenerationRequest) -> None:
        super().__init__(daemon=True)
        self.engine, self.request = engine, request
        self.arrived: SimpleQueue[tuple[float, Event]] = SimpleQueue()
        self.events: list[Event] = []
        self.error: UserError | None = None
        self.start()

    def run(self) -> None:
        try:
            for event in self.engine.generate(self.request):
                self.events.append(event)
                self.arrived.put((time.monotonic(), event))
        except UserError as error:
            self.error = error

    def wait_for(self, wanted: Callable[[Event], bool]) -> Event:
        while True:
            _, event = self.arrived.get(timeout=20)
            if wanted(event):
                return event

    def whole(self) -> list[Event]:
        self.join(30)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        return self.events


def test_prefill_comes_first_then_tokens_then_one_finish(subject: Subject) -> None:
    events = list(subject.engine.generate(ask("Sing.")))
    kinds = [type(event) for event in events]
    assert kinds[0] is PrefillEvent
    assert kinds[-1] is FinishEvent and kinds.count(FinishEvent) == 1
    first_token = kinds.index(TokenEvent)
    assert set(kinds[:first_token]) == {PrefillEvent}
    assert set(kinds[first_token:-1]) == {TokenEvent}
    assert text_of(events)


def test_prefill_counts_up_to_the_planned_tokens(subject: Subject) -> None:
    request = ask("Sing about this.", picture("a"), "Loudly.")
    planned = subject.engine.plan(request)
    events = list(subject.engine.generate(request))
    reads = [event for event in events if isinstance(event, PrefillEvent)]
    assert {event.total for event in reads} == {planned.tokens}
    assert [event.done for event in reads] == sorted(event.done for event in reads)
    assert reads[-1].done == planned.tokens
    assert all(event.seconds_left is None or event.seconds_left >= 0 for event in reads)
    assert finish_of(events).prompt_tokens == planned.tokens


def test_an_answer_ends_at_max_tokens_with_reason_length(subject: Subject) -> None:
    finish = finish_of(list(subject.engine.generate(ask("Sing.", sampling=replace(GREEDY, max_tokens=5)))))
    assert (finish.reason, finish.completion_tokens) == ("length", 5)


def test_a_prompt_that_is_too_long_is_refused_before_any_event(subject: Subject) -> None:
    request = ask("so " * 20_000)
    assert not subject.engine.plan(request).fits
    with pytest.raises(TooLong, match=r"4,096"):
        next(subject.engine.generate(request))
    assert finish_of(list(subject.engine.generate(ask("Sing."))))


def test_the_answer_is_cut_to_what_the_context_leaves(subject: Subject) -> None:
    request = ask("Sing.", sampling=replace(GREEDY, max_tokens=1_000_000))
    budget = subject.engine.plan(request)
    assert budget.fits
    assert budget.answer_tokens == budget.context_length - budget.tokens


@pytest.mark.parametrize("where", [PrefillEvent, TokenEvent])
def test_closing_frees_the_slot(subject: Subject, where: type[Event]) -> None:
    answer = subject.engine.generate(ask("Sing for long.", sampling=replace(GREEDY, max_tokens=3000)))
    while not isinstance(next(answer), where):
        pass
    began = time.monotonic()
    answer.close()
    assert finish_of(list(subject.engine.generate(ask("Sing."))))
    assert time.monotonic() - began < 30


def test_a_consumer_that_vanishes_holds_nobody_up(subject: Subject) -> None:
    answer = subject.engine.generate(ask("Sing for long.", sampling=replace(GREEDY, max_tokens=3000)))
    next(answer)
    del answer
    gc.collect()
    assert finish_of(list(subject.engine.generate(ask("Sing."))))


def test_an_answer_never_asked_for_costs_nothing(subject: Subject) -> None:
    unused = subject.engine.generate(ask("Sing."))
    assert finish_of(list(subject.engine.generate(ask("Sing."))))
    unused.close()


def test_requests_wait_their_turn_and_see_their_place(subject: Subject) -> None:
    first, *others = subject.fill()
    second = Consumer(subject.engine, ask("second"))
    second.wait_for(lambda event: isinstance(event, PrefillEvent) and event.waiting == 1)
    third = Consumer(subject.engine, ask("third"))
    third.wait_for(lambda event: isinstance(event, PrefillEvent) and event.waiting == 2)
    assert first.is_alive() and second.is_alive()
    subject.release.set()
    for consumer in (first, *others, second, third):
        assert finish_of(consumer.whole())
    places = [event.waiting for event in third.events if isinstance(event, PrefillEvent)]
    assert places == sorted(places, reverse=True) and places[-1] == 0


def test_events_keep_coming_while_reading_and_while_waiting(subject: Subject) -> None:
    reading, *others = subject.fill()
    waiting = Consumer(subject.engine, ask("second"))
    for consumer in (reading, waiting):
        times = [consumer.arrived.get(timeout=20)[0] for _ in range(5)]
        gaps = np.diff(times)
        assert np.median(gaps) < 1.5  # half a second, on a machine that has other work too
    subject.release.set()
    for consumer in (reading, *others, waiting):
        assert finish_of(consumer.whole())


def test_one_who_leaves_the_queue_is_not_waited_for(subject: Subject) -> None:
    held = subject.fill()
    leaving = subject.engine.generate(ask("leaving"))
    next(leaving)
    last = Consumer(subject.engine, ask("last"))
    last.wait_for(lambda event: isinstance(event, PrefillEvent) and event.waiting == 2)
    leaving.close()
    last.wait_for(lambda event: isinstance(event, PrefillEvent) and event.waiting == 1)
    subject.release.set()
    for consumer in (*held, last):
        assert finish_of(consumer.whole())


def test_trouble_is_raised_and_the_next_request_is_answered(subject: Subject) -> None:
    with pytest.raises(subject.failure, match="upload it again"):
        list(subject.engine.generate(subject.broken))
    assert finish_of(list(subject.engine.generate(ask("Sing."))))


def test_many_threads_get_their_own_answers(subject: Subject) -> None:
    consumers = [Consumer(subject.engine, ask(f"Sing number {n}.")) for n in range(6)]
    for consumer in consumers:
        assert finish_of(consumer.whole()).completion_tokens == GREEDY.max_tokens


def test_a_closed_engine_refuses_with_a_sentence(subject: Subject) -> None:
    answer = subject.engine.generate(ask("Sing for long.", sampling=LONG))
    while not isinstance(next(answer), TokenEvent):
        pass
    subject.engine.close()
    with pytest.raises(EngineError):
        list(answer)
    with pytest.raises(EngineError):
        next(subject.engine.generate(ask("Sing.")))
