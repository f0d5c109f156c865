"""A published shape as its config.json says it, for models of random weights."""

from __future__ import annotations

from typing import Any

from qwen3vl_webui.model.planner import Shape


def text_config(shape: Shape) -> dict[str, Any]:
    config: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.positions,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": shape.tied,
    }
    if shape.experts:
        config |= {"num_experts": shape.experts, "num_experts_per_tok": 8}
        config |= {"moe_intermediate_size": shape.expert_intermediate}
    return config


def vision_config(shape: Shape) -> dict[str, Any]:
    return {
        "depth": shape.vision_depth,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate,
        "num_heads": 16,
        "out_hidden_size": shape.hidden,
        "num_position_embeddings": shape.vision_positions,
        "deepstack_visual_indexes": list(range(shape.taps)),
    }
