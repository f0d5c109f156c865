"""Answers with keys and values in 8 and 4 bits: close to the exact ones, and the same however a prompt was read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen3vl_webui.engine import local
from qwen3vl_webui.engine.contract import GenerationRequest
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.errors import TooLong
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.model.loading import LoadedModel, load
from qwen3vl_webui.model.planner import CONTEXT, GIB, KNOWN, KVFormat, kv_bytes, working_bytes
from qwen3vl_webui.prompt import Attached, Draft, lay_out
from tests.engine.conftest import Load, Open, ask, follow_up, picture, video
from tests.engine.test_local import run, run_ids

SAMPLES = Path(__file__).resolve().parents[2] / "assets" / "samples"
QUANTIZED: list[KVFormat] = ["int8", "int4"]
OpenWith = Callable[[KVFormat], LocalEngine]


@pytest.fixture
def opened(open_engine: Open) -> OpenWith:
    return lambda kv: open_engine(kv_cache=kv)


def requests() -> list[GenerationRequest]:
    return [
        ask(picture("cat", 128, 96), "What is this?", conversation="a"),
        ask("word " * 60, video("film", 5), "When does he open the computer?", conversation="b"),
        ask("他在什么时候打开电脑？", video("other", 8, 64, 64), conversation="c"),
    ]


@pytest.mark.parametrize(("kv", "least"), [("int8", 0.6), ("int4", 0.05)])
def test_greedy_tokens_agree_with_the_exact_ones(opened: OpenWith, kv: KVFormat, least: float) -> None:
    """Random weights: one choice that falls differently changes all that follow, so this is a floor, not a quality."""
    exact, quantized = opened("bf16"), opened(kv)
    agreed = total = 0
    for request in requests():
        expected, ids = (run_ids(engine, request)[2] for engine in (exact, quantized))
        total += len(expected)
        same = [one == other for one, other in zip(ids, expected, strict=False)]
        agreed += same.index(False) if False in same else len(same)
    assert agreed / total >= least


@pytest.mark.parametrize("kv", QUANTIZED)
def test_turns_equal_the_whole_read_at_once(opened: OpenWith, kv: KVFormat) -> None:
    engine = opened(kv)
    for request in requests():
        for turn in range(3):
            text, finish, ids = run_ids(engine, request)
            fresh = opened(kv)
            fresh._answers = engine._answers
            assert run_ids(fresh, request)[2] == ids
            assert turn == 0 or finish.reused_tokens > 50
            request = follow_up(request, text, f"And turn {turn}?")


@pytest.mark.parametrize("kv", QUANTIZED)
def test_answers_written_together_equal_those_written_alone(opened: OpenWith, kv: KVFormat) -> None:
    alone = [run(opened(kv), request)[0] for request in requests()]
    engine = opened(kv)
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda request: run(engine, request)[0], requests()))
    assert together == alone


@pytest.mark.parametrize("kv", QUANTIZED)
def test_an_edited_question_equals_one_never_asked_otherwise(opened: OpenWith, kv: KVFormat) -> None:
    engine = opened(kv)
    run(engine, ask(picture("cat", 320, 256), "Name it, please, in a few words.", conversation="chat"))
    for words in ("Describe it.", "Where?", "word " * 40):
        edited = ask(picture("cat", 320, 256), words, conversation="chat")
        _, finish, ids = run_ids(engine, edited)
        assert ids == run_ids(opened(kv), edited)[2]
        assert finish.reused_tokens >= 64


@pytest.mark.parametrize("kv", QUANTIZED)
def test_memory_is_what_was_planned(opened: OpenWith, kv: KVFormat) -> None:
    engine = opened(kv)
    run(engine, requests()[1])
    cache = engine._cache
    assert cache.format.name == engine.model.kv_cache == kv
    assert cache.bytes == kv_bytes(engine._loaded.shape, kv, cache.capacity, 4)
    exact = opened("bf16")
    run(exact, requests()[1])
    assert engine._cache.bytes_per_token < exact._cache.bytes_per_token / 3


def test_auto_is_exact_on_a_cpu(loaded: Load) -> None:
    engine = LocalEngine(loaded())
    engine.close()
    assert engine._cache.format.name == "bf16"
    assert engine.model.kv_cache == "float32"  # what it is here


# On CUDA, as far as arithmetic goes


@pytest.mark.parametrize(
    ("gib", "context_length", "kv"),
    [
        (40, None, "bf16"),
        (6, None, "int8"),
        (3, None, "int4"),
        (37, 262_144, "bf16"),
        (20, 262_144, "int8"),
        (1, 9, "bf16"),
    ],
)
def test_auto_takes_the_finest_that_holds_the_context(
    loaded: Load, monkeypatch: pytest.MonkeyPatch, gib: float, context_length: int | None, kv: KVFormat
) -> None:
    monkeypatch.setattr(local, "memory_for_kv", lambda *_: int(gib * GIB))
    card = replace(loaded(), device=torch.device("cuda"), shape=KNOWN["4b"])
    assert local.pick_kv(card, "auto", context_length) == kv
    assert local.pick_kv(card, "int8", context_length) == "int8"


def test_a_prompt_is_refused_before_it_is_sent_when_the_card_cannot_hold_it(
    opened: OpenWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened("int4")
    engine._loaded = replace(engine._loaded, device=torch.device("cuda"), shape=KNOWN["4b"])
    working = working_bytes(KNOWN["4b"], "int4") - CONTEXT
    free = kv_bytes(KNOWN["4b"], "int4", 2048)
    monkeypatch.setattr(local, "memory_for_kv", lambda *_: free)
    small, large = ask("word " * 300), ask("word " * 1200)
    budget = engine.plan(small)
    assert budget.memory_bytes == kv_bytes(KNOWN["4b"], "int4", budget.tokens + budget.answer_tokens) + working
    assert budget.memory_free == free + working
    assert budget.fits and not engine.plan(large).fits
    with pytest.raises(TooLong, match=r"need \d+\.\d GiB of memory; \d+\.\d GiB are free"):
        next(engine.generate(large))


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load("demo")


@pytest.mark.parametrize("kv", QUANTIZED)
def test_the_demo_model_answers_the_same(demo: LoadedModel, kv: KVFormat) -> None:
    """A trained model: its choices are clear, and quantized keys and values do not change them."""
    exact, quantized = LocalEngine(demo, kv_cache="bf16"), LocalEngine(demo, kv_cache=kv)
    try:
        for file, question in (
            ("sample.png", "What is in the picture?"),
            ("sample.png", "图里有什么？"),
            ("sample.mp4", "When does the red circle appear?"),
            ("sample.mp4", "红色圆形什么时候出现？"),
        ):
            attached = Attached(open_upload(SAMPLES / file), name=file)
            request = lay_out([Draft("user", (attached, question))], exact).request
            assert run(quantized, request)[0] == run(exact, request)[0]
    finally:
        exact.close()
        quantized.close()
