"""Answers that repeat themselves without end, the plague of OCR and tables: when one is a loop, and how to leave it.

A period of k tokens is a loop when its copies, one right after another, are many and long: `LENGTH` tokens in at least
`REPEATS` copies (`RUN` tokens where k is 1). Twenty equal table rows, a refrain or a matrix of 16 x 16 zeros stay
below. Rows that differ in counters only ("| 12 | none |", "| 13 | none |") have limits of their own, twice as wide, and
count only where the rows hold words: a list of numbers is what some people ask for. At an answer's limit, where nothing
more will come to tell, half as many tokens are a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

LONGEST = 512  # tokens of a period that is still looked for
LENGTH = 640
REPEATS = 6
RUN = 256
COUNTED_LENGTH = 1280
COUNTED_REPEATS = 24
LETTERS = 4  # in a period with counters
HOLD = 48  # repeated tokens after which text is held back until it is clear what it is
CONTEXT = 12  # tokens of a loop that may come again before its next one is banned

PERIODS = np.arange(1, LONGEST + 1)
SHOWN = -(-HOLD // PERIODS) * PERIODS  # repeated tokens that are shown of each period: whole copies
LOOPED = np.maximum(LENGTH, REPEATS * PERIODS) - PERIODS
LOOPED[0] = RUN - 1
STUCK = np.maximum(LENGTH // 2, REPEATS * PERIODS) - PERIODS
STUCK[0] = RUN // 2 - 1


class Matches:
    """For each period, how many symbols up to the last one equal the symbol one period before."""

    def __init__(self) -> None:
        self.symbols = np.empty(1024, np.int64)
        self.count = 0
        self.lengths = np.zeros(LONGEST, np.int64)  # [period - 1]

    def push(self, symbol: int, same: np.ndarray | None = None) -> None:
        """`same` further limits which periods match."""
        if self.count == len(self.symbols):
            self.symbols = np.resize(self.symbols, 2 * self.count)
        reach = min(LONGEST, self.count)
        before = self.symbols[self.count - reach : self.count][::-1]  # one period before, from period 1 on
        equal = before == symbol
        if same is not None:
            equal &= same[:reach]
        self.lengths[:reach] += 1
        self.lengths[:reach] *= equal
        self.symbols[self.count] = symbol
        self.count += 1


class CountedMatches:
    """The same where each number is one symbol, and numbers match that grow by the same step in every copy."""

    NUMBER = -1

    def __init__(self, digits: Mapping[int, int]) -> None:
        self.digits = digits
        self.matches = Matches()
        self.values = np.zeros(1024, np.int64)
        self.number: int | None = None  # whose digits are being read

    def push(self, token: int) -> None:
        digit = self.digits.get(token)
        if digit is not None:
            self.number = min((self.number or 0) * 10 + digit, 2**53)
            return
        if self.number is not None:
            self._push(self.NUMBER, self.number)
            self.number = None
        self._push(token, 0)

    def _push(self, symbol: int, value: int) -> None:
        at = self.matches.count
        if at == len(self.values):
            self.values = np.resize(self.values, 2 * at)
        same = None
        if symbol == self.NUMBER:
            reach = min(LONGEST, at)
            first = self.values[at - reach : at][::-1]  # one period before
            index = at - 2 * PERIODS[:reach]
            second = self.values[np.maximum(index, 0)]  # two periods before
            second_copy = self.matches.lengths[:reach] < PERIODS[:reach]  # no step is known yet
            same = second_copy | (value - first == first - second)
        self.values[at] = value
        self.matches.push(symbol, same)


class LoopGuard:
    """Watches the tokens of one answer. `digits` is the value of each token that is a digit, `letters` counts those
    of a token's text."""

    def __init__(self, digits: Mapping[int, int], letters: Callable[[int], int]) -> None:
        self.letters = letters
        self.plain = Matches()
        self.counted = CountedMatches(digits)

    def push(self, token: int) -> None:
        self.plain.push(token)
        self.counted.push(token)

    @property
    def repeating(self) -> bool:
        """It may become a loop: what follows should not be shown before it is known to be none."""
        return bool((self.plain.lengths > SHOWN).any()) or self._counts(COUNTED_LENGTH // 2)

    @property
    def loop(self) -> list[int] | None:
        """The tokens of one period when the answer is in a loop of equal copies."""
        return self._period(LOOPED)

    def stuck(self, again: bool) -> list[int] | None:
        """The same for an answer that may not become longer; of one that was in a loop before (`again`) all that is
        held back is one."""
        return self._period(SHOWN + 1 if again else STUCK)

    def _period(self, least: np.ndarray) -> list[int] | None:
        found = np.nonzero(self.plain.lengths >= least)[0]
        if not len(found):
            return None
        period = int(found[0]) + 1
        return self.plain.symbols[self.plain.count - period : self.plain.count].tolist()

    @property
    def counting(self) -> bool:
        """The answer is in a loop whose copies differ in counters only."""
        return self._counts(COUNTED_LENGTH)

    def _counts(self, length: int) -> bool:
        matches = self.counted.matches
        found = np.nonzero(matches.lengths + PERIODS >= np.maximum(length, COUNTED_REPEATS * PERIODS))[0]
        if not len(found):
            return False
        period = matches.symbols[matches.count - int(found[0]) - 1 : matches.count].tolist()
        return sum(self.letters(symbol) for symbol in period if symbol != CountedMatches.NUMBER) >= LETTERS


def continuations(period: Sequence[int]) -> dict[tuple[int, ...], int]:
    """What follows each `CONTEXT` tokens of a loop with this period: banned, the loop cannot come back."""
    unrolled = list(period) * (2 + CONTEXT // len(period))
    return {tuple(unrolled[at : at + CONTEXT]): unrolled[at + CONTEXT] for at in range(len(period))}
