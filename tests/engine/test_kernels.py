"""Answers written by Triton's kernels equal those written by torch's operations, one for one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from qwen3vl_webui import model
from qwen3vl_webui.engine import local
from qwen3vl_webui.engine.contract import GenerationRequest, SamplingParams
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.model.inputs import encode
from qwen3vl_webui.model.planner import FORMATS, KVFormat
from tests.engine.conftest import GREEDY, Load, Open, ask, follow_up, picture, video
from tests.engine.test_local import run, run_ids, stock_ids, stock_model

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


def test_a_cpu_writes_without_them(opened: OpenWith) -> None:
    assert opened("bf16", "auto")._cache.kernel is None


def test_a_card_without_triton_writes_with_torch(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(model, "kernels", raising=False)
    monkeypatch.setitem(sys.modules, "qwen3vl_webui.model.kernels", None)
    assert local.pick_kernel(replace(loaded(), device=torch.device("cuda")), "int8") is None
