"""Which pages of a document a question is about, by the words they share: for documents longer than the context."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[0-9a-z_]+(?:[.,'’-][0-9a-z_]+)*|[\u3400-\u9fff\uf900-\ufaff]+", re.IGNORECASE)
SATURATION, LENGTH_WEIGHT = 1.2, 0.75  # of Okapi BM25: the usual values


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers; Chinese in pairs of characters, which need no dictionary."""
    words = []
    for match in _WORD.finditer(text.lower()):
        piece = match[0]
        if piece[0] < "\u3400" or len(piece) == 1:
            words.append(piece)
        else:
            words += [piece[index : index + 2] for index in range(len(piece) - 1)]
    return words


def scores_of(question: str, texts: Sequence[str]) -> list[float]:
    """Of each text how much it says of what the question asks (Okapi BM25, Robertson and Zaragoza 2009); 0: nothing."""
    wanted = set(words_of(question))
    counts = [Counter(words_of(text)) for text in texts]
    lengths = [sum(count.values()) for count in counts]
    usual = max(1.0, sum(lengths) / max(1, len(lengths)))
    scores = [0.0] * len(texts)
    for word in wanted:
        having = [index for index, count in enumerate(counts) if word in count]
        if not having:
            continue
        rarity = math.log(1 + (len(texts) - len(having) + 0.5) / (len(having) + 0.5))
        for index in having:
            often = counts[index][word]
            short = 1 - LENGTH_WEIGHT + LENGTH_WEIGHT * lengths[index] / usual
            scores[index] += rarity * often * (SATURATION + 1) / (often + SATURATION * short)
    return scores


def choose_pages(question: str, texts: Sequence[str], count: int) -> list[int]:
    """The indexes of `count` pages, rising: those nearest to the question, each with the page after it while there is
    room; where no page shares a word with it, pages spread evenly, the first among them."""
    count = min(count, len(texts))
    scores = scores_of(question, texts)
    best = sorted((index for index, score in enumerate(scores) if score > 0), key=lambda index: -scores[index])
    chosen = set(best[:count])
    for index in best:
        if len(chosen) >= count:
            break
        if index + 1 < len(texts):
            chosen.add(index + 1)  # what begins on a page ends on the next
    if len(chosen) < count:
        others = [index for index in range(len(texts)) if index not in chosen]
        missing = count - len(chosen)
        chosen.update(others[index * len(others) // missing] for index in range(missing))
    return sorted(chosen)


def written_pages(pages: Sequence[int]) -> str:
    """(1, 2, 3, 8) -> `1-3, 8`: as a person writes them, and as `read_pages` reads them."""
    pieces: list[str] = []
    index = 0
    while index < len(pages):
        last = index
        while last + 1 < len(pages) and pages[last + 1] == pages[last] + 1:
            last += 1
        pieces.append(str(pages[index]) if last == index else f"{pages[index]}-{pages[last]}")
        index = last + 1
    return ", ".join(pieces)
