"""Parts of the vision tower that replace the library's: the same numbers with less memory and fewer launches."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn import functional

TURNED = 1024  # rows whose queries and keys are float32 at once


class PatchEmbedding(nn.Module):
    """The tower's Conv3d as the linear layer it is, since its stride equals its kernel.

    Conv3d is many times slower on some torch and cuDNN versions. transformers' own `fusion_config` does the same, but
    patches the class for the whole process.
    """

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = nn.Parameter(convolution.weight.flatten(1), requires_grad=False)  # [hidden, 1536]
        self.bias = convolution.bias

    def forward(self, patches: torch.Tensor) -> torch.Tensor:  # [patches, 1536] -> [patches, hidden]
        return functional.linear(patches.to(self.weight.dtype), self.weight, self.bias)


class VisionAttention(nn.Module):
    """Attention within each frame or picture. Queries and keys are turned in place, some rows at a time (the library
    holds seven float32 copies of all), and frames of one size go through in one call. Not differentiable."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = stock.qkv, stock.proj, stock.num_heads

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        """hidden_states (rows, hidden); cu_seqlens: where each frame begins, and the end; cos and sin (rows, d)."""
        count = len(hidden_states)
        qkv = self.qkv(hidden_states).view(count, 3, self.heads, -1)
        cos, sin = position_embeddings
        for at in range(0, count, TURNED):
            here = slice(at, at + TURNED)
            rows = qkv[here, :2].float()  # (r, 2, heads, d)
            low, high = rows.chunk(2, -1)
            turned = torch.cat((-high, low), -1).mul_(sin[here, None, None].float())
            qkv[here, :2] = turned.add_(rows.mul_(cos[here, None, None].float()))
        answers, at = [], 0
        for length, frames in groupby(cu_seqlens.diff().tolist()):
            number = len(list(frames))
            query, key, value = (
                qkv[at : at + number * length].view(number, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            )  # (frames, heads, length, d)
            answer = functional.scaled_dot_product_attention(query, key, value)
            answers.append(answer.transpose(1, 2).reshape(number * length, -1))
            at += number * length
        return self.proj(torch.cat(answers) if len(answers) > 1 else answers[0])


def fit(tower: Any) -> None:
    """Puts both in their places."""
    tower.patch_embed = PatchEmbedding(tower.patch_embed.proj)
    for block in tower.blocks:
        block.attn = VisionAttention(block.attn)
