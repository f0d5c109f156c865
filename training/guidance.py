"""Showing the decoder where to look, while it trains: the way from a question to the moment that answers it.

Left alone, a model this small first learns to copy any stamp, which is right once in as many moments as there are, and
stays there: a stamp stands before its picture and cannot know what it shows. The way that works goes through the
picture: its tokens gather the stamp before them, and the answer finds the picture by likeness. Two extra losses show
this way: visual tokens must tell the digits of their stamp and of the box of what they show, and one head of two layers
must look at the picture that holds the answer. Nothing of it is left at release.

Letters have ways of their own. A cell tells several at once, letter k of a word in slot k % 4 (`sight.py`), and what a
head carries away does not depend on who asks; so each slot has a head, which looks at the cell for its letters only.
And a word that is asked for is found letter by letter: those in the question, and again in the answer that names it,
look at what shows them at the moment or on the page that is wanted, and then must tell its stamp as its picture does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.batches import FOUND
from training.network import Batch, rms_norm, rotate
from training.sight import SLOTS

PROBED_LAYERS = (1, 2)  # after which visual tokens must know their stamp
GUIDED_LAYERS = (3, 4)  # whose first head must look at the evidence
LETTER_LAYER = 4  # whose odd heads, each with keys and values of its own, look at the cells of letters, one for a slot
FINDING_HEADS = {2: (4, 7), 3: (5, 7)}  # by layer: look from a letter that is asked for at the same in what is shown
TOLD_LAYER = 3  # after which the letters that were found must know the stamp of what shows them
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


@dataclass(frozen=True)
class Lookers:
    """Tokens that look, in the order of their rows, and at what."""

    rows: Tensor  # [n]
    places: Tensor  # [n]
    kinds: Tensor  # [n]
    evidence: Tensor  # [n, length] bool


def lookers_of(looks: Tensor, length: int) -> Lookers:
    """Of (row, token that looks, token it should look at, kind) [m, 4]; a token may look at several."""
    who, number = looks[:, [0, 1, 3]].unique(dim=0, return_inverse=True)
    evidence = torch.zeros(len(who), length, dtype=torch.bool, device=looks.device)
    evidence[number, looks[:, 2]] = True
    return Lookers(who[:, 0], who[:, 1], who[:, 2], evidence)


class Guidance:
    """Collects the extra losses of one forward pass; call it before and after each layer."""

    def __init__(self, probe: nn.Linear, batch: Batch) -> None:
        self.probe = probe
        self.labelled = batch.tenths >= 0
        self.digits = digits_of(batch.tenths[self.labelled])
        self.boxed = batch.boxes[..., 0] >= 0
        self.box_digits = digits_of_boxes(batch.boxes[self.boxed])
        self.device = batch.ids.device
        length = batch.ids.shape[1]
        kinds = batch.looks[:, 3]
        self.finding = lookers_of(batch.looks[kinds == FOUND], length)
        where = self.finding.evidence.int().argmax(-1)  # the first of several
        self.found_digits = digits_of(batch.tenths[self.finding.rows, where])
        reading = batch.looks[kinds < FOUND]
        self.reading = lookers_of(reading, length)
        asking = batch.wanted > 0
        self.moments = {GUIDED_LAYERS[0]: self._askers(batch, asking)}
        asking = asking.index_put((reading[:, 0], reading[:, 1]), torch.tensor(False, device=self.device))
        self.moments[LETTER_LAYER] = self._askers(batch, asking)
        self.losses: list[Tensor] = []
        self.found: dict[str, float] = {}  # share of the guided heads' attention that lies on the evidence

    @staticmethod
    def _askers(batch: Batch, asking: Tensor) -> Lookers:
        rows, places = asking.nonzero(as_tuple=True)
        return Lookers(rows, places, torch.zeros_like(rows), batch.wanted[rows, places, None] == batch.shown[rows])

    def before(self, number: int, layer: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> None:
        if number not in (*FINDING_HEADS, *GUIDED_LAYERS):
            return
        normed = rms_norm(x.to(mask.dtype), layer.input_layernorm)

        def looks(head: int, lookers: Lookers) -> Tensor:
            return look(layer, head, normed, cos, sin, mask, lookers)

        def told(name: str, on_it: Tensor) -> None:
            self.found[name] = float(on_it.detach().exp().mean())

        if number in FINDING_HEADS and len(self.finding.rows):
            for head in FINDING_HEADS[number]:
                on_it = share(looks(head, self.finding), self.finding.evidence)
                self.losses.append(-on_it.mean() / len(FINDING_HEADS[number]))
                told("finds", on_it)
        if number in self.moments and len(self.moments[number].rows):
            on_it = share(looks(0, self.moments[number]), self.moments[number].evidence)
            self.losses.append(-on_it.mean())
            told("looks", on_it)
        if number == LETTER_LAYER and len(self.reading.rows):
            right = []
            for slot in range(SLOTS):
                shares, mine = looks(2 * slot + 1, self.reading), self.reading.kinds == slot
                on_it = share(shares[mine], self.reading.evidence[mine])
                elsewhere = share(shares[~mine], ~self.reading.evidence[~mine])
                self.losses.append(-(on_it.sum() + ELSEWHERE * elsewhere.sum()) / len(mine))
                right.append(on_it)
            told("reads", torch.cat(right))

    def after(self, number: int, x: Tensor) -> None:
        stamps = slice(0, STAMP_DIGITS * (ABSENT_DIGIT + 1))
        if number in PROBED_LAYERS:
            self._probe(x[self.labelled], stamps, self.digits)
            self._probe(x[self.boxed], slice(stamps.stop, None), self.box_digits)
        if number == TOLD_LAYER:
            self._probe(x[self.finding.rows, self.finding.places], stamps, self.found_digits)

    def _probe(self, x: Tensor, part: slice, digits: Tensor) -> None:
        if len(x):
            told = F.linear(x, self.probe.weight[part], self.probe.bias[part]).view(-1, ABSENT_DIGIT + 1)
            self.losses.append(F.cross_entropy(told, digits.flatten()))

    def loss(self) -> Tensor:
        return torch.stack(self.losses).sum() if self.losses else torch.zeros((), device=self.device)


def share(look: Tensor, on: Tensor) -> Tensor:
    """The logarithm of how much of each look [n, length] lies on the tokens `on` [n, length]: [n]."""
    return look.masked_fill(~on, -1e4).logsumexp(-1)


def look(layer: Any, head: int, normed: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, lookers: Lookers) -> Tensor:
    """Of each looker the logarithm of a head's attention to every token of its row: [n, length]."""
    own, dim = layer.self_attn, layer.self_attn.head_dim
    group = head // own.num_key_value_groups
    rows, places = lookers.rows, lookers.places
    query = F.linear(normed[rows, places], own.q_proj.weight[head * dim : (head + 1) * dim].to(mask.dtype))
    key = F.linear(normed, own.k_proj.weight[group * dim : (group + 1) * dim].to(mask.dtype))
    query = rotate(rms_norm(query, own.q_norm), cos[rows, places, 0], sin[rows, places, 0])  # [n, dim]
    key = rotate(rms_norm(key, own.k_norm), cos[:, :, 0], sin[:, :, 0])  # [rows, length, dim]
    counts = rows.bincount(minlength=len(key)).tolist()
    scores = torch.cat([q @ k.T for q, k in zip(query.split(counts), key, strict=True)]).float()  # [n, length]
    return (scores * dim**-0.5 + mask[rows, 0, places].float()).log_softmax(-1)
