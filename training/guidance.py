"""Showing the decoder where to look, while it trains: the way from a question to the moment that answers it.

Left alone, a model this small first learns to copy any stamp, which is right once in as many moments as there are, and
stays there: a stamp stands before its picture and cannot know what it shows. The way that works goes through the
picture: its tokens gather the stamp before them, and the answer finds the picture by likeness. Two extra losses show
this way: visual tokens must tell the digits of their stamp and of the box of what they show, and one head of two layers
must look at the picture that holds the answer. Nothing of it is left at release.

Letters have ways of their own. A cell tells several at once, letter k of a word in slot k % 4 (`sight.py`), and what a
head carries away does not depend on who asks; so each slot has a head, which looks at the cell for its letters only and
whose output must look like the letter. And a word that is asked for is found letter by letter: those in the question,
and again in the answer that names it, look at what shows them at the moment or on the page that is wanted, and then
must tell its stamp as its picture does; where no word begins like this one they look at the first token of all. What
the answer says after the word, it reads off these letters: its digits with a head for each place of the stamp. So are
the hundreds of a box read off the cell of its thing, and a thing by what names it, one after another, and the first
token of all where no more are there. A number comes of a look at all that is counted and, as much, at that token: its
share tells how many they are.

Scenes are linked: where one begins, its cells must tell where the one before began, and where the same thing or word
was last seen. An answer that lists moments goes on along these links: what comes after the stamp of an item must know
its digits, and its end looks for the moment that is linked to them, or at the first token of all where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.encoding import AGAIN, COUNTED, DIGIT, FOLLOWS, FOUND, NEXT, STAMP_PLACES, THING, TOLD
from training.network import Batch, rms_norm, rotate

PROBED_LAYERS = (1, 3)  # after which visual tokens must know their stamp
GUIDED_LAYERS = (4, 5)  # whose first head must look at the evidence
LINKED_LAYER = 3  # after which a moment must know which one it comes after
LINKING_HEADS = {FOLLOWS: 0, AGAIN: 2}  # of that layer: look at the earlier moment
LETTER_LAYER, LETTER_HEADS = 5, (1, 3, 5, 7)  # look at the cells of letters, each with values of its own for its slot
DIGIT_LAYER, DIGIT_HEADS = 6, (0, 1, 3, 5, 7)  # look at what knows a stamp, each for a digit of it
BOX_HEADS = (0, 3, 7, 4)  # of that layer: look at the cell of a thing, each for a number of its box
FINDING_HEADS = {3: (4, 7), 4: (5, 7)}  # by layer: look from a letter that is asked for at the same in what is shown
NEXT_LAYER, NEXT_HEAD = 4, 3  # looks from the end of an item at the moment of the next
TOLD_LAYER = 4  # after which the letters that were found must know the stamp of what shows them, and the end of an item
TELLING_HEADS = {4: 2, 5: 2}  # by layer: look from what writes that stamp at those letters
NAMING_LAYER, NAMING_HEAD = 5, 4  # looks at the cell of the thing that is named next
COUNTING_LAYER, COUNTING_HEADS = 4, (1, 6)  # look at all that is counted alike; after it the number is known
CARRIED = 3.0  # weight of carrying the right letters and digits away
ELSEWHERE = 0.3  # weight of not looking at what another head copies
ABSENT_DIGIT = 10
BOX_DIGITS = 2  # hundreds and tens of 0..1000: enough for an overlap of nine tenths
NUMBER = STAMP_PLACES + 4 * BOX_DIGITS + 2 * STAMP_PLACES  # the last the probe tells, after stamp, box and links


def build_probe(width: int) -> nn.Linear:
    return nn.Linear(width, (NUMBER + 1) * (ABSENT_DIGIT + 1))


def digits_of(tenths: Tensor) -> Tensor:
    """Tenths of a second [n] -> thousands, hundreds, tens, units and tenths as written [n, 5]; 10 where none is.

    Below 0 stands for no stamp.
    """
    places = [tenths // 10**power % 10 for power in reversed(range(STAMP_PLACES))]
    for place, power in zip(range(STAMP_PLACES - 2), (4, 3, 2), strict=True):
        places[place] = places[place].masked_fill(tenths < 10**power, ABSENT_DIGIT)
    return torch.stack(places, dim=-1).masked_fill(tenths[..., None] < 0, ABSENT_DIGIT)


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


@dataclass(frozen=True)
class Way:
    """How tokens are copied: a head for each kind of looker, and what it carries must look like what is written."""

    lookers: Lookers  # kinds count from 0
    heads: tuple[int, ...]  # of each kind; kinds may share one
    carried: Tensor  # [n, 4]: row, token that is looked at, kind, token to be written
    names: tuple[str, str]  # under which its looks and what it carries are watched


def written_by(lookers: Lookers, targets: Tensor) -> Tensor:
    """[n, 4] of a `Way`: of all that is looked at the token that the looker writes."""
    who, seen = lookers.evidence.nonzero(as_tuple=True)
    rows, writers = lookers.rows[who], lookers.places[who]
    return torch.stack((rows, seen, lookers.kinds[who], targets[rows, writers]), dim=-1)


def links_of(batch: Batch, kind: int) -> Lookers:
    """Cells of moments that come after another, and the cells of that."""
    rows, cells, _, tenths = batch.links[(batch.links[:, 2] == kind) & (batch.links[:, 3] >= 0)].unbind(-1)
    evidence = (batch.tenths[rows] == tenths[:, None]) & (batch.shown[rows] > 0)
    return Lookers(rows, cells, torch.full_like(rows, kind), evidence)


class Guidance:
    """Collects the extra losses of one forward pass; call it before and after each layer."""

    def __init__(self, probe: nn.Linear, table: Tensor, batch: Batch) -> None:
        """`table`: the embedding of tokens [vocabulary, width]."""
        self.probe, self.table = probe, table
        self.links = batch.links
        self.linking = {kind: links_of(batch, kind) for kind in LINKING_HEADS}
        self.labelled = batch.tenths >= 0
        self.digits = digits_of(batch.tenths[self.labelled])
        self.boxed = batch.boxes[..., 0] >= 0
        self.box_digits = digits_of_boxes(batch.boxes[self.boxed])
        self.device = batch.ids.device
        length = batch.ids.shape[1]
        kinds = batch.looks[:, 3]
        self.finding = lookers_of(batch.looks[kinds == FOUND], length)
        self.following = lookers_of(batch.looks[kinds == NEXT], length)
        self.naming = lookers_of(batch.looks[kinds == THING], length)
        self.counting = lookers_of(batch.looks[kinds == COUNTED], length)
        self.seeking = lookers_of(batch.looks[(kinds == FOUND) | (kinds == NEXT)], length)
        where = self.seeking.evidence.int().argmax(-1)  # the first of several
        self.found_digits = digits_of(batch.tenths[self.seeking.rows, where])  # absent where it is nowhere
        reading = lookers_of(batch.looks[kinds < FOUND], length)
        placed = (kinds >= DIGIT) & (kinds < NEXT)  # in a stamp or a box
        digits = lookers_of(batch.looks[placed] - kinds.new_tensor((0, 0, 0, DIGIT)), length)
        self.ways = {
            LETTER_LAYER: Way(reading, LETTER_HEADS, batch.letters, ("reads", "carries")),
            DIGIT_LAYER: Way(digits, DIGIT_HEADS + BOX_HEADS, written_by(digits, batch.targets), ("writes", "brings")),
        }
        self.telling = lookers_of(batch.looks[kinds == TOLD], length)
        found_at = torch.zeros_like(batch.ids).index_put(
            (self.seeking.rows, self.seeking.places), torch.arange(len(self.seeking.rows), device=self.device)
        )
        self.told_digits = self.found_digits[found_at[self.telling.rows, self.telling.evidence.int().argmax(-1)]]
        others = zip(GUIDED_LAYERS, (self.telling, reading), strict=True)
        self.moments = {number: self._askers(batch, other) for number, other in others}
        self.losses: list[Tensor] = []
        self.found: dict[str, float] = {}  # share of the guided heads' attention that lies on the evidence

    @staticmethod
    def _askers(batch: Batch, other: Lookers) -> Lookers:
        """Whoever writes what a picture answers, but for those who are shown `other` ways there."""
        asking = (batch.wanted > 0).index_put((other.rows, other.places), torch.tensor(False, device=other.rows.device))
        rows, places = asking.nonzero(as_tuple=True)
        return Lookers(rows, places, torch.zeros_like(rows), batch.wanted[rows, places, None] == batch.shown[rows])

    def before(self, number: int, layer: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> None:
        if number not in (LINKED_LAYER, NEXT_LAYER, COUNTING_LAYER, *FINDING_HEADS, *GUIDED_LAYERS, *self.ways):
            return
        normed = rms_norm(x.to(mask.dtype), layer.input_layernorm)

        def looks(head: int, lookers: Lookers) -> Tensor:
            return look(layer, head, normed, cos, sin, mask, lookers)

        def told(name: str, on_it: Tensor) -> None:
            self.found[name] = float(on_it.detach().exp().mean())

        def shown(name: str, head: int, lookers: Lookers, weight: float = 1.0) -> None:
            if len(lookers.rows):
                on_it = share(looks(head, lookers), lookers.evidence)
                self.losses.append(-weight * on_it.mean())
                told(name, on_it)

        if number == LINKED_LAYER:
            for kind, lookers in self.linking.items():
                shown("links", LINKING_HEADS[kind], lookers)
        for head in FINDING_HEADS.get(number, ()):
            shown("finds", head, self.finding, 1 / len(FINDING_HEADS[number]))
        if number == NEXT_LAYER:
            shown("goes_on", NEXT_HEAD, self.following)
        if number == COUNTING_LAYER and len(self.counting.rows):
            evenly = self.counting.evidence / self.counting.evidence.sum(-1, keepdim=True)
            for head in COUNTING_HEADS:
                apart = evenly * (evenly.clamp(min=1e-9).log() - looks(head, self.counting).clamp(min=-1e4))
                self.losses.append(apart.sum(-1).mean() / len(COUNTING_HEADS))
        if number in self.moments:
            shown("looks", 0, self.moments[number])
        if number == NAMING_LAYER:
            shown("names", NAMING_HEAD, self.naming)
        if number in TELLING_HEADS:
            shown("tells", TELLING_HEADS[number], self.telling)
        way = self.ways.get(number)
        if way and len(way.lookers.rows):
            right = []
            heads = torch.tensor(way.heads, device=self.device)[way.lookers.kinds]
            for head in sorted(set(way.heads)):
                shares, mine = looks(head, way.lookers), heads == head
                on_it = share(shares[mine], way.lookers.evidence[mine])
                elsewhere = share(shares[~mine], ~way.lookers.evidence[~mine])
                self.losses.append(-(on_it.sum() + ELSEWHERE * elsewhere.sum()) / len(mine))
                right.append(on_it)
            told(way.names[0], torch.cat(right))
        if way and len(way.carried):
            self._carried(way, layer, normed)

    def _carried(self, way: Way, layer: Any, normed: Tensor) -> None:
        own, dim = layer.self_attn, layer.self_attn.head_dim
        rows, places, kinds, ids = way.carried.unbind(-1)
        width = self.table.shape[1]
        names = F.rms_norm(self.table, (width,))
        right = []
        heads = torch.tensor(way.heads, device=self.device)[kinds]
        for head in sorted(set(way.heads)):
            mine, group = heads == head, head // own.num_key_value_groups
            value = own.v_proj.weight[group * dim : (group + 1) * dim].to(normed.dtype)
            output = own.o_proj.weight[:, head * dim : (head + 1) * dim].to(normed.dtype)
            carried = F.linear(F.linear(normed[rows[mine], places[mine]], value), output).float()
            told = F.rms_norm(carried, (width,)) @ names.T * width**-0.5
            self.losses.append(CARRIED * F.cross_entropy(told, ids[mine], reduction="sum") / len(ids))
            right.append(told.argmax(-1) == ids[mine])
        self.found[way.names[1]] = float(torch.cat(right).float().mean())

    def after(self, number: int, x: Tensor) -> None:
        if number in PROBED_LAYERS:
            self._probe(x[self.labelled], 0, self.digits)
            self._probe(x[self.boxed], STAMP_PLACES, self.box_digits)
        if number == LINKED_LAYER:
            for kind, name in ((FOLLOWS, "follows"), (AGAIN, "again")):
                rows, cells, _, tenths = self.links[self.links[:, 2] == kind].unbind(-1)
                digits = digits_of(tenths)
                right = self._probe(x[rows, cells], STAMP_PLACES + 4 * BOX_DIGITS + kind * STAMP_PLACES, digits)
                if (tenths >= 0).any():
                    self.found[name] = float(right[tenths >= 0].float().mean())
        if number == TOLD_LAYER:
            self._probe(x[self.seeking.rows, self.seeking.places], 0, self.found_digits)
        if number == COUNTING_LAYER and len(self.counting.rows):
            number_of = self.counting.evidence.sum(-1, keepdim=True) - 1
            right = self._probe(x[self.counting.rows, self.counting.places], NUMBER, number_of)
            self.found["counts"] = float(right.float().mean())
        if number == max(TELLING_HEADS):
            self._probe(x[self.telling.rows, self.telling.places], 0, self.told_digits)

    def _probe(self, x: Tensor, first: int, digits: Tensor) -> Tensor:
        """Of each token [n, width] whether the probe tells all its digits [n, digits]; they begin at its `first`."""
        part = slice(first * (ABSENT_DIGIT + 1), (first + digits.shape[1]) * (ABSENT_DIGIT + 1))
        told = F.linear(x, self.probe.weight[part], self.probe.bias[part]).view(*digits.shape, ABSENT_DIGIT + 1)
        if len(x):
            self.losses.append(F.cross_entropy(told.flatten(0, 1), digits.flatten()))
        return (told.argmax(-1) == digits).all(-1)

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
