"""Showing the decoder where to look, while it trains: the way from a question to the moment that answers it.

Left alone, a model this small first learns to copy any stamp, which is right once in as many moments as there are, and
stays there: a stamp stands before its picture and cannot know what it shows. The way that works goes through the
picture: its tokens gather the stamp before them, and the answer finds the picture by likeness. Two extra losses show
this way: visual tokens must tell the digits of their stamp and of the box of what they show, and one head of two layers
must look at the picture that holds the answer. Nothing of it is left at release.

Letters have a way of their own. A cell tells several at once, letter k of a word in slot k % 4 (`sight.py`), and what a
head carries away does not depend on who asks; so each slot has a head, which looks at the cell for its letters only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.network import Batch, rms_norm, rotate
from training.sight import SLOTS

PROBED_LAYERS = (1, 2)  # after which visual tokens must know their stamp
GUIDED_LAYERS = (3, 4)  # whose first head must look at the evidence
LETTER_LAYER = 4  # whose odd heads, each with keys and values of its own, look at the cells of letters, one for a slot
ELSEWHERE = 0.3  # weight of not looking at letters of other slots
ABSENT_DIGIT = 10
STAMP_DIGITS = 5  # to 2.7 hours
BOX_DIGITS = 2  # hundreds and tens of 0..1000: enough for an overlap of nine tenths


def build_probe(width: int) -> nn.Linear:
    return nn.Linear(width, (STAMP_DIGITS + 4 * BOX_DIGITS) * (ABSENT_DIGIT + 1))


def digits_of(tenths: Tensor) -> Tensor:
    """Tenths of a second [n] -> thousands, hundreds, tens, units and tenths as written [n, 5]; 10 where none is."""
    places = [tenths // 10**power % 10 for power in reversed(range(STAMP_DIGITS))]
    for place, power in zip(range(STAMP_DIGITS - 2), (4, 3, 2), strict=True):
        places[place] = places[place].masked_fill(tenths < 10**power, ABSENT_DIGIT)
    return torch.stack(places, dim=-1)


def digits_of_boxes(boxes: Tensor) -> Tensor:
    """Coordinates 0..1000 [n, 4] -> hundreds and tens as written [n, 8]; 10 where none is."""
    boxes = boxes.clamp(max=999)  # a whole thousand is rare and has a digit of its own
    hundreds = (boxes // 100).masked_fill(boxes < 100, ABSENT_DIGIT)
    tens = (boxes // 10 % 10).masked_fill(boxes < 10, ABSENT_DIGIT)
    return torch.stack((hundreds, tens), dim=-1).flatten(1)


class Guidance:
    """Collects the extra losses of one forward pass; call it before and after each layer."""

    def __init__(self, probe: nn.Linear, batch: Batch) -> None:
        self.probe = probe
        self.batch = batch
        self.labelled = batch.tenths >= 0
        self.digits = digits_of(batch.tenths[self.labelled])
        self.boxed = batch.boxes[..., 0] >= 0
        self.box_digits = digits_of_boxes(batch.boxes[self.boxed])
        self.asking = batch.wanted > 0
        self.losses: list[Tensor] = []
        self.found = 0.0  # share of the guided heads' attention that lies on the evidence

    def before(self, number: int, layer: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> None:
        if number not in GUIDED_LAYERS or not self.asking.any():
            return
        normed = rms_norm(x.to(mask.dtype), layer.input_layernorm)
        letters = self.asking & (self.batch.slots >= 0)
        asking = self.asking & ~letters if number == LETTER_LAYER else self.asking
        if asking.any():
            on_it, _ = self._looks(layer, 0, normed, cos, sin, mask, asking)
            self.losses.append(-on_it.mean())
            self.found = float(on_it.detach().exp().mean())
        if number == LETTER_LAYER and letters.any():
            slots = self.batch.slots[letters]
            for slot in range(SLOTS):
                on_it, elsewhere = self._looks(layer, 2 * slot + 1, normed, cos, sin, mask, letters)
                mine = slots == slot
                loss = -(on_it[mine].sum() + ELSEWHERE * elsewhere[~mine].sum()) / len(slots)
                self.losses.append(loss)

    def _looks(
        self, layer: Any, head: int, normed: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, asking: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of each asking token [n] the logarithm of the share of a head's look that lies on its evidence, and of the
        rest."""
        own, dim = layer.self_attn, layer.self_attn.head_dim
        group = head // own.num_key_value_groups
        query = F.linear(normed, own.q_proj.weight[head * dim : (head + 1) * dim].to(mask.dtype))
        key = F.linear(normed, own.k_proj.weight[group * dim : (group + 1) * dim].to(mask.dtype))
        query = rotate(rms_norm(query, own.q_norm), cos[:, :, 0], sin[:, :, 0])
        key = rotate(rms_norm(key, own.k_norm), cos[:, :, 0], sin[:, :, 0])
        scores = (query @ key.transpose(1, 2)).float() * dim**-0.5 + mask[:, 0].float()  # [rows, length, length]
        evidence = (self.batch.wanted[:, :, None] == self.batch.shown[:, None, :])[asking]
        scores = scores[asking]
        whole = scores.logsumexp(-1)
        on_it, elsewhere = (scores.masked_fill(out, -1e4).logsumexp(-1) - whole for out in (~evidence, evidence))
        return on_it, elsewhere

    def after(self, number: int, x: Tensor) -> None:
        if number not in PROBED_LAYERS:
            return
        stamps = STAMP_DIGITS * (ABSENT_DIGIT + 1)
        for there, digits, part in (
            (self.labelled, self.digits, slice(0, stamps)),
            (self.boxed, self.box_digits, slice(stamps, None)),
        ):
            if there.any():
                told = F.linear(x[there], self.probe.weight[part], self.probe.bias[part]).view(-1, ABSENT_DIGIT + 1)
                self.losses.append(F.cross_entropy(told, digits.flatten()))

    def loss(self) -> Tensor:
        return torch.stack(self.losses).sum() if self.losses else torch.zeros((), device=self.batch.ids.device)
