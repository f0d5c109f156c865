"""What is planned to be needed beside weights and KV, against what the operations of a step really hold at once.

The text model runs on tensors without memory, in its real shape; storages are counted as they come and go. What fused
kernels take for themselves is not seen.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from qwen3vl_webui.model import attention, formats, forward, tower
from qwen3vl_webui.model.cache import KVCache
from qwen3vl_webui.model.forward import Run, TextModel
from qwen3vl_webui.model.planner import CHUNK, CUDA_BLOCK, KNOWN, VISION_ROWS, KVFormat, Shape, working_parts
from tests.shapes import text_config, vision_config

torch.set_num_threads(1)

META = torch.device("meta")


class Held(TorchDispatchMode):
    """The most bytes of new storages that were there at once."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        return result

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def text_of(shape: Shape, layers: int) -> TextModel:
    """Without memory; as on CUDA its joined weights are there before it runs."""
    config = Qwen3VLConfig(
        text_config={**text_config(shape), "vocab_size": 1000, "num_hidden_layers": layers},
        vision_config={"depth": 1, "hidden_size": 64, "num_heads": 4, "deepstack_visual_indexes": [0]},
    )
    with META:
        network = Qwen3VLForConditionalGeneration(config).to(torch.bfloat16).requires_grad_(False).eval()
    return TextModel(network)


@pytest.mark.parametrize("kv", ["int8", "int4"])
@pytest.mark.parametrize("size", ["2b", "4b", "8b", "32b"])
def test_a_chunk_at_the_end_of_a_long_context_holds_what_was_planned(
    monkeypatch: pytest.MonkeyPatch, size: str, kv: KVFormat
) -> None:
    shape, tokens = KNOWN[size], 131_072
    monkeypatch.setattr(forward, "is_plain", lambda module: type(module) is nn.Linear)
    monkeypatch.setitem(formats.BLOCK, "meta", CUDA_BLOCK)
    monkeypatch.setattr(attention, "is_trusted", lambda *_: True)  # the fused kernel, as on CUDA
    with torch.inference_mode():
        text = text_of(shape, 2)
        kv_cache = KVCache(
            layers=2, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype=torch.bfloat16, device=META, kv=kv
        )
        slot, _ = kv_cache.take(np.arange(1))
        kv_cache.reserve(slot, tokens)
        start = tokens - CHUNK - 1000
        slot.tails = [start // 64, -1]
        given = torch.empty(CHUNK, shape.hidden, device=META, dtype=torch.bfloat16)
        cos, sin = (torch.empty(CHUNK, shape.head_dim, device=META, dtype=torch.bfloat16) for _ in range(2))
        known = [part for layer in kv_cache.layers for part in layer.values()]
        for layer in text.layers:
            assert layer.qkv.weight is not None and layer.gate_up is not None and layer.gate_up.weight is not None
            known += [layer.qkv.weight, layer.gate_up.weight, layer.out.weight, layer.mlp.down_proj.weight]
            known += [norm.weight for norm in (layer.norm, layer.qk_norm, layer.mlp_norm)]
        with Held(*known, given, cos, sin) as held:
            text.forward(given, (cos, sin), kv_cache, [Run(slot, start, CHUNK)])
    parts = working_parts(shape, kv)
    planned = parts["prefill"] + parts["attention"]
    assert 0.88 * planned < held.most <= planned


@pytest.mark.parametrize("size", ["4b", "8b"])
def test_a_group_of_pictures_holds_what_was_planned(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    """On a CPU, a few layers and one picture: what is held grows with its patches."""
    shape, rows = KNOWN[size], 1024
    monkeypatch.setattr(tower, "TURNED", tower.TURNED * rows // VISION_ROWS)
    config = Qwen3VLVisionConfig(**{**vision_config(shape), "depth": 4, "deepstack_visual_indexes": [0, 1, 2]})
    config._attn_implementation = "sdpa"
    vision = Qwen3VLVisionModel(config).to(torch.bfloat16).requires_grad_(False).eval()
    tower.fit(vision)
    patches = torch.zeros(rows, 1536)
    with torch.no_grad(), Held(*vision.parameters(), *vision.buffers(), patches) as held:
        output = vision(patches.bfloat16(), grid_thw=torch.tensor([[1, 32, 32]]), return_dict=True)
        torch.stack([output.pooler_output, *output.deepstack_features])
    planned = working_parts(shape, "bf16")["pictures"] / VISION_ROWS * rows
    assert 0.9 * planned < held.most <= 1.01 * planned
