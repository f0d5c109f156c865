"""Answers written by Triton's kernels equal those written by torch's operations, one for one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from qwen3vl_webui import model
from qwen3vl_webui.engine import local
from qwen3vl_webui.engine.contract import GenerationRequest, SamplingParams
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.model.graphs import Next
from qwen3vl_webui.model.inputs import encode
from qwen3vl_webui.model.planner import FORMATS, KVFormat
from tests.engine.conftest import GREEDY, Load, Open, ask, follow_up, picture, video
from tests.engine.test_local import run, run_ids, stock_ids, stock_model
from tests.engine.test_scheduler import obsess

if sys.platform != "linux":
    pytest.skip("Triton is made for Linux", allow_module_level=True)

SHORT = replace(GREEDY, max_tokens=4)
OpenWith = Callable[..., LocalEngine]


@pytest.fixture
def opened(open_engine: Open) -> OpenWith:
    return lambda kv, decode, **variant: open_engine(kv_cache=kv, decode=decode, **variant)


def requests() -> list[GenerationRequest]:
    return [
        ask(picture("cat", 128, 96), "What is this?", sampling=SHORT, conversation="a"),
        ask("word " * 60, video("film", 5), "When does he open it?", sampling=SHORT, conversation="b"),
        ask("他在什么时候打开电脑？", sampling=SHORT, conversation="c"),
    ]


@pytest.mark.parametrize("kv", FORMATS)
def test_answers_written_together_equal_those_of_torch(opened: OpenWith, kv: KVFormat) -> None:
    plain, engine = opened(kv, "eager"), opened(kv, "kernels")
    assert plain._cache.kernel is None and engine._cache.kernel is not None
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda request: run(engine, request)[0], requests()))
    assert together == [run(plain, request)[0] for request in requests()]


def test_greedy_answers_equal_those_of_the_library(opened: OpenWith, loaded: Load) -> None:
    request, model = requests()[0], loaded()
    inputs = encode(request.messages, model.vocabulary)
    ids = run_ids(opened("bf16", "kernels"), request)[2]
    assert ids == stock_ids(stock_model(), model, inputs)[: len(ids)] and len(ids) == SHORT.max_tokens - 1


def test_each_answer_keeps_its_own_sampling(opened: OpenWith) -> None:
    """Drawn in the step, of logits where there are too many candidates, or not drawn at all."""
    samplings = [
        SamplingParams(seed=1, max_tokens=5),
        SamplingParams(seed=2, temperature=1.5, top_k=0, top_p=0.9, max_tokens=5),
        SamplingParams(seed=3, top_k=40, top_p=1, repetition_penalty=1.3, thinking_budget=2, max_tokens=5),
    ]
    asked = [ask("Go.", sampling=each, conversation=str(place)) for place, each in enumerate(samplings)]
    plain, engine = (opened("bf16", decode, thinking=True) for decode in ("eager", "kernels"))
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda request: run_ids(engine, request)[2], asked))
    assert together == [run_ids(plain, request)[2] for request in asked]


def test_the_next_turn_reads_what_the_kernels_wrote(opened: OpenWith) -> None:
    plain, engine = opened("int4", "eager"), opened("int4", "kernels")
    request = requests()[0]
    text, _, ids = run_ids(engine, request)
    assert run_ids(plain, request)[2] == ids
    more = follow_up(request, text, "Where?")
    _, finish, ids = run_ids(engine, more)
    assert finish.reused_tokens > 0 and ids == run_ids(plain, more)[2]


@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_guesses_are_checked_in_the_same_step_and_change_nothing(opened: OpenWith, kv: KVFormat) -> None:
    """Greedily, and drawn with a penalty; two at once, of which one may guess and the other not."""
    penalized = SamplingParams(temperature=0.2, seed=3, presence_penalty=0.2, max_tokens=7)
    asked = [
        ask("on and on and on and on and", sampling=replace(GREEDY, max_tokens=7), conversation="a"),
        ask("word " * 20, sampling=penalized, conversation="b"),
    ]
    written = []
    for drafting in (False, True):
        engine = opened(kv, "kernels", endless=True)
        scheduler = engine._scheduler
        scheduler.drafting = drafting
        run(engine, ask("?", sampling=replace(GREEDY, max_tokens=1)))  # the decoder is there
        checked: list[int] = []
        decoder = scheduler._decoder
        assert decoder is not None

        def watched(rows: list[Next], check: Callable[..., Any] = decoder.check, seen: list[int] = checked) -> Any:
            seen.append(len(rows))
            return check(rows)

        decoder.check = watched  # type: ignore[method-assign, assignment]
        obsess(engine, "a")
        with ThreadPoolExecutor(2) as threads:
            written.append(list(threads.map(lambda request: run(engine, request)[0], asked)))  # noqa: B023
        assert bool(checked) == drafting
    assert written[0] == written[1]


def test_guesses_about_a_long_conversation_are_read_in_one_pass(opened: OpenWith) -> None:
    """Else each would read all of it anew."""
    engine = opened("bf16", "kernels", endless=True)
    run(engine, ask("?", sampling=replace(GREEDY, max_tokens=2)))
    scheduler = engine._scheduler
    work = ask("on and on and on and on and", sampling=replace(GREEDY, max_tokens=6), conversation="a")
    assert scheduler._decoder is not None
    scheduler._decoder.check = None  # type: ignore[method-assign, assignment]
    scheduler._weight_bytes = 0
    obsess(engine, "a")
    assert run(engine, work)[1].completion_tokens == 6


def test_a_cpu_writes_without_them(opened: OpenWith) -> None:
    assert opened("bf16", "auto")._cache.kernel is None


def test_a_card_without_triton_writes_with_torch(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(model, "kernels", raising=False)
    monkeypatch.setitem(sys.modules, "qwen3vl_webui.model.kernels", None)
    assert local.pick_kernel(replace(loaded(), device=torch.device("cuda")), "int8") is None
