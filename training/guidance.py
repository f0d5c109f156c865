"""Showing the decoder where to look, while it trains: the way from a question to the moment that answers it.

Left alone, a model this small first learns to copy any stamp, which is right once in as many moments as there are, and
stays there: a stamp stands before its picture and cannot know what it shows. The way that works goes through the
picture: its tokens gather the stamp before them, and the answer finds the picture by likeness. Two extra losses show
this way: visual tokens must tell the digits of their stamp, and one head of two layers must look at the picture that
holds the answer. Nothing of it is left at release.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.network import Batch, linear, rms_norm, rotate

PROBED_LAYERS = (1, 2)  # after which visual tokens must know their stamp
GUIDED_LAYERS = (3, 4)  # whose first head must look at the evidence
ABSENT_DIGIT = 10


def build_probe(width: int) -> nn.Linear:
    return nn.Linear(width, 4 * (ABSENT_DIGIT + 1))


def digits_of(tenths: Tensor) -> Tensor:
    """Tenths of a second [n] -> hundreds, tens, units and tenths as they are written [n, 4]; 10 where none is."""
    places = [tenths // 1000 % 10, tenths // 100 % 10, tenths // 10 % 10, tenths % 10]
    places[0] = places[0].masked_fill(tenths < 1000, ABSENT_DIGIT)
    places[1] = places[1].masked_fill(tenths < 100, ABSENT_DIGIT)
    return torch.stack(places, dim=-1)


class Guidance:
    """Collects the extra losses of one forward pass; call it before and after each layer."""

    def __init__(self, probe: nn.Linear, batch: Batch) -> None:
        self.probe = probe
        self.batch = batch
        self.labelled = batch.tenths >= 0
        self.digits = digits_of(batch.tenths[self.labelled])
        self.asking = batch.wanted > 0
        self.losses: list[Tensor] = []
        self.found = 0.0  # share of the guided heads' attention that lies on the evidence

    def before(self, number: int, layer: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> None:
        if number not in GUIDED_LAYERS or not self.asking.any():
            return
        own, dim = layer.self_attn, layer.self_attn.head_dim
        normed = rms_norm(x.to(mask.dtype), layer.input_layernorm)
        query = F.linear(normed, own.q_proj.weight[:dim].to(mask.dtype))
        key = F.linear(normed, own.k_proj.weight[:dim].to(mask.dtype))
        query = rotate(rms_norm(query, own.q_norm), cos[:, :, 0], sin[:, :, 0])
        key = rotate(rms_norm(key, own.k_norm), cos[:, :, 0], sin[:, :, 0])
        scores = (query @ key.transpose(1, 2)).float() * dim**-0.5 + mask[:, 0].float()  # [rows, length, length]
        evidence = self.batch.wanted[:, :, None] == self.batch.shown[:, None, :]
        scores = scores[self.asking]
        on_it = scores.masked_fill(~evidence[self.asking], -1e4).logsumexp(-1) - scores.logsumexp(-1)
        self.losses.append(-on_it.mean())
        self.found = float(on_it.detach().exp().mean())

    def after(self, number: int, x: Tensor) -> None:
        if number in PROBED_LAYERS and self.labelled.any():
            told = linear(x[self.labelled], self.probe).view(-1, ABSENT_DIGIT + 1)
            self.losses.append(F.cross_entropy(told, self.digits.flatten()))

    def loss(self) -> Tensor:
        return torch.stack(self.losses).sum() if self.losses else torch.zeros((), device=self.batch.ids.device)
