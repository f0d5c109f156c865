"""Conversations beyond the trained positions: equal to stock transformers built with the same rope."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.errors import TooLong
from qwen3vl_webui.model.inputs import encode
from qwen3vl_webui.model.loading import LoadedModel, load
from qwen3vl_webui.model.rope import ntk
from qwen3vl_webui.settings import RopeScaling
from tests.engine.conftest import ask, follow_up, picture, read_frames, read_pixels, video
from tests.engine.test_local import run, run_ids, stock_ids
from tests.tiny import tiny_checkpoint, write_json

TRAINED = 200  # positions; a `word ` has nearly 5 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("short"))
    text = AutoConfig.from_pretrained(folder).text_config.to_dict()
    write_json(folder / "config.json", text_config=text | {"max_position_embeddings": TRAINED})
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(str(folder), device="cpu")


@pytest.fixture
def opened(model: LoadedModel) -> Iterator[Any]:
    engines: list[LocalEngine] = []

    def of(scaling: RopeScaling, context_length: int | None = None) -> LocalEngine:
        engines.append(
            LocalEngine(model, context_length, rope_scaling=scaling, read_pixels=read_pixels, read_frames=read_frames)
        )
        return engines[-1]

    yield of
    for engine in engines:
        engine.close()


@functools.cache
def stock(folder: Path, scaling: str, reach: float) -> Any:
    """transformers' own model: YaRN from its config, NTK by the table put in its place."""
    config = AutoConfig.from_pretrained(folder)
    if scaling == "yarn":
        config.text_config.rope_parameters.update(
            rope_type="yarn", factor=reach, original_max_position_embeddings=TRAINED
        )
    network = AutoModelForImageTextToText.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    if scaling == "ntk":
        rotary = network.model.language_model.rotary_emb
        rotary.inv_freq = torch.tensor(ntk(config.text_config, reach).inv_freq)
    return network


@pytest.mark.parametrize("scaling", ["yarn", "ntk"])
@pytest.mark.parametrize(("words", "reach"), [(25, 1.5), (55, 2.0), (125, 4.0)])
def test_beyond_the_trained_positions_greedy_equals_stock(
    opened: Any, folder: Path, model: LoadedModel, scaling: RopeScaling, words: int, reach: float
) -> None:
    engine = opened(scaling)
    request = ask(picture("one"), "word " * words, video("film", 3), "What is this?", conversation="chat")
    budget = engine.plan(request)
    assert TRAINED < budget.positions + budget.answer_tokens <= reach * TRAINED
    _, finish, ids = run_ids(engine, request)
    assert f"{reach:g}" in engine._cache.slots[0].rope and scaling in engine._cache.slots[0].rope
    expected = stock_ids(stock(folder, scaling, reach), model, encode(request.messages, model.vocabulary))
    assert ids == expected[:-1] and len(set(expected)) > 1
    assert finish.note == ""


@pytest.mark.parametrize("scaling", ["yarn", "ntk"])
def test_turns_one_by_one_equal_the_whole_read_at_once(opened: Any, scaling: RopeScaling) -> None:
    """Outgrowing a bucket reads again, and says so; within a bucket the prefix is kept."""
    engine = opened(scaling)
    request = ask(picture("one"), "word " * 15, conversation="chat")
    notes, reused, plans = [], [], []
    for _ in range(4):
        text, finish, ids = run_ids(engine, request)
        notes.append(bool(finish.note))
        reused.append(finish.reused_tokens)
        plans.append(engine._cache.slots[0].rope)
        fresh = opened(scaling)
        fresh._answers = engine._answers
        assert run_ids(fresh, request)[2] == ids
        request = follow_up(request, text, "more " * 8)
    assert plans[0] == "native" and len(set(plans)) > 1
    assert notes == [False] + [before != now for before, now in zip(plans, plans[1:], strict=False)]
    assert [count > 0 for count in reused] == [False] + [not noted for noted in notes[1:]]


def test_what_does_not_fit_is_refused_with_a_sentence(opened: Any, model: LoadedModel) -> None:
    long = ask("word " * 60)
    with pytest.raises(TooLong, match="positions; the model knows 200"):
        next(opened("none", 2000).generate(long))
    with pytest.raises(TooLong, match="tokens; the model reads 200"):
        next(opened("auto").generate(long))
    assert opened("auto", 2000).plan(long).most_positions == 4 * TRAINED
    assert run(opened("auto", 2000), long)[1].completion_tokens
    with pytest.raises(TooLong, match="positions; the model knows 800"):
        next(opened("auto", 5000).generate(ask("word " * 900)))


def test_an_answer_stays_within_what_is_stretched_to(opened: Any, model: LoadedModel) -> None:
    engine = opened("auto", 10_000)
    engine._loaded = replace(model, eos_ids=frozenset())
    request = ask("word " * 150)
    sampling = replace(request.sampling, max_tokens=5000)
    request = replace(request, sampling=sampling)
    budget = engine.plan(request)
    assert budget.positions + budget.answer_tokens == 4 * TRAINED
    assert run(engine, request)[1].completion_tokens == budget.answer_tokens


def test_explicit_scaling_opens_what_it_reaches_and_auto_does_not(opened: Any) -> None:
    assert opened("auto").context_length == opened("none").context_length == TRAINED
    assert opened("yarn").context_length == opened("ntk").context_length == 4 * TRAINED
