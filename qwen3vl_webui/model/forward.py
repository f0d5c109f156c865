"""The text model's forward pass over the KV slab, on the stock modules' weights.

Rows of several conversations stand behind each other in one flat batch: N rows, cut into runs. Linear layers see all N
at once, attention goes run by run. A prompt chunk is one run of many rows, a decode step one row per run; where the KV
cache has a kernel for single rows, those at the end go together.

Shapes: N rows, H query heads, K KV heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from qwen3vl_webui.model import fp8
from qwen3vl_webui.model.cache import KVCache, Slot
from qwen3vl_webui.model.formats import Places


@dataclass(frozen=True)
class Run:
    """`count` rows of one conversation, which stand at `start` in its slot."""

    slot: Slot
    start: int
    count: int


@dataclass(frozen=True)
class DeepStack:
    """Vision features added after the first text layers: `features[i]` (visual rows, hidden) after layer i."""

    rows: torch.Tensor  # int64, which of the N rows are visual
    features: Sequence[torch.Tensor]


def is_plain(module: Any) -> bool:
    """A linear layer whose weight may be read directly: not quantized, not offloaded, nothing hooked to it."""
    return type(module) is nn.Linear and module.weight.device.type != "meta" and not hasattr(module, "_hf_hook")


class Joined:
    """Several linear layers that read the same input, as one matrix product where their weights allow it.

    The modules keep working: their weights become views of the joined one, so nothing is held twice.
    """

    def __init__(self, modules: Sequence[Any]) -> None:
        self.modules = list(modules)
        self.weight: torch.Tensor | None = None
        self.packed = fp8.joined(modules)
        if all(is_plain(module) and module.bias is None for module in self.modules):
            weight = torch.cat([module.weight.detach() for module in self.modules])
            at = 0
            for module in self.modules:
                rows = module.weight.shape[0]
                module.weight = nn.Parameter(weight[at : at + rows], requires_grad=False)
                at += rows
            self.weight = weight

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        if self.weight is not None:
            return functional.linear(rows, self.weight)
        if self.packed is not None:
            return self.packed(rows)
        return torch.cat([module(rows) for module in self.modules], -1)


class RootMeanSquare:
    """RMSNorm over the last axis, float32 inside. `weight` may have more axes in front of it.

    On a CPU the library's own is eight small operations, which is much of what a token costs: four are enough.
    """

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        self.weight, self.epsilon, self.size = weight.detach(), epsilon, weight.shape[-1]
        self.scale = self.weight.float() * self.size**0.5
        self.least = torch.tensor((self.size * epsilon) ** 0.5, device=weight.device)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.dtype == torch.float32 and rows.device.type == "cpu":
            length = torch.hypot(torch.linalg.vector_norm(rows, 2, -1, True), self.least)
            return torch.div(rows, length).mul_(self.scale)
        if self.weight.ndim == 1:
            return functional.rms_norm(rows, (self.size,), self.weight, self.epsilon)
        return functional.rms_norm(rows, (self.size,), eps=self.epsilon) * self.weight


def norm_of(module: Any) -> RootMeanSquare:
    return RootMeanSquare(module.weight, module.variance_epsilon)


class Layer:
    """One decoder layer, its modules laid out for few calls."""

    def __init__(self, module: Any, heads: int, kv_heads: int, head_dim: int) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.norm = norm_of(module.input_layernorm)
        self.qkv = Joined([attention.q_proj, attention.k_proj, attention.v_proj])
        query_norm, key_norm = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
        qk_norm = torch.cat((query_norm.expand(heads, -1), key_norm.expand(kv_heads, -1)))  # (H + K, d)
        self.qk_norm = RootMeanSquare(qk_norm, attention.q_norm.variance_epsilon)
        self.out = attention.o_proj
        self.mlp_norm = norm_of(module.post_attention_layernorm)
        self.mlp = mlp
        self.gate_up = Joined([mlp.gate_proj, mlp.up_proj]) if hasattr(mlp, "gate_proj") else None

    def attention(
        self,
        rows: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: KVCache,
        index: int,
        runs: Sequence[Run],
        places: Places | None,
    ) -> torch.Tensor:
        count, heads, kv_heads = rows.shape[0], self.heads, self.kv_heads
        qkv = self.qkv(rows).view(count, heads + 2 * kv_heads, self.head_dim)
        qk, value = qkv.split((heads + kv_heads, kv_heads), 1)
        qk = self.qk_norm(qk)
        qk = torch.addcmul(qk * cos, qk.roll(self.head_dim // 2, -1), sin)
        query, key = qk.split((heads, kv_heads), 1)  # (N, H, d), (N, K, d)
        answers = []
        if places is not None:
            alone = len(places.rows)
            answers.append(cache.decode(index, places, query[-alone:], key[-alone:], value[-alone:]).view(alone, -1))
        if runs:
            counts = [run.count for run in runs]
            if places is not None:
                query, key, value = (part[:-alone] for part in (query, key, value))
            query = query.transpose(0, 1)[None]  # (1, H, N, d)
            if len(runs) == 1:
                answer = cache.attend(index, runs[0].slot, runs[0].start, query, key, value)
            else:
                parts = zip(runs, query.split(counts, 2), key.split(counts), value.split(counts), strict=True)
                answer = torch.cat([cache.attend(index, run.slot, run.start, q, k, v) for run, q, k, v in parts], 2)
            answers.insert(0, answer[0].transpose(0, 1).reshape(sum(counts), -1))
        return self.out(torch.cat(answers) if len(answers) > 1 else answers[0])

    def feed_forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.gate_up is None:
            return self.mlp(rows[None])[0]  # mixture of experts
        gate, up = self.gate_up(rows).chunk(2, -1)
        return self.mlp.down_proj(self.mlp.act_fn(gate) * up)


class TextModel:
    """`network` is a stock Qwen3-VL (dense or mixture of experts) in eval mode."""

    def __init__(self, network: Any) -> None:
        text = network.model.language_model
        config = text.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.embedding = text.embed_tokens
        self.layers = [
            Layer(module, config.num_attention_heads, config.num_key_value_heads, head_dim) for module in text.layers
        ]
        self.norm = norm_of(text.norm)
        self.lm_head = network.lm_head
        self.head_dim = head_dim

    def forward(
        self,
        rows: torch.Tensor,
        cos_sin: tuple[torch.Tensor, torch.Tensor],
        cache: KVCache,
        runs: Sequence[Run],
        deepstack: DeepStack | None = None,
        places: Places | None = None,
    ) -> torch.Tensor:
        """Embedded rows (N, hidden) and their cos and sin (N, d) -> last hidden states (N, hidden), not normalized.

        The KV of all rows is written to the slots, which must have room; their `keys` are the caller's to extend. Rows
        behind those of the runs stand one each at `places`.
        """
        if cache.kernel is not None and places is None:
            alone = len(list(takewhile(lambda run: run.count == 1, reversed(runs))))
            if alone:
                places = cache.places([(run.slot, run.start) for run in runs[-alone:]])
                runs = runs[:-alone]
        assert sum(run.count for run in runs) + (len(places.rows) if places is not None else 0) == len(rows)
        cos, sin = cos_sin
        half = self.head_dim // 2
        cos = cos[:, None]  # (N, 1, d)
        sin = torch.cat((-sin[:, :half], sin[:, half:]), -1)[:, None]  # rotate_half's sign, so that a roll is enough
        for index, layer in enumerate(self.layers):
            rows = rows + layer.attention(layer.norm(rows), cos, sin, cache, index, runs, places)
            rows = rows + layer.feed_forward(layer.mlp_norm(rows))
            if deepstack is not None and index < len(deepstack.features):
                rows.index_add_(0, deepstack.rows, deepstack.features[index])
        return rows

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 (n, vocabulary) of the hidden states `forward` returned; give only the rows that are needed."""
        return self.lm_head(self.norm(rows)).float()
