from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from qwen3vl_webui.engine.contract import SamplingParams
from qwen3vl_webui.errors import Unsupported
from qwen3vl_webui.model.decode import NUCLEUS, Sampler, candidates, check

torch.set_num_threads(1)

CPU = torch.device("cpu")
PLAIN = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, presence_penalty=0.0)


def some_logits(size: int, spread: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def probabilities(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    ids, weights = candidates(logits, sampling)
    spread = torch.zeros_like(logits)
    spread[ids] = weights / weights.sum()
    return spread


def stock_probabilities(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    scores: Any = (logits / sampling.temperature)[None]
    ids: Any = torch.zeros(1, 1, dtype=torch.long)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    if sampling.min_p:
        scores = MinPLogitsWarper(sampling.min_p)(ids, scores)
    return scores[0].softmax(-1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_k": 20},
        {"top_k": 10_000},
        {"top_p": 0.8},
        {"top_p": 0.01},
        {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.8, "temperature": 0.7},
        {"top_k": 40, "top_p": 0.9, "min_p": 0.05, "temperature": 1.4},
        {"top_p": 0.95, "min_p": 0.02, "temperature": 2.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [50, 3 * NUCLEUS])
def test_candidates_are_those_of_transformers(changes: dict[str, Any], size: int) -> None:
    sampling = replace(PLAIN, **changes)
    for seed in range(5):
        logits = some_logits(size, seed=seed)
        torch.testing.assert_close(
            probabilities(logits, sampling), stock_probabilities(logits, sampling), atol=1e-6, rtol=1e-4
        )


def test_a_flat_distribution_is_cut_at_its_nucleus_beyond_the_first_candidates() -> None:
    logits = some_logits(4 * NUCLEUS, spread=0.01)
    sampling = replace(PLAIN, top_p=0.9)
    kept = int((probabilities(logits, sampling) > 0).sum())
    assert kept == int((stock_probabilities(logits, sampling) > 0).sum()) > 3 * NUCLEUS


def test_draws_follow_the_distribution() -> None:
    sampling = replace(PLAIN, temperature=0.8, top_k=6, top_p=0.97, seed=11)
    logits = some_logits(30, spread=1.5)
    expected = probabilities(logits, sampling)
    sampler = Sampler(sampling, 30, CPU)
    draws = 20_000
    counts = torch.bincount(torch.tensor([sampler.draw(logits.clone()) for _ in range(draws)]), minlength=30)
    assert not counts[expected == 0].any()
    error = (counts / draws - expected).abs()
    assert bool((error <= 5 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all())  # five standard deviations


def test_temperature_zero_takes_the_best() -> None:
    sampler = Sampler(replace(PLAIN, temperature=0.0), 100, CPU)
    for seed in range(5):
        logits = some_logits(100, seed=seed)
        assert sampler.draw(logits.clone()) == int(logits.argmax())


def drawn(sampling: SamplingParams) -> list[int]:
    sampler = Sampler(sampling, 1000, CPU)
    return [sampler.draw(some_logits(1000, seed=step)) for step in range(30)]


def test_a_seed_repeats_its_tokens() -> None:
    assert drawn(replace(PLAIN, seed=3407)) == drawn(replace(PLAIN, seed=3407))
    assert drawn(replace(PLAIN, seed=3407)) != drawn(replace(PLAIN, seed=3408))
    assert drawn(PLAIN) != drawn(PLAIN)


def test_forbidden_tokens_are_never_drawn_even_when_they_are_the_best() -> None:
    logits = torch.zeros(10)
    logits[4] = 50.0
    forbidden = torch.tensor([4, 7])
    for sampling in (replace(PLAIN, temperature=0.0), replace(PLAIN, seed=1), replace(PLAIN, seed=1, top_k=2)):
        sampler = Sampler(sampling, 10, CPU, forbidden)
        assert not {4, 7} & {sampler.draw(logits.clone()) for _ in range(200)}


def test_presence_penalty_is_subtracted_once_from_what_was_drawn() -> None:
    sampler = Sampler(replace(PLAIN, temperature=0.0, presence_penalty=1.5), 4, CPU)
    logits = torch.tensor([3.0, 2.0, 1.0, -5.0])
    assert [sampler.draw(logits.clone()) for _ in range(4)] == [0, 1, 0, 0]  # 3, then 1.5 < 2, then 1.5 > 0.5


def test_penalties_do_not_count_the_prompt() -> None:
    sampler = Sampler(replace(PLAIN, temperature=0.0, presence_penalty=2.0, repetition_penalty=2.0), 3, CPU)
    assert not sampler.drawn.any()
    assert sampler.draw(torch.tensor([1.0, 0.5, 0.2])) == 0


def test_repetition_penalty_is_that_of_transformers_on_generated_tokens() -> None:
    sampling = replace(PLAIN, temperature=0.0, repetition_penalty=1.7)
    sampler, stock = Sampler(sampling, 50, CPU), RepetitionPenaltyLogitsProcessor(1.7)
    generated: list[int] = []
    for step in range(40):
        logits = some_logits(50, seed=step % 3)
        ids = torch.tensor([generated], dtype=torch.long)
        expected = int(stock(ids, logits[None].clone()).argmax()) if generated else int(logits.argmax())
        generated.append(sampler.draw(logits.clone()))
        assert generated[-1] == expected


def test_a_token_that_was_written_and_not_drawn_counts_too() -> None:
    sampler = Sampler(replace(PLAIN, temperature=0.0, presence_penalty=1.0), 2, CPU)
    sampler.note(0)
    assert sampler.draw(torch.tensor([1.0, 0.5])) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_k": -1},
        {"min_p": -0.1},
        {"presence_penalty": 2.5},
        {"repetition_penalty": 0.0},
        {"seed": 2**64},
        {"stop": ("a", "")},
        {"max_tokens": 0},
        {"thinking_budget": -1},
    ],
    ids=str,
)
def test_values_without_meaning_are_refused_by_name(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(Unsupported, match=name) as refusal:
        check(replace(SamplingParams(), **changes))
    assert refusal.value.param == name


def test_the_published_settings_are_allowed() -> None:
    check(SamplingParams())
    check(replace(PLAIN, seed=-1, presence_penalty=2.0, thinking_budget=0, stop=("\n",)))
