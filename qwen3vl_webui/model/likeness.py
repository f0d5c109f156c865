"""How alike the moments of a video are to the words of a question, by features that are there already: nothing is
encoded for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def likeness_of_features(moments: Sequence[torch.Tensor | None], words: torch.Tensor) -> tuple[float, ...]:
    """Of each moment, features [tokens, hidden] as the text model is given them (None: not kept), how alike its most
    alike cell is to all of `words` [words, hidden], rows of the input embedding; 0 for none.

    A cell counts a word by the square of how much its cosine is above the mean of all cells: so words that nothing in
    this video stands out by ("when does the ... appear") count for nothing, and no list of such words is needed, nor
    does it matter that pictures as a whole lie apart from words.
    """
    known = [features for features in moments if features is not None]
    if not known or not len(words):
        return (0.0,) * len(moments)
    named = F.normalize(words.float().cpu(), dim=-1)
    cosines = [F.normalize(features.float(), dim=-1) @ named.T for features in known]  # each [tokens, words]
    usual = torch.cat(cosines).mean(dim=0)
    found = iter([float(((each - usual).clamp(min=0) ** 2).sum(dim=-1).max()) for each in cosines])
    return tuple(0.0 if features is None else next(found) for features in moments)
