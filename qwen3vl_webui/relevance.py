"""What of a long document or film a question is about: by the words they share, or by what looks like them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[0-9a-z_]+(?:[.,'’-][0-9a-z_]+)*|[\u3400-\u9fff\uf900-\ufaff]+", re.IGNORECASE)
SATURATION, LENGTH_WEIGHT = 1.2, 0.75  # of Okapi BM25: the usual values
RARE = 0.03  # share of lines: a word said more often finds none of them
MOST_LINES, NEAR_BEST_LINE = 3, 0.6
MOST_ALIKE, NEAR_BEST_ALIKE = 8, 0.75  # of the best: benchmarks.moments was best with it


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


def best_first(scores: Sequence[float]) -> list[int]:
    """The indexes of those above 0, the highest first."""
    return sorted((index for index, score in enumerate(scores) if score > 0), key=lambda index: -scores[index])


def near_best(scores: Sequence[float], most: int, share: float) -> list[int]:
    """At most so many of `best_first`, with at least that share of the highest."""
    best = best_first(scores)[:most]
    return [index for index in best if scores[index] >= share * scores[best[0]]]


def choose_pages(question: str, texts: Sequence[str], count: int) -> list[int]:
    """The indexes of `count` pages, rising: those nearest to the question, each with the page after it while there is
    room; where no page shares a word with it, pages spread evenly, the first among them."""
    count = min(count, len(texts))
    scores = scores_of(question, texts)
    best = best_first(scores)
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


ASKING = frozenset(  # where few lines are said, words of asking are as rare as the one that matters
    words_of(
        "a about all an and any appear appears are as at be by can clip did do does each every exactly film first for "
        "from hear he here how i in is it last list many me mention mentioned mentions moment moments of often on or "
        "said say says second seconds see seen she show shown shows speak talk talks tell that the there they this "
        "time times to video was we were what when where which who why with you "
        "视频 影片 出现 提到 说到 讲到 讲了 说了 什么 哪里 画面 内容"
    )
)


def words_asked(question: str) -> list[str]:
    """Without those of asking."""
    return [word for word in words_of(question) if word not in ASKING]


def choose_lines(question: str, lines: Sequence[str]) -> list[int]:
    """The indexes of at most `MOST_LINES` lines of speech that say what the question asks about, the best first: those
    near the best that hold one of its words that is seldom said. None where no line does."""
    having = Counter(word for line in lines for word in set(words_of(line)))
    most = max(2.0, RARE * len(lines))
    telling = {word for word in words_asked(question) if 0 < having[word] <= most}
    return near_best(scores_of(" ".join(telling), lines), MOST_LINES, NEAR_BEST_LINE)


def choose_exchanges(question: str, texts: Sequence[str], with_files: Sequence[bool]) -> list[int]:
    """The indexes of earlier questions (with their answers), what the last one needs most first: the one before it, the
    newest with files, those that share its words, nearest first, then the newer ones."""
    scores = scores_of(" ".join(words_asked(question)), texts)
    newest = list(reversed(range(len(texts))))
    asked = sorted((index for index in newest if scores[index] > 0), key=lambda index: -scores[index])
    shown = [index for index in newest if with_files[index]][:1]
    return list(dict.fromkeys([*newest[:1], *shown, *asked, *newest]))


def choose_alike(likeness: Sequence[float]) -> list[int]:
    """The indexes of at most `MOST_ALIKE` moments, the most alike first, those far behind it left out."""
    return near_best(likeness, MOST_ALIKE, NEAR_BEST_ALIKE)


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
