"""From logits to the next token of one answer: what is never drawn, penalties, and sampling.

The order is that of transformers: penalties, temperature, top-k, top-p, min-p. Top-k comes first in the arithmetic too,
so that the rest works on k values and not on the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen3vl_webui.engine.contract import SamplingParams
from qwen3vl_webui.errors import Unsupported

TOP = 64  # most candidates of a draw that is made in the same step as its logits
NUCLEUS = 1024  # candidates looked at first when only top-p limits them


def check(sampling: SamplingParams) -> None:
    """Raises Unsupported, naming the setting, when a value has no meaning."""
    allowed = {
        "temperature": sampling.temperature >= 0,
        "top_p": 0 < sampling.top_p <= 1,
        "top_k": sampling.top_k >= 0,
        "min_p": 0 <= sampling.min_p <= 1,
        "presence_penalty": -2 <= sampling.presence_penalty <= 2,
        "repetition_penalty": sampling.repetition_penalty > 0,
        "seed": sampling.seed is None or -(2**63) <= sampling.seed < 2**64,
        "stop": all(sampling.stop),
        "max_tokens": sampling.max_tokens >= 1,
        "thinking_budget": sampling.thinking_budget is None or sampling.thinking_budget >= 0,
    }
    for name, fine in allowed.items():
        if not fine:
            raise Unsupported(f"{name} cannot be {getattr(sampling, name)!r}; choose another value.", param=name)


def candidates(logits: torch.Tensor, sampling: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids that may be drawn and their weights, both (k,), of float32 logits (vocabulary,).

    A weight of 0 is never drawn. Weights are probabilities up to one common factor. Temperature must be above 0.
    """
    scaled = logits / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        values, ids = scaled.topk(sampling.top_k)
        weights = values.softmax(-1)
    elif sampling.top_p < 1:
        everything = scaled.softmax(-1)
        weights, ids = everything.topk(min(NUCLEUS, len(scaled)))
        if float(weights.sum()) < sampling.top_p:  # a flat distribution
            weights, ids = everything.sort(descending=True)
    else:
        weights, ids = scaled.softmax(-1), torch.arange(len(scaled), device=scaled.device)
    kept = weights
    if sampling.top_p < 1:  # the smallest set whose mass reaches top_p: a token stays while less lies above it
        kept = kept.where(weights.cumsum(-1) - weights < sampling.top_p, 0)
    if sampling.min_p > 0:
        kept = kept.where(weights >= sampling.min_p * weights.max(), 0)
    return ids, kept


def draw_together(
    logits: torch.Tensor, forbidden: torch.Tensor, drawn: torch.Tensor, settings: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """What `Sampler.draw` draws, for B answers whose samplers are `few`: token ids (B,) of float32 logits (B, V).

    forbidden bool (V,), drawn bool (B, V), settings (6, B) as `Sampler.settings`, noise (B, TOP). No shape depends on a
    value and nothing waits for the device.
    """
    temperature, top_k, top_p, min_p, repetition, presence = settings[..., None]  # (B, 1) each
    logits = logits.masked_fill(forbidden, -torch.inf)
    logits = torch.where(drawn, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
    logits = logits - drawn * presence
    best = logits.argmax(-1)
    values, ids = (logits / temperature.masked_fill(temperature == 0, 1)).topk(TOP)
    weights = values.masked_fill(torch.arange(TOP, device=values.device) >= top_k, -torch.inf).softmax(-1)
    kept = weights.masked_fill(weights.cumsum(-1) - weights >= top_p, 0)
    kept = kept.masked_fill(weights < min_p * weights[:, :1], 0)
    place = (kept / noise).argmax(-1, keepdim=True)
    return torch.where(temperature[:, 0] > 0, ids.gather(-1, place)[:, 0], best)


class Sampler:
    """Draws the tokens of one answer. `forbidden` ids are never drawn; penalties count the tokens drawn here only.

    The same seed, logits and device give the same tokens.
    """

    GREEDY = (0.0, 1.0, 2.0, 0.0, 1.0, 0.0)

    def __init__(
        self,
        sampling: SamplingParams,
        vocabulary_size: int,
        device: torch.device,
        forbidden: torch.Tensor | None = None,
    ) -> None:
        self.sampling = sampling
        self.forbidden = forbidden
        self.drawn = torch.zeros(vocabulary_size, dtype=torch.bool, device=device)
        self.generator = torch.Generator(device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    @property
    def few(self) -> bool:
        """Whether `draw_together` can draw for it: greedily, or of at most TOP candidates."""
        return self.sampling.temperature == 0 or 0 < self.sampling.top_k <= TOP

    @property
    def penalizes(self) -> bool:
        return self.sampling.repetition_penalty != 1 or self.sampling.presence_penalty != 0

    @property
    def settings(self) -> tuple[float, ...]:
        """Temperature, top-k, top-p (2: none), min-p, repetition and presence penalty."""
        sampling = self.sampling
        top_p = sampling.top_p if sampling.top_p < 1 else 2.0
        penalties = sampling.repetition_penalty, sampling.presence_penalty
        return sampling.temperature, float(sampling.top_k), top_p, sampling.min_p, *penalties

    def noise(self, into: torch.Tensor) -> torch.Tensor:
        """Fills float32 (k,) with what k weights are divided by: the largest quotient is drawn."""
        return into.exponential_(generator=self.generator).clamp_(min=1e-30)  # 0 / 0 would win

    def draw(self, logits: torch.Tensor) -> int:
        """The next token, from float32 logits (vocabulary,), which may be changed."""
        sampling = self.sampling
        if self.forbidden is not None:
            logits.index_fill_(-1, self.forbidden, -torch.inf)
        if sampling.repetition_penalty != 1:
            factor = sampling.repetition_penalty
            logits = torch.where(self.drawn, torch.where(logits > 0, logits / factor, logits * factor), logits)
        if sampling.presence_penalty != 0:
            logits = logits.add_(self.drawn, alpha=-sampling.presence_penalty)
        if sampling.temperature == 0:
            token = int(logits.argmax())
        else:
            ids, weights = candidates(logits, sampling)
            token = int(ids[(weights / self.noise(torch.empty_like(weights))).argmax()])
        self.note(token)
        return token

    def note(self, token: int) -> None:
        """Counts a token that was written without being drawn."""
        self.drawn[token] = True

    def forget_all_but(self, tokens: Sequence[int]) -> None:
        """After an answer was cut back to `tokens`."""
        self.drawn.zero_()
        self.drawn[list(tokens)] = True
