"""How long the rest of a prompt takes to read, from how long its chunks took.

A token attends to all before it, so the later ones take longer: at 262,144 tokens of the 4B more than twenty times as
long as the first. A chunk's seconds are `level` for each token and `slope` for each pair of a token and one before it.
"""

from __future__ import annotations

KEPT = 0.97  # of the weight of earlier chunks, with each new one
EXPECTED = (
    2048  # tokens before a chunk from which on what was measured says more about the slope than the model's shape
)
LATELY = 0.3  # of the newest chunk in how much slower it is than the rest: others may have come or gone


class Pace:
    """`growth` is the slope as a share of the level that the operations of the model give (`Shape.growth`)."""

    def __init__(self, growth: float) -> None:
        self.growth = growth
        self._squares = self._products = self._pairs = 0.0  # of tokens, tokens x pairs, pairs
        self._token_seconds = self._pair_seconds = 0.0
        self._slower = 1.0

    def learn(self, start: int, end: int, seconds: float) -> None:
        """The prompt tokens [start, end) took so long."""
        tokens, pairs = sizes(start, end)
        added = tokens * tokens, tokens * pairs, pairs * pairs, tokens * seconds, pairs * seconds
        sums = self._squares, self._products, self._pairs, self._token_seconds, self._pair_seconds
        self._squares, self._products, self._pairs, self._token_seconds, self._pair_seconds = (
            KEPT * total + new for total, new in zip(sums, added, strict=True)
        )
        level, slope = self._fit()
        fitted = level * tokens + slope * pairs
        if fitted > 0:
            self._slower += LATELY * (seconds / fitted - self._slower)

    def seconds(self, start: int, end: int) -> float | None:
        """What [start, end) will take; None before anything was learnt."""
        if not self._squares:
            return None
        tokens, pairs = sizes(start, end)
        level, slope = self._fit()
        return self._slower * (level * tokens + slope * pairs)

    def _fit(self) -> tuple[float, float]:
        """Least squares, with slope = growth x level as if chunks at `EXPECTED` had said so; none below 0."""
        trust = self._squares * EXPECTED**2
        a, b, c = self._squares + trust * self.growth**2, self._products - trust * self.growth, self._pairs + trust
        determinant = a * c - b * b
        level = (self._token_seconds * c - self._pair_seconds * b) / determinant
        slope = (self._pair_seconds * a - self._token_seconds * b) / determinant
        if slope < 0:
            return self._token_seconds / self._squares, 0.0
        return (level, slope) if level >= 0 else (0.0, self._pair_seconds / self._pairs)


def sizes(start: int, end: int) -> tuple[float, float]:
    """Tokens, and pairs of each with those before it."""
    return float(end - start), (end * end - start * start) / 2
