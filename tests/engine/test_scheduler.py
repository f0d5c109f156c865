"""Several requests at once: each is answered as if it were alone, and none holds up or harms another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from qwen3vl_webui.engine import scheduler
from qwen3vl_webui.engine.contract import GenerationRequest, PrefillEvent, SamplingParams, TokenEvent
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.engine.queue import PATIENCE
from qwen3vl_webui.errors import EngineError, MediaError, OutOfMemory, UserError
from qwen3vl_webui.media.values import Frame, FramePlan, Image
from qwen3vl_webui.model.forward import Run
from qwen3vl_webui.model.inputs import encode
from tests.engine.conftest import (
    GREEDY,
    Load,
    Open,
    ask,
    finish_of,
    follow_up,
    picture,
    read_frames,
    read_pixels,
    text_of,
    video,
)
from tests.engine.test_contract import Consumer
from tests.engine.test_local import run, run_ids, slot_of, stock_ids, stock_model

LONG = replace(GREEDY, max_tokens=400)


@dataclass
class Steps:
    """Watches the forward passes of an engine: the first one waits for `go`, `before` may raise."""

    engine: LocalEngine
    before: Callable[[Sequence[Run]], None] = lambda runs: None
    patient: bool = False  # a step waits until the pictures of all prompts are encoded, however slow that is today
    go: threading.Event = field(default_factory=threading.Event)
    seen: list[list[tuple[str, int]]] = field(default_factory=list)  # (conversation, rows) of each run of each step

    def __post_init__(self) -> None:
        text = self.engine._scheduler._text
        forward = text.forward

        def watched(rows: torch.Tensor, cos_sin: Any, cache: Any, runs: Sequence[Run], deepstack: Any) -> torch.Tensor:
            assert self.go.wait(20)
            if self.patient:
                self.wait_for_pictures()
            self.seen.append([(run.slot.conversation, run.count) for run in runs])
            self.before(runs)
            return forward(rows, cos_sin, cache, runs, deepstack)

        text.forward = watched  # type: ignore[method-assign]
        self.engine._scheduler.drafting = False  # a run of one row writes, another reads

    def wait_for_pictures(self) -> None:
        until = time.monotonic() + 20
        readings = [running.reading for running in self.engine._scheduler._running]
        while not all(reading is None or reading.ready(reading.left) for reading in readings):
            assert time.monotonic() < until
            time.sleep(0.002)

    def together(self, *requests: GenerationRequest) -> list[Consumer]:
        """All of them are in the queue before the first step is done."""
        consumers = []
        for request in requests:
            consumers.append(Consumer(self.engine, request))
            consumers[-1].wait_for(lambda event: isinstance(event, PrefillEvent))
        self.go.set()
        return consumers


def test_four_mixed_requests_written_together_equal_stock_generate_each(
    open_engine: Open, loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "WRITING_SHARE", 0)  # else the first may have ended before the last one is read
    engine, model = open_engine(), loaded()
    requests = [
        ask("What happens at 47 seconds?", conversation="text"),
        ask(picture("one", 160, 96), "What is this?", conversation="picture"),
        ask(video("film", 5), "When does he open the computer?", conversation="video"),
        ask(picture("a"), video("film", 3), "compare", picture("b", 320, 256), conversation="mixed"),
    ]
    steps = Steps(engine, patient=True)
    for consumer in steps.together(*requests):
        assert finish_of(consumer.whole()).completion_tokens
    for request in requests:
        inputs = encode(request.messages, model.vocabulary)
        ids = list(slot_of(engine, request.conversation).keys[inputs.tokens :])
        assert ids == stock_ids(stock_model(), model, inputs)[:-1]
    assert max(sum(count == 1 for _, count in step) for step in steps.seen) == 4


def test_seeds_penalties_stop_strings_and_lengths_stay_each_answers_own(open_engine: Open) -> None:
    samplings = [
        SamplingParams(seed=1, max_tokens=40),
        SamplingParams(seed=2, temperature=1.5, presence_penalty=0, repetition_penalty=1.3, max_tokens=25),
        SamplingParams(seed=1, top_p=0.5, top_k=0, max_tokens=33, thinking_budget=7),
        replace(GREEDY, max_tokens=50, thinking_budget=5),
    ]
    alone = [run(open_engine(endless=True, thinking=True), ask("Go.", sampling=each))[0] for each in samplings]
    samplings[3] = replace(samplings[3], stop=(alone[3][4:8],))
    requests = [ask("Go.", sampling=each, conversation=str(place)) for place, each in enumerate(samplings)]
    expected = [list(open_engine(endless=True, thinking=True).generate(request)) for request in requests]
    consumers = Steps(open_engine(endless=True, thinking=True)).together(*requests)
    for consumer, whole in zip(consumers, expected, strict=True):
        events = consumer.whole()
        for thinking in (False, True):
            assert text_of(events, thinking=thinking) == text_of(whole, thinking=thinking)
        assert finish_of(events).reason == finish_of(whole).reason
        assert finish_of(events).completion_tokens == finish_of(whole).completion_tokens


def test_answers_go_on_while_a_long_prompt_is_read(open_engine: Open, loaded: Load) -> None:
    engine, model = open_engine(endless=True), loaded()
    steps = Steps(engine)
    steps.go.set()
    singer = Consumer(engine, ask("Sing.", sampling=replace(GREEDY, max_tokens=3000), conversation="singer"))
    singer.wait_for(lambda event: isinstance(event, TokenEvent))
    request = ask(picture("first"), "word " * 300, picture("last", 320, 256), "What?", conversation="reader")
    _, _, ids = run_ids(engine, request)
    assert ids == stock_ids(stock_model(), model, encode(request.messages, model.vocabulary))[:-1]
    chunks = [place for place, step in enumerate(steps.seen) if dict(step).get("reader", 1) > 1]
    assert len(chunks) > 3
    assert all(("singer", 1) in steps.seen[place] for place in chunks)
    assert min(np.diff(chunks)) > 1, "after each chunk the time it took is given to who writes"
    assert singer.is_alive() or finish_of(singer.events).completion_tokens == 3000


def test_the_more_urgent_prompt_is_read_first_and_equals_take_turns(open_engine: Open) -> None:
    engine = open_engine()
    steps = Steps(engine)
    requests = [
        replace(ask("word " * 800, conversation="batch"), priority="batch"),
        ask("word " * 800, conversation="one"),
        ask("other " * 800, conversation="two"),
        replace(ask("urgent " * 500, conversation="agent"), priority="interactive"),
    ]
    for consumer in steps.together(*requests):
        consumer.whole()
    reads = [name for step in steps.seen for name, count in step if count > 1]
    reads = reads[1:]  # the first step began before the others came
    first = {name: reads.index(name) for name in ("agent", "one", "two", "batch")}
    last = {name: len(reads) - 1 - reads[::-1].index(name) for name in first}
    assert last["agent"] < min(first["one"], first["two"])
    assert max(last["one"], last["two"]) < first["batch"]
    assert first["two"] < last["one"] and first["one"] < last["two"]


def test_a_prompt_that_was_not_read_for_long_gets_a_chunk(open_engine: Open) -> None:
    engine = open_engine()
    steps = Steps(engine)

    def before(runs: Sequence[Run]) -> None:
        for running in engine._scheduler._running:
            if running.slot.conversation == "batch" and len(steps.seen) == 3:
                running.waits_since -= 2.1 * PATIENCE

    steps.before = before
    requests = [
        replace(ask("urgent " * 1500, conversation="agent"), priority="interactive"),
        replace(ask("word " * 800, conversation="batch"), priority="batch"),
    ]
    for consumer in steps.together(*requests):
        consumer.whole()
    reads = [name for step in steps.seen for name, count in step if count > 1]
    assert reads[:5] == ["agent", "agent", "agent", "batch", "agent"], "one chunk, then it waits as before"
    assert len(reads) > 6


def test_the_time_left_is_estimated_from_the_speed_so_far(open_engine: Open) -> None:
    events = list(open_engine().generate(ask("word " * 600)))
    reads = [event for event in events if isinstance(event, PrefillEvent)]
    told = [event for event in reads if event.done]
    assert [event.seconds_left for event in reads if not event.done] == [None] * (len(reads) - len(told))
    assert all(event.seconds_left > 0 for event in told[:-1] if event.seconds_left is not None)
    assert told[0].seconds_left is not None and told[0].seconds_left < 100
    assert told[-1].seconds_left == 0


def test_a_slow_picture_holds_up_nobody(open_engine: Open) -> None:
    reached, release = threading.Event(), threading.Event()

    def read(image: Image) -> np.ndarray:
        reached.set()
        assert release.wait(20)
        return read_pixels(image)

    engine = open_engine(read_pixels=read)
    slow = Consumer(engine, ask(picture("slow"), "What?", conversation="slow"))
    assert reached.wait(20)
    for word in ("one", "two"):
        assert run(engine, ask(word))[1].completion_tokens
    assert slow.is_alive()
    release.set()
    assert text_of(slow.whole()) == run(open_engine(), ask(picture("slow"), "What?"))[0]


def test_one_who_leaves_frees_its_slot_and_the_others_write_on(open_engine: Open) -> None:
    engine = open_engine(endless=True)
    steps = Steps(engine)
    staying = [ask(f"Stay {n}.", sampling=LONG, conversation=str(n)) for n in range(3)]
    leaving = engine.generate(ask("Leave.", sampling=replace(GREEDY, max_tokens=5000), conversation="leaving"))
    next(leaving)
    consumers = steps.together(*staying)
    while not isinstance(next(leaving), TokenEvent):
        pass
    leaving.close()
    fifth = run(engine, ask("Me too.", conversation="fifth"))[0]
    for consumer, request in zip(consumers, staying, strict=True):
        assert text_of(consumer.whole()) == run(open_engine(endless=True), request)[0]
    assert fifth == run(open_engine(endless=True), ask("Me too."))[0]
    assert not any(slot.busy for slot in engine._cache.slots)


def test_a_slot_that_is_written_is_never_taken_and_a_chat_may_ask_twice_at_once(open_engine: Open) -> None:
    engine = open_engine(endless=True)
    film = ask(video("film", 6), "What?", conversation="chat")
    alone, _ = run(open_engine(endless=True), film)
    run(engine, film)
    for word in ("two", "three", "four"):  # no slot is left that nobody used
        run(engine, ask(word, conversation=word))
    again = [film, follow_up(film, "Yes.", "Where?"), *[ask(word * 40, conversation=word) for word in ("five", "six")]]
    consumers = Steps(engine).together(*again)
    finishes = [finish_of(consumer.whole()) for consumer in consumers]
    assert text_of(consumers[0].events) == alone
    assert finishes[0].reused_tokens == finishes[0].prompt_tokens - 1
    assert finishes[1].reused_tokens > video("film", 6).tokens
    for consumer, request in zip(consumers[1:], again[1:], strict=True):
        assert text_of(consumer.events) == run(open_engine(endless=True), request)[0]


def test_who_does_not_fit_beside_the_others_waits_for_them(open_engine: Open) -> None:
    engine = open_engine(context_length=4096)
    engine._cache.most_tokens = 4096
    steps = Steps(engine)
    requests = [ask("word " * 500, conversation=str(n)) for n in range(3)]
    first, second, third = steps.together(*requests)
    for consumer in (first, second, third):
        assert finish_of(consumer.whole()).completion_tokens
    assert max(len(step) for step in steps.seen) < 3


def test_after_a_long_conversation_short_ones_are_answered_together(open_engine: Open) -> None:
    engine = open_engine(context_length=4096)
    engine._cache.most_tokens = 4096
    run(engine, ask("word " * 300, conversation="long"))
    steps = Steps(engine)
    requests = [ask(f"Say {n}.", conversation=str(n)) for n in range(4)]
    for consumer, request in zip(steps.together(*requests), requests, strict=True):
        assert text_of(consumer.whole()) == run(open_engine(), request)[0]
    assert max(len(step) for step in steps.seen) == 4


# Trouble


def test_a_broken_picture_fails_its_own_request_only(open_engine: Open) -> None:
    def read(image: Image) -> np.ndarray:
        if image.digest == "broken":
            raise MediaError("This picture cannot be read; upload it again.")
        return read_pixels(image)

    def frames(plan: FramePlan) -> Iterator[Frame]:
        yield from list(read_frames(plan))[: 3 if plan.clip.digest == "short" else None]

    engine = open_engine(read_pixels=read, read_frames=frames)
    good = ask(picture("good"), "What?", conversation="good")
    steps = Steps(engine)
    consumers = steps.together(good, ask(picture("broken"), "?"), ask(video("short", 9), "?"), ask("Sing."))
    for broken in consumers[1:3]:
        with pytest.raises(MediaError, match="upload it again"):
            broken.whole()
    assert text_of(consumers[0].whole()) == run(open_engine(), good)[0]
    assert text_of(consumers[3].whole()) == run(open_engine(), ask("Sing."))[0]


@pytest.mark.parametrize("most_rows", [70, 200])
def test_when_memory_runs_out_a_prompt_is_read_in_smaller_chunks(open_engine: Open, most_rows: int) -> None:
    engine = open_engine()
    failures = []

    def before(runs: Sequence[Run]) -> None:
        if sum(run.count for run in runs) > most_rows * 2 and not failures:
            failures.append(len(runs))
            raise torch.OutOfMemoryError("injected")

    steps = Steps(engine, before)
    requests = [ask("word " * 800, conversation="long"), ask(picture("a"), "What?", conversation="short")]
    consumers = steps.together(*requests)
    for consumer, request in zip(consumers, requests, strict=True):
        assert text_of(consumer.whole()) == run(open_engine(), request)[0]
    assert failures


@pytest.mark.parametrize(
    ("cause", "error", "sentence"),
    [
        (torch.OutOfMemoryError("injected"), OutOfMemory, "not enough memory"),
        (ZeroDivisionError(), EngineError, "failed on this request"),
    ],
)
@pytest.mark.parametrize("when", ["reading", "writing"])
def test_only_who_causes_it_fails(
    open_engine: Open, cause: Exception, error: type[UserError], sentence: str, when: str
) -> None:
    engine = open_engine(endless=True)

    def before(runs: Sequence[Run]) -> None:
        for each in runs:
            if each.slot.conversation == "bad" and (each.count > 1 or each.start > 60) == (when == "reading"):
                raise cause

    prompt = "word " * 400 if when == "reading" else "Bad."
    requests = [
        ask(picture("a"), "What?", sampling=LONG, conversation="a"),
        ask(prompt, sampling=LONG, conversation="bad"),
        ask("Sing.", sampling=LONG, conversation="b"),
    ]
    first, bad, second = Steps(engine, before).together(*requests)
    with pytest.raises(error, match=sentence):
        bad.whole()
    for consumer, request in ((first, requests[0]), (second, requests[2])):
        assert text_of(consumer.whole()) == run(open_engine(endless=True), request)[0]
    assert not any(slot.busy for slot in engine._cache.slots)


def test_pictures_that_are_too_much_are_made_once_more_when_there_is_room(open_engine: Open) -> None:
    tries = []

    def read(image: Image) -> np.ndarray:
        tries.append(image.digest)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("injected")
        return read_pixels(image)

    engine = open_engine(read_pixels=read)
    request = ask(picture("a"), "What?", conversation="chat")
    assert run_ids(engine, request)[2] == run_ids(open_engine(), request)[2]
    assert tries == ["a", "a"]


# Loops


def obsess(engine: LocalEngine, text: str) -> None:
    """From now on it wants to write nothing but this one token."""
    model = engine._scheduler._text
    logits = model.logits
    (word,) = engine._loaded.vocabulary.tokenizer.encode(text, add_special_tokens=False).ids

    def obsessed(rows: torch.Tensor) -> torch.Tensor:
        wanted = logits(rows)
        wanted[:, word] += 50
        return wanted

    model.logits = obsessed  # type: ignore[method-assign]


def test_after_a_loop_the_cache_holds_what_was_kept(open_engine: Open) -> None:
    engine = open_engine(endless=True)
    obsess(engine, "a")
    request = ask(picture("a"), "What?", sampling=replace(GREEDY, max_tokens=600), conversation="chat")
    written, finish, ids = run_ids(engine, request)
    assert "repeat" in finish.note
    assert "a" * 48 in written and "a" * 60 not in written
    slot = slot_of(engine, "chat")
    inputs = encode(request.messages, engine._loaded.vocabulary)
    places = torch.arange(inputs.next_position, inputs.next_position + len(ids)).expand(3, -1)
    run(engine, ask("Another."))  # the inference thread is done with the first

    fresh = open_engine(endless=True)
    again, _ = fresh._cache.take(np.frombuffer(slot.keys, np.int64), "again")
    fresh._cache.reserve(again, slot.length)
    with torch.inference_mode():
        cos_sin = engine._ropes.choose("", 10).rope.cos_sin(places)
        run(fresh, replace(request, sampling=replace(GREEDY, max_tokens=1), conversation="read"))
        read = slot_of(fresh, "read")
        fresh._cache.reserve(read, slot.length)
        rows = fresh._loaded.embed(torch.tensor(ids))
        fresh._scheduler._text.forward(rows, cos_sin, fresh._cache, [Run(read, inputs.tokens, len(ids))])
    for held, expected in zip(engine._cache.layers, fresh._cache.layers, strict=True):
        for part in ("keys", "values"):
            kept = held[part][slot.row, :, : slot.length]
            torch.testing.assert_close(kept, expected[part][read.row, :, : slot.length], atol=2e-4, rtol=2e-4)


# Guesses


def test_what_a_guess_gets_right_is_written_in_fewer_steps_and_to_the_letter(open_engine: Open) -> None:
    request = ask(picture("a"), "What?", sampling=replace(GREEDY, max_tokens=100), conversation="chat")
    written, counts = [], []
    for drafting in (False, True):
        engine = open_engine(endless=True)
        obsess(engine, "a")
        steps = Steps(engine)
        engine._scheduler.drafting = drafting
        steps.go.set()
        written.append(run_ids(engine, request)[2])
        counts.append(len(steps.seen))
    assert written[0] == written[1]
    assert counts[0] >= 100 and counts[1] < 40


def test_guesses_change_no_drawn_answer_and_stop_where_it_stops(open_engine: Open) -> None:
    for sampling in (
        SamplingParams(temperature=0.3, seed=5, presence_penalty=0, max_tokens=120),
        SamplingParams(seed=6, repetition_penalty=1.2, max_tokens=77),
        SamplingParams(temperature=0.2, top_p=1.0, seed=7, presence_penalty=0, max_tokens=50, stop=("e",)),
        SamplingParams(temperature=0.1, seed=8, presence_penalty=0, max_tokens=60, thinking_budget=9),
    ):
        request = ask(picture("a"), "on and on and on and on", sampling=sampling, conversation="chat")
        answers = []
        for drafting in (False, True):
            engine = open_engine(endless=True, thinking=True)
            engine._scheduler.drafting = drafting
            events = list(engine.generate(request))
            finish = finish_of(events)
            held = list(slot_of(engine, "chat").keys)
            answers.append((text_of(events), text_of(events, thinking=True), finish.reason, finish.completion_tokens))
            answers[-1] += (held,)
        assert answers[0] == answers[1]
