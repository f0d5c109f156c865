"""Interleaved MRoPE equals the stock rotary module; plans never move with the prompt."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRotaryEmbedding

from qwen3vl_webui.errors import Unsupported
from qwen3vl_webui.model.rope import (
    Rope,
    RopePlan,
    Ropes,
    frequencies,
    most_positions,
    native,
    ntk,
    plan_for,
    yarn,
)
from qwen3vl_webui.settings import RopeScaling


def text_config(head_dim: int = 128, sections: tuple[int, int, int] = (24, 20, 20), **rope: Any) -> Qwen3VLTextConfig:
    parameters = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [*sections], "mrope_interleaved": True}
    return Qwen3VLTextConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=262_144,
        rope_parameters=parameters | rope,
    )


def positions_3d(most: int = 262_144) -> torch.Tensor:
    return torch.randint(0, most, (3, 500), generator=torch.Generator().manual_seed(1))


def stock(config: Qwen3VLTextConfig, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = Qwen3VLTextRotaryEmbedding(config)(torch.zeros(1, dtype=dtype), positions[:, None])
    return cos[0], sin[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim, sections", [(128, (24, 20, 20)), (32, (6, 5, 5))])
def test_native_equals_the_stock_module(dtype: torch.dtype, head_dim: int, sections: tuple[int, int, int]) -> None:
    config = text_config(head_dim, sections)
    positions = positions_3d()
    cos, sin = Rope(native(config), "cpu", dtype).cos_sin(positions)
    stock_cos, stock_sin = stock(config, positions, dtype)
    assert cos.dtype == dtype and cos.shape == (500, head_dim)
    assert torch.equal(cos, stock_cos) and torch.equal(sin, stock_sin)


def test_the_mixture_of_experts_turns_the_same_way() -> None:
    config = text_config()
    positions = positions_3d()
    cos, sin = Qwen3VLMoeTextRotaryEmbedding(config)(torch.zeros(1), positions[:, None])
    ours = Rope(native(config), "cpu", torch.float32).cos_sin(positions)
    assert torch.equal(ours[0], cos[0]) and torch.equal(ours[1], sin[0])


def test_axes_are_interleaved_and_the_lowest_frequencies_are_time() -> None:
    axes = native(text_config()).axes
    assert axes[:6] == [0, 1, 2, 0, 1, 2] and axes[-4:] == [0, 0, 0, 0]
    assert [axes.count(axis) for axis in range(3)] == [24, 20, 20]


@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_yarn_equals_the_stock_module(factor: float) -> None:
    long = text_config(rope_type="yarn", factor=factor, original_max_position_embeddings=262_144)
    positions = positions_3d(700_000)
    cos, sin = stock(long, positions, torch.float32)
    for plan in (yarn(text_config(), factor), native(long)):
        ours = Rope(plan, "cpu", torch.float32).cos_sin(positions)
        assert torch.equal(ours[0], cos) and torch.equal(ours[1], sin)


def test_yarn_keeps_high_frequencies_and_divides_low_ones() -> None:
    plain, long = torch.tensor(native(text_config()).inv_freq), torch.tensor(yarn(text_config(), 3.0).inv_freq)
    assert torch.equal(long[:30], plain[:30])
    torch.testing.assert_close(long[45:], plain[45:] / 3)
    assert yarn(text_config(), 2.0).attention_scaling == pytest.approx(1.069, abs=1e-3)
    assert yarn(text_config(), 3.0).attention_scaling == pytest.approx(1.110, abs=1e-3)
    same = yarn(text_config(), 1.0)
    assert same.inv_freq == native(text_config()).inv_freq and same.attention_scaling == 1.0


def test_ntk_divides_the_lowest_frequency_by_alpha() -> None:
    plain = native(text_config()).inv_freq
    for reach in (1.5, 2.0, 4.0):
        plan = ntk(text_config(), reach)
        assert plan.inv_freq[-1] == pytest.approx(plain[-1] / reach, rel=1e-5)
        assert plan.inv_freq[0] == 1.0
    stronger = ntk(text_config(), 2.0, strength=2.0)
    assert stronger.inv_freq[-1] == pytest.approx(plain[-1] / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("scaling", "positions", "name"),
    [
        ("none", 262_144, "native"),
        ("auto", 1, "native"),
        ("auto", 262_144, "native"),
        ("auto", 262_145, "yarn:1.5"),
        ("yarn", 393_216, "yarn:1.5"),
        ("auto", 393_217, "yarn:2"),
        ("ntk", 393_217, "ntk:2:1"),
        ("auto", 524_289, "yarn:3"),
        ("ntk", 1_048_576, "ntk:4:1"),
    ],
)
def test_the_smallest_stretch_that_reaches_is_planned(scaling: RopeScaling, positions: int, name: str) -> None:
    assert plan_for(text_config(), scaling, positions).name == name


def test_how_far_a_model_reaches() -> None:
    edited = text_config(rope_type="yarn", factor=3.0, original_max_position_embeddings=262_144)
    edited.max_position_embeddings = 786_432
    assert most_positions(text_config(), "none") == 262_144
    assert most_positions(text_config(), "auto") == most_positions(text_config(), "ntk") == 1_048_576
    assert most_positions(edited, "auto") == 786_432  # stretched already
    assert plan_for(edited, "auto", 700_000).name == "yarn:3"


def test_a_conversation_keeps_its_plan_until_it_outgrows_it() -> None:
    ropes = Ropes(text_config(), "auto", "cpu", torch.float32)
    chosen = [ropes.choose("chat", positions) for positions in (1000, 200_000, 300_000, 350_000, 1000, 400_000)]
    assert [each.rope.plan.name for each in chosen] == ["native"] * 2 + ["yarn:1.5"] * 3 + ["yarn:2"]
    assert [bool(each.sentence) for each in chosen] == [False, False, True, False, False, True]
    assert "262,144" in chosen[2].sentence and "yarn:1.5" in chosen[2].sentence
    assert chosen[2].rope is chosen[4].rope
    assert ropes.choose("other", 1000).rope.plan.name == "native"


def test_a_conversation_that_begins_long_and_a_nameless_request_are_told_nothing() -> None:
    ropes = Ropes(text_config(), "auto", "cpu", torch.float32)
    assert [ropes.choose("", positions).rope.plan.name for positions in (300_000, 10)] == ["yarn:1.5", "native"]
    assert not ropes.choose("", 900_000).sentence and not ropes.choose("film", 900_000).sentence


def test_plans_have_different_names() -> None:
    plans = [native(text_config()), yarn(text_config(), 2.0), yarn(text_config(), 3.0), ntk(text_config(), 1.5)]
    assert len({plan.name for plan in plans}) == len(plans)


def test_generated_tokens_continue_whatever_the_chunking() -> None:
    rope = Rope(native(text_config()), "cpu", torch.float32)
    positions = positions_3d()
    whole = rope.cos_sin(positions)
    parts = [rope.cos_sin(piece) for piece in positions.split(7, dim=1)]
    assert torch.equal(torch.cat([cos for cos, _ in parts]), whole[0])
    assert torch.equal(torch.cat([sin for _, sin in parts]), whole[1])


@pytest.mark.parametrize(
    "change",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope"},
        {"mrope_interleaved": False},
        {"mrope_section": [16, 24, 25]},
        {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0},
    ],
)
def test_ropes_not_done_here_are_refused(change: dict[str, Any]) -> None:
    config = copy.deepcopy(text_config())
    config.rope_parameters = dict(config.rope_parameters) | change
    with pytest.raises(Unsupported):
        native(config)


def test_a_yarn_checkpoint_is_extended_from_its_trained_positions() -> None:
    edited = text_config(rope_type="yarn", factor=3.0, original_max_position_embeddings=262_144)
    edited.max_position_embeddings = 1_000_000
    assert native(edited) == RopePlan(
        "yarn:3", yarn(text_config(), 3.0).inv_freq, (24, 20, 20), yarn(text_config(), 3.0).attention_scaling
    )


def test_frequencies_follow_theta() -> None:
    assert frequencies(5e6, 128)[1].item() == pytest.approx(5e6 ** (-2 / 128))
