from __future__ import annotations

import pytest

from qwen3vl_webui.engine.contract import (
    Event,
    FinishEvent,
    GenerationRequest,
    Message,
    PrefillEvent,
    Priority,
    TokenEvent,
)
from qwen3vl_webui.engine.queue import MOST_WAITING, Cancelled, RequestQueue, Work
from qwen3vl_webui.errors import EngineError, Overloaded


def work(priority: Priority = "chat") -> Work[str]:
    return Work(GenerationRequest((Message("user", ("?",)),), priority=priority), "", total=10)


def test_first_come_first_answered() -> None:
    queue: RequestQueue[str] = RequestQueue()
    entered = [work(), work(), work()]
    answers = [queue.follow(each) for each in entered]
    assert [next(answer) for answer in answers] == [PrefillEvent(0, 10, place) for place in (0, 1, 2)]
    for each in entered:
        assert queue.next() is each
        queue.done()


def test_interactive_requests_go_before_chats_and_chats_before_batches() -> None:
    queue: RequestQueue[str] = RequestQueue()
    entered = [work("batch"), work("chat"), work("interactive"), work("chat")]
    answers = [queue.follow(each) for each in entered]
    for answer in answers:
        next(answer)
    order = []
    for _ in entered:
        order.append(queue.next())
        queue.done()
    assert order == [entered[2], entered[1], entered[3], entered[0]]


def test_the_running_request_counts_as_one_before() -> None:
    queue: RequestQueue[str] = RequestQueue()
    running, waiting = work(), work()
    answers = [queue.follow(running), queue.follow(waiting)]
    next(answers[0])
    assert queue.next() is running
    assert next(answers[1]) == PrefillEvent(0, 10, waiting=1)
    assert queue.position(running) == 0
    queue.done()
    assert queue.next() is waiting
    assert queue.position(waiting) == 0


def test_a_silent_engine_is_heard_by_repeated_events() -> None:
    queue: RequestQueue[str] = RequestQueue()
    each = work()
    answer = queue.follow(each)
    next(answer)
    queue.next()
    each.tell(PrefillEvent(4, 10))
    assert [next(answer) for _ in range(3)] == [PrefillEvent(4, 10)] * 3
    each.tell(TokenEvent("Hm", thinking=True))
    assert [next(answer) for _ in range(3)] == [TokenEvent("Hm", True), TokenEvent("", True), TokenEvent("", True)]


def test_closing_the_events_cancels_the_work_and_leaves_the_queue() -> None:
    queue: RequestQueue[str] = RequestQueue()
    running, leaving, staying = work(), work(), work()
    answers = [queue.follow(each) for each in (running, leaving, staying)]
    for answer in answers:
        next(answer)
    queue.next()
    for answer in answers[:2]:
        answer.close()
    with pytest.raises(Cancelled):
        running.check()
    staying.check()
    queue.done()
    assert queue.next() is staying


def test_an_error_told_is_raised_to_the_consumer() -> None:
    queue: RequestQueue[str] = RequestQueue()
    each = work()
    answer = queue.follow(each)
    next(answer)
    each.tell(EngineError("It broke."))
    with pytest.raises(EngineError, match="It broke"):
        next(answer)


def test_events_end_with_the_finish() -> None:
    queue: RequestQueue[str] = RequestQueue()
    each = work()
    finish = FinishEvent("stop", 10, 0, 1)
    each.tell(TokenEvent("Hi"))
    each.tell(finish)
    each.tell(TokenEvent("never"))
    events: list[Event] = list(queue.follow(each))
    assert events == [PrefillEvent(0, 10), TokenEvent("Hi"), finish]


def test_too_many_waiting_are_refused() -> None:
    queue: RequestQueue[str] = RequestQueue()
    answers = [queue.follow(work()) for _ in range(MOST_WAITING)]
    for answer in answers:
        next(answer)
    with pytest.raises(Overloaded, match="wait already"):
        next(queue.follow(work()))
    answers[0].close()
    assert isinstance(next(queue.follow(work())), PrefillEvent)


def test_a_closed_queue_ends_everyone_and_takes_nobody() -> None:
    queue: RequestQueue[str] = RequestQueue()
    running, waiting = work(), work()
    answers = [queue.follow(running), queue.follow(waiting)]
    for answer in answers:
        next(answer)
    queue.next()
    queue.close()
    for answer in answers:
        with pytest.raises(EngineError):
            list(answer)
    with pytest.raises(Cancelled):
        running.check()
    assert queue.next() is None
    with pytest.raises(EngineError):
        next(queue.follow(work()))
