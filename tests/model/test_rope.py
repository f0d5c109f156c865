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
from qwen3vl_webui.model.rope import Rope, RopePlan, frequencies, native, ntk, yarn


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


def test_ntk_is_native_within_the_trained_positions() -> None:
    assert ntk(text_config(), 262_144) == native(text_config())


def test_ntk_divides_the_lowest_frequency_by_alpha_and_is_frozen_by_bucket() -> None:
    plain = native(text_config()).inv_freq
    for positions, reach in ((262_145, 1.5), (393_216, 1.5), (393_217, 2.0), (524_289, 4.0), (1_048_577, 8.0)):
        plan = ntk(text_config(), positions)
        assert plan.inv_freq[-1] == pytest.approx(plain[-1] / reach, rel=1e-5)
        assert plan.inv_freq[0] == 1.0
        assert plan.name == f"ntk:{reach:g}:1"
    assert ntk(text_config(), 500_000) == ntk(text_config(), 520_000)
    stronger = ntk(text_config(), 500_000, strength=2.0)
    assert stronger.inv_freq[-1] == pytest.approx(plain[-1] / 3, rel=1e-5)


def test_plans_have_different_names() -> None:
    plans = [native(text_config()), yarn(text_config(), 2.0), yarn(text_config(), 3.0), ntk(text_config(), 300_000)]
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
