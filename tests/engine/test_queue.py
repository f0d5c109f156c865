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
from qwen3vl_webui.engine.queue import MOST_WAITING, PATIENCE, Cancelled, RequestQueue, Work
from qwen3vl_webui.errors import EngineError, Overloaded


def work(priority: Priority = "chat") -> Work[str]:
    return Work(GenerationRequest((Message("user", ("?",)),), priority=priority), "", total=10)


def test_first_come_first_answered() -> None:
    queue: RequestQueue[str] = RequestQueue()
    entered = [work(), work(), work()]
    answers = [queue.follow(each) for each in entered]
    assert [next(answer) for answer in answers] == [PrefillEvent(0, 10, place) for place in (0, 1, 2)]
    for each in entered:
        assert queue.take() is each
        queue.done(each)


def test_interactive_requests_go_before_chats_and_chats_before_batches() -> None:
    queue: RequestQueue[str] = RequestQueue()
    entered = [work("batch"), work("chat"), work("interactive"), work("chat")]
    answers = [queue.follow(each) for each in entered]
    for answer in answers:
        next(answer)
    order = []
    for _ in entered:
        first = queue.take()
        assert first is not None
        order.append(first)
        queue.done(first)
    assert order == [entered[2], entered[1], entered[3], entered[0]]


def test_the_running_request_counts_as_one_before() -> None:
    queue: RequestQueue[str] = RequestQueue()
    running, waiting = work(), work()
    answers = [queue.follow(running), queue.follow(waiting)]
    next(answers[0])
    assert queue.take() is running
    assert next(answers[1]) == PrefillEvent(0, 10, waiting=1)
    assert queue.position(running) == 0
    queue.done(running)
    assert queue.take() is waiting
    assert queue.position(waiting) == 0


def test_a_silent_engine_is_heard_by_repeated_events() -> None:
    queue: RequestQueue[str] = RequestQueue()
    each = work()
    answer = queue.follow(each)
    next(answer)
    queue.take()
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
    queue.take()
    for answer in answers[:2]:
        answer.close()
    with pytest.raises(Cancelled):
        running.check()
    staying.check()
    queue.done(running)
    assert queue.take() is staying


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
    queue.take()
    queue.close()
    for answer in answers:
        with pytest.raises(EngineError):
            list(answer)
    with pytest.raises(Cancelled):
        running.check()
    assert queue.take() is None
    with pytest.raises(EngineError):
        next(queue.follow(work()))


def of(conversation: str, priority: Priority = "chat") -> Work[str]:
    messages = (Message("user", ("?",)),)
    return Work(GenerationRequest(messages, priority=priority, conversation=conversation), "", total=10)


def enter(queue: RequestQueue[str], *entered: Work[str]) -> list[object]:
    """Everyone stands in the queue; keep what is returned, or they leave it."""
    answers = [queue.follow(each) for each in entered]
    for answer in answers:
        next(answer)
    return list(answers)


def test_conversations_take_turns_whatever_one_of_them_asks_for() -> None:
    queue: RequestQueue[str] = RequestQueue(places=2)
    eager = [of("eager") for _ in range(4)]
    late = [of("late"), of("late")]
    kept = enter(queue, *eager, *late)
    order = []
    while (first := queue.take()) is not None:
        order.append(first)
        if len(order) % 2 == 0:
            for each in order[-2:]:
                queue.done(each)
    assert order == [eager[0], late[0], eager[1], late[1], eager[2], eager[3]]
    assert kept


def test_who_runs_counts_when_turns_are_given() -> None:
    queue: RequestQueue[str] = RequestQueue(places=2)
    running, more, other = of("a"), of("a"), of("b")
    kept = enter(queue, running)
    assert queue.take() is running
    kept += enter(queue, more, other)
    assert queue.take() is other
    assert queue.take() is None
    assert queue.position(more) == 1


def test_a_free_place_is_nobody_before_you() -> None:
    queue: RequestQueue[str] = RequestQueue(places=2)
    first, second, third = of("a"), of("b"), of("c")
    kept = enter(queue, first)
    queue.take()
    kept += enter(queue, second)
    assert queue.position(second) == 0
    queue.take()
    kept += enter(queue, third)
    assert queue.position(third) == 1
    assert kept


def test_batches_leave_one_place_to_people() -> None:
    queue: RequestQueue[str] = RequestQueue(places=3)
    batches = [of(str(n), "batch") for n in range(3)]
    person = of("person")
    kept = enter(queue, *batches)
    assert [queue.take(), queue.take(), queue.take()] == [*batches[:2], None]
    assert queue.position(batches[2]) == 1
    kept += enter(queue, person)
    assert queue.take() is person
    queue.done(batches[0])
    assert queue.take() is batches[2]
    assert kept


def test_one_place_is_a_batchs_too() -> None:
    queue: RequestQueue[str] = RequestQueue()
    batch = of("b", "batch")
    kept = enter(queue, batch)
    assert queue.take() is batch
    assert kept


def test_nobody_overtakes_the_one_who_waits_for_memory() -> None:
    queue: RequestQueue[str] = RequestQueue(places=3)
    running, big, small = of("a"), of("big"), of("small")
    kept = enter(queue, running)
    assert queue.take(lambda work: False) is running, "alone it gets what there is"
    kept += enter(queue, big, small)
    assert queue.take(lambda work: work is not big) is None
    assert [queue.position(big), queue.position(small)] == [1, 2]
    queue.done(running)
    assert [queue.take(), queue.take()] == [big, small]
    assert kept


def after(minutes: float, each: Work[str]) -> Work[str]:
    """As if it had come that long ago."""
    each.entered -= minutes * PATIENCE
    return each


def test_who_waits_long_goes_up_one_class_a_minute() -> None:
    queue: RequestQueue[str] = RequestQueue()
    fresh, one, two = of("a", "batch"), after(1.1, of("b", "batch")), after(2.1, of("c", "batch"))
    chat, agent = of("chat"), of("agent", "interactive")
    kept = enter(queue, agent, chat, fresh, one, two)
    order = []
    while (first := queue.take()) is not None:
        order.append(first)
        queue.done(first)
    assert order == [two, agent, one, chat, fresh]
    assert kept


def test_a_batch_is_answered_whatever_keeps_coming() -> None:
    queue: RequestQueue[str] = RequestQueue()
    batch = of("batch", "batch")
    kept = enter(queue, batch)
    for minute in range(4):
        kept += enter(queue, of(f"agent {minute}", "interactive"))
        first = queue.take()
        assert first is not None
        if first is batch:
            break
        queue.done(first)
        after(0.7, batch)
    assert first is batch and minute == 3
    assert kept


def test_a_batch_that_may_not_run_yet_stands_before_nobody() -> None:
    queue: RequestQueue[str] = RequestQueue(places=2)
    running, old, person = of("a", "batch"), after(10, of("b", "batch")), of("person")
    kept = enter(queue, running)
    assert queue.take() is running
    kept += enter(queue, old, person)
    assert [queue.position(person), queue.position(old)] == [0, 2]
    assert [queue.take(), queue.take()] == [person, None]
    queue.done(running)
    assert queue.take() is old
    assert kept
